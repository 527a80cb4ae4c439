"""What a run with secure aggregation asks of every round."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from privacy.secure_aggregation import Adversary, ServerModel


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """The server learns the sum of a round's updates, and only if enough clients took part.

    A setting of ``DPFedAvg``. Every client needs ``SecureAggregationMod``, which clips, weights
    and masks its update; the two agree on nothing but what each of them can check.

    **Guarantee.** Of a round the server learns the sum of at least ``minimum`` clients' bounded
    updates, or nothing; not what any client sent, how much it weighs, or its metrics
    (``docs/secure-aggregation.md``). Below the minimum the round ends, is paid, and changes
    nothing.

    **Assumptions.** Those of ``privacy.secure_aggregation.SecureClient``. For differential
    privacy against those who see the model: the server adds the noise.

    **Not covered.** Poisoning: the server cannot clip what it cannot see. What the sum itself
    gives away to the server.

    Parameters
    ----------
    minimum : int
        The fewest clients whose sum is opened, at least 3. A client refuses a round whose
        minimum is below its own.
    adversary : Adversary
        Whom a round withstands. Clients refuse what does not withstand the one they assume.
    dropout : float
        The share of a cohort that may vanish during a round before the round is lost, in [0, 1).
        Neighbours, and with them each client's work, grow with it.
    identities : iterable of bytes
        The Ed25519 public keys of all who may take part; needed against a malicious server,
        where clients pin the same list.
    stage_timeout : float
        Seconds that a stage without training waits for clients that do not answer. A round has
        three such stages, four against a malicious server; the training waits as long as
        ``start`` says.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    minimum: int
    adversary: Adversary = field(default_factory=Adversary)
    dropout: float = 0.1
    # Not shown: another list or more patience does not make it another run.
    identities: Iterable[bytes] = field(default=(), repr=False)
    stage_timeout: float = field(default=60.0, repr=False)

    def __post_init__(self) -> None:
        if self.minimum < 3:
            raise ValueError(f"minimum is {self.minimum}; the sum of fewer than 3 hides nobody")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; a share of a cohort in [0, 1)")
        if not self.stage_timeout > 0:
            raise ValueError(f"stage_timeout is {self.stage_timeout}; seconds, above 0")
        object.__setattr__(self, "identities", tuple(sorted(set(self.identities))))
        if self.adversary.server is ServerModel.MALICIOUS and not self.identities:
            raise ValueError(
                "identities is empty; against a malicious server list the Ed25519 public keys "
                "of all who may take part, as the clients pin them"
            )

    def __str__(self) -> str:
        """For the log."""
        return (
            f"sums of at least {self.minimum} clients, against a "
            f"{self.adversary.server.value} server with {self.adversary.corrupt:.0%} of the clients"
        )
