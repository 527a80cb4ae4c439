"""Settings of a run's secure aggregation, checked against its sampling and its δ."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from privacy import arguments
from privacy.accounting import AdditiveDelta, Event, Poisson, Sampling, presence_delta
from privacy.accounting.composition import count_events, of_one_client
from privacy.mechanisms import (
    DistributedGaussian,
    MaskedGaussian,
    MaskedMechanism,
    lattice_radius,
)
from privacy.secure_aggregation import Adversary, RoundPlan, ServerModel, plan_round
from privacy.secure_aggregation.terms import check_adversary, pinned_keys

NoisePlacement = Literal["central", "distributed"]

_STEPS = (0.0, 0.1, 0.2, 0.3, -0.1)  # from the dropout set, that others are tried at


@arguments.renamed(
    minimum="min_clients",
    largest="max_clients",
    dropout="max_dropout_fraction",
    client_dropout="dropout_probability",
    identities="client_public_keys",
    noise="noise_placement",
)
@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """The server learns the sum of a round's updates, and only if enough clients took part.

    A setting of ``DPFedAvg``. Every client needs ``SecureAggregationMod``, which clips, weights
    and masks its update; the two agree on nothing but what each of them can check.

    **Guarantee.** Of a round the server learns the sum of at least ``min_clients`` clients' bounded
    updates, or nothing; not what any client sent, how much it weighs, or its metrics
    (``docs/how-to/secure-aggregation.md``). Below the minimum the round ends, is paid, and opens
    nothing; a run in whose first exchange no reply is usable ends unpaid.

    **Assumptions.** Those of ``privacy.secure_aggregation.SecureClient``. For differential
    privacy against those who see the model: the server adds its noise; clients drop out
    independently of each other, each with at most the probability ``dropout_probability``.

    **Not covered.** Poisoning: the server cannot clip what it cannot see. With central noise,
    what the sum itself gives away to the server.

    Parameters
    ----------
    min_clients : int
        The fewest clients whose sum is opened, at least 3. A client refuses a round whose
        minimum is below its own.
    adversary : Adversary
        Whom a round withstands; its share is of the cohort that was drawn. Clients refuse a round
        that does not withstand the one they assume.
    max_dropout_fraction : float
        The share, in [0, 1), of those who advertised keys that may vanish before the round is lost;
        who shares its secrets wrongly, or keeps others' shares back, counts as well. Neighbours,
        and with them each client's work, grow with it.
    client_public_keys : iterable of bytes
        The Ed25519 public keys of all who may take part; needed against a malicious server,
        where clients pin the same list.
    noise_placement : "central" or "distributed"
        Central: the server adds the noise, and sees the sum without. Distributed: each client adds
        a share, and the strategy's noise multiplier z is that of the sum as the *server* and its
        colluders see it (``DistributedGaussian``); only against an honest-but-curious server.
    max_clients : int, optional
        The largest cohort that is asked; needed with distributed noise. A round that draws more
        is aborted.
    dropout_probability : float
        The probability, at most, in [0, 1), with which a drawn client does not see the round
        through. From it follows how probable it is that one client's presence decides whether a
        round opens, which each round is charged as a part of δ: keep it well below
        ``max_dropout_fraction``, and ``min_clients`` well below the usual cohort, or no noise fits
        the budget. The operator's log warns where more vanish than that explains; the run goes on,
        for to end it would itself show who was there.
    stage_timeout : float
        Seconds that a stage without training waits for clients that do not answer. A round has
        four such stages, five against a malicious server, and one more where a client shared
        its secrets wrongly; the training waits as long as ``start`` says. The first message of a
        run may have to wait for a client's program to load.
    """

    min_clients: int
    adversary: Adversary = field(default_factory=Adversary)
    max_dropout_fraction: float = 0.2
    noise_placement: NoisePlacement = "central"
    max_clients: int | None = None
    dropout_probability: float = 0.02
    # Not shown: another list or more patience does not make it another run.
    client_public_keys: Iterable[bytes] = field(default=(), repr=False)
    stage_timeout: float = field(default=600.0, repr=False)

    def __post_init__(self) -> None:
        arguments.convert(self, "min_clients", arguments.whole, least=3)
        arguments.convert(self, "stage_timeout", arguments.seconds)
        if self.max_clients is not None:
            arguments.convert(self, "max_clients", arguments.whole, least=self.min_clients)
        for name in ("max_dropout_fraction", "dropout_probability"):
            arguments.convert(self, name, arguments.number, least=0, below=1)
        keys = tuple(sorted(pinned_keys(self.client_public_keys)))
        object.__setattr__(self, "client_public_keys", keys)
        check_adversary("adversary", self.adversary)
        if self.noise_placement not in ("central", "distributed"):
            raise ValueError(
                f"noise_placement is {self.noise_placement!r}; choose 'central' or 'distributed'"
            )
        if self.noise_placement == "distributed":
            if self.max_clients is None:
                raise ValueError(
                    "max_clients is not set; distributed noise is made up to the same amount "
                    "whatever the cohort: give the largest one"
                )
            if self.adversary.server is ServerModel.MALICIOUS:
                raise ValueError(
                    "noise_placement is 'distributed' against a malicious server, which could tell "
                    "clients to add none; use central noise, or an honest-but-curious server"
                )
            self.mechanism(1)  # checks that enough honest clients are left
        if self.adversary.server is ServerModel.MALICIOUS and not self.client_public_keys:
            raise ValueError(
                "client_public_keys is empty; against a malicious server list the Ed25519 keys "
                "of all who may take part, as the clients pin them"
            )

    def mechanism(self, parameters: int) -> MaskedMechanism:
        """The mechanism that bounds and noises the sums of a model of so many parameters."""
        radius = lattice_radius(parameters)
        if self.noise_placement == "central" or self.max_clients is None:
            return MaskedGaussian(radius)
        colluders = max(1, self.adversary.max_corrupt(self.max_clients))
        return DistributedGaussian(radius, self.min_clients, colluders, self.max_clients)

    def presence(self, population: int, sampling: Sampling) -> AdditiveDelta:
        """The charge of each round because one client's presence can decide whether it opens."""
        return _presence(self, population, sampling)

    def check_opens(self, expected_cohort: float) -> None:
        """Refuse a run whose rounds could not be opened though every client answers.

        ``ValueError`` if as many clients as a round draws on average, rounded down or up, are too
        few to meet ``max_corrupt_fraction`` and ``max_dropout_fraction``.
        """
        for clients in (math.ceil(expected_cohort), math.floor(expected_cohort)):
            if self._plan(clients, clients) is not None:
                return
        try:
            self._planned(clients, clients)
        except ValueError as error:
            raise ValueError(
                f"secure_aggregation can open no round of this run, which draws "
                f"{expected_cohort:g} clients on average: {error}"
            ) from error

    def check_presence(
        self,
        population: int,
        sampling: Sampling,
        *,
        rounds: int,
        delta: float,
        paid: Iterable[Event] = (),
    ) -> None:
        """Refuse ``rounds`` rounds that are charged more for presence than there is of δ.

        ``delta`` is that of all runs together, of which earlier ones have ``paid``. The
        ``ValueError`` names other settings that were tried and fit, with half of δ left for the
        noise.
        """
        charged = self.presence(population, sampling).delta
        of_one = of_one_client(count_events(paid)).items()
        earlier = sum(n * event.delta for event, n in of_one if isinstance(event, AdditiveDelta))
        left = max(0.0, delta - earlier)
        if charged * rounds < left:
            return
        fitting = "; ".join(self._fitting(population, sampling, rounds, left))
        share = f", of which earlier runs have left {left:.3g}" * bool(earlier)
        raise ValueError(
            f"each round is charged {charged:.2g} of δ because one client's presence can decide "
            f"whether it opens, so {rounds} {'round passes' if rounds == 1 else 'rounds pass'} "
            f"budget.delta = {delta:g}{share}: too few clients are drawn for "
            f"secure_aggregation.min_clients = {self.min_clients}, "
            f"secure_aggregation.max_dropout_fraction = {self.max_dropout_fraction:g} and "
            f"secure_aggregation.dropout_probability = {self.dropout_probability:g}. "
            + (f"What fits: {fitting}" if fitting else "Nothing near them fits: draw more clients")
        )

    def _fitting(
        self, population: int, sampling: Sampling, rounds: int, delta: float
    ) -> Iterator[str]:
        """Settings near these with which a run fits: of each sort the first."""
        rate = sampling.rate if isinstance(sampling, Poisson) else 1.0
        rates = (sampling, Poisson(1.0)) if rate < 1 else (sampling,)
        minima = sorted({max(3, self.min_clients // part) for part in (1, 2, 4)}, reverse=True)
        dropouts = [round(self.max_dropout_fraction + step, 12) for step in _STEPS]
        sorts: list[list[tuple[Sampling, dict[str, Any]]]] = [
            [
                (drawn, {"min_clients": clients, "max_dropout_fraction": dropout})
                for drawn, clients, dropout in itertools.product(rates, minima, dropouts)
                if 0 <= dropout < 1
            ],
            [
                (sampling, {"dropout_probability": self.dropout_probability / part})
                for part in (2, 5, 10, 20)
            ],
            [(Poisson(tenths / 10), {}) for tenths in range(1, 10) if tenths / 10 > rate],
        ]
        for candidates in sorts:
            for drawn, changes in candidates:
                try:
                    charged = replace(self, **changes).presence(population, drawn).delta
                except ValueError:  # distributed noise does not go with it
                    continue
                if 2 * charged * rounds < delta:
                    words = [
                        f"secure_aggregation.{name} = {value:.12g}"
                        for name, value in changes.items()
                        if value != getattr(self, name)
                    ]
                    if isinstance(drawn, Poisson) and drawn is not sampling:
                        words.append(f"a sampling rate of {drawn.rate:g}")
                    vanish = ", if no more clients vanish" * ("dropout_probability" in changes)
                    yield " with ".join(words) + vanish
                    break
        a_round = self.presence(population, sampling).delta
        fewer = int(delta / 2 / a_round) if a_round > 0 else 0
        if 0 < fewer < rounds:
            yield f"{fewer} {'round' if fewer == 1 else 'rounds'}"

    def _plan(self, clients: int, cohort: int) -> RoundPlan | None:
        try:
            return self._planned(clients, cohort)
        except ValueError:
            return None

    def _planned(self, clients: int, cohort: int) -> RoundPlan:
        return plan_round(
            clients,
            adversary=self.adversary,
            max_dropout_fraction=self.max_dropout_fraction,
            min_clients=self.min_clients,
            cohort=cohort,
        )

    def __str__(self) -> str:
        """For the log."""
        return (
            f"sums of at least {self.min_clients} clients, against a server that is "
            f"{self.adversary.server.value} with {self.adversary.max_corrupt_fraction:.0%} of the "
            f"clients, {self.noise_placement} noise"
        )


@lru_cache(maxsize=32)  # seconds for thousands of clients, and asked when a run is checked too
def _presence(settings: SecureAggregation, population: int, sampling: Sampling) -> AdditiveDelta:
    return presence_delta(
        population=population,
        sampling=sampling,
        dropout_probability=settings.dropout_probability,
        opening=settings._plan,
        max_clients=settings.max_clients,
    )
