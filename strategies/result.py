"""The result of a run: Flower's, with the privacy that it cost."""

from dataclasses import asdict, dataclass, field
from decimal import ROUND_CEILING, Context
from math import inf, isfinite
from typing import Any

from flwr.serverapp.strategy import Result

from privacy.accounting import Accountant

_FOUR_DIGITS = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class SecureAggregationReport:
    """The secure aggregation of a run: its adversary, its thresholds, its cost.

    Attributes
    ----------
    server : str
        Against which server: "honest-but-curious" or "malicious".
    max_corrupt_fraction : float
        Together with what share of a round's clients.
    min_clients : int
        The fewest clients whose sum was opened.
    max_dropout_fraction : float
        The share of a cohort that could vanish before its round was lost.
    noise_placement : str
        Who added it: "central", the server, which thus saw the sums without it, or
        "distributed", the clients.
    epsilon_against_server : float
        ε against the server itself, for what a client holds, at the same δ: it draws the cohorts,
        so nothing is amplified by sampling. Infinite where the server itself added noise to
        anything that stands in the ledger, and so saw it without: with central noise, or once an
        ``EncryptedRound`` with noised metrics was paid.
    dropout_probability : float
        The probability, at most, with which a client was assumed to drop out.
    presence_delta : float
        The share of δ charged for each round, opened or not, because one client's presence can
        decide whether it opens; it follows from ``dropout_probability``.
    aborted_rounds : tuple of int
        The rounds that opened nothing and left the model as it was. Each round of clients was paid;
        of silos, those in ``epsilon_by_round``.
    """

    server: str
    max_corrupt_fraction: float
    min_clients: int
    max_dropout_fraction: float
    noise_placement: str
    epsilon_against_server: float
    dropout_probability: float
    presence_delta: float
    aborted_rounds: tuple[int, ...]


@dataclass(frozen=True)
class PrivacyReport:
    """The guarantee of a run. Every figure is a public setting or follows from one.

    Attributes
    ----------
    epsilon : float
        ε of everything that this population has paid, this run included; infinite for a run
        without noise or with a seed.
    delta : float
        δ.
    noise_multiplier : float
        z of a round; infinite if the budget was spent before the first.
    clipping_norm : float
        S, of the last round where it adapts.
    sampling : str
        The rule, "poisson", "fixed-size", "full" or "cyclic-groups".
    sampling_rate : float
        q, the expected fraction of the population in a round.
    rounds : int
        The number of rounds that this run paid.
    population : int
        N.
    adjacency : str
        "add-or-remove-one" or "replace-one".
    accountant : "pld" or "rdp"
        The accountant that composed ε.
    mechanism : str
        The mechanism that added the noise.
    private : bool
        False if randomness was seeded or there was no noise.
    stopped : str or None
        Why the run ended before its last round, if it did.
    epsilon_by_round : dict of int to float
        ε after each round that was paid. A step of silos is not where none of them was asked for
        its sum.
    secure_aggregation : SecureAggregationReport or None
        None if the server saw each update.
    epsilon_without_amplification : float
        ε as above against whoever learns who was drawn, for instance a client about itself: as if
        every client had been in every round. It covers what a client holds.
    unit : str
        Whom it protects: "client", or under distributed DP-SGD "person" or "row"; what is said of
        clients here is of these then.
    run : str
        The run's name in the ledger.
    epsilon_by_observer : dict of str to float
        Under distributed DP-SGD: ε against each of those who see something, by
        ``privacy.accounting.Observer``. Empty otherwise.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    clipping_norm: float
    sampling: str
    sampling_rate: float
    rounds: int
    population: int
    adjacency: str
    accountant: Accountant
    mechanism: str
    private: bool
    stopped: str | None
    epsilon_by_round: dict[int, float]
    secure_aggregation: SecureAggregationReport | None = None
    epsilon_without_amplification: float = inf
    unit: str = "client"
    run: str = ""
    epsilon_by_observer: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """The guarantee in a paragraph; every ε is rounded up."""
        sentences = [
            f"ε = {_rounded_up(self.epsilon)} at δ = {self.delta:g} for one {self.unit} of "
            f"{self.population:,} ({self.adjacency}), all that was paid for them before included"
            if self.private
            else "NOT PRIVATE: there is no noise, or a seed makes it known"
        ]
        against = dict(self.epsilon_by_observer)
        if self.secure_aggregation is not None:
            against["the server"] = self.secure_aggregation.epsilon_against_server
        if not self.epsilon_by_observer and self.sampling_rate < 1:
            against["whoever learns who was drawn"] = self.epsilon_without_amplification
        if against and self.private:
            each = (f"{who}: {_rounded_up(epsilon)}" for who, epsilon in against.items())
            sentences.append(f"ε against {', '.join(each)}")
        sentences.append(
            f"{self.rounds} rounds, {self.sampling} sampling at q = {self.sampling_rate:g}, "
            f"clipping norm {self.clipping_norm:g}, noise multiplier {self.noise_multiplier:.4g} "
            f"({self.mechanism}; {self.accountant} accountant)"
        )
        if self.stopped is not None:
            sentences.append(f"It ended early: {self.stopped.rstrip('.')}")
        return ". ".join(sentences) + "."

    def as_dict(self) -> dict[str, Any]:
        """The report for a JSON file, with null for what is infinite."""
        document = asdict(self)
        for name in ("epsilon", "noise_multiplier", "epsilon_without_amplification"):
            document[name] = _finite(document[name])
        if self.secure_aggregation is not None:
            against = self.secure_aggregation.epsilon_against_server
            document["secure_aggregation"]["epsilon_against_server"] = _finite(against)
        document["epsilon_by_observer"] = {
            observer: _finite(value) for observer, value in self.epsilon_by_observer.items()
        }
        document["epsilon_by_round"] = {
            str(number): _finite(value) for number, value in self.epsilon_by_round.items()
        }
        return document


def _rounded_up(epsilon: float) -> str:
    if not isfinite(epsilon):
        return "∞"
    return f"{_FOUR_DIGITS.create_decimal(repr(float(epsilon))):f}"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


@dataclass(repr=False)
class PrivateResult(Result):
    """Flower's ``Result`` with the run's privacy beside it."""

    privacy: PrivacyReport | None = field(default=None)

    def __repr__(self) -> str:
        """Flower's description, and the privacy."""
        return f"{super().__repr__()}\nPrivacy:\n{self.privacy}\n"
