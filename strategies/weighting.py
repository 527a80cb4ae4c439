"""Weights of clients' updates: public rules, never computed from clients' counts."""

from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from flwr.app import MetricRecord

from privacy import arguments


class Weighting(Protocol):
    """Turns a client's number of examples into a weight in (0, 1]."""

    def weight(self, metrics: MetricRecord | None, key: str) -> float:
        """The weight of one reply; a ``ValueError`` where it cannot be read."""

    def total(self, population: int) -> float:
        """The public sum of weights over the population, W."""


@dataclass(frozen=True)
class UniformWeights:
    """Every client counts the same, w_k = 1, and need not report its number of examples."""

    def weight(self, metrics: MetricRecord | None, key: str) -> float:
        """One, whatever the reply."""
        return 1.0

    def total(self, population: int) -> float:
        """N."""
        return float(population)


@dataclass(frozen=True, kw_only=True)
class CappedWeights:
    """w_k = min(n_k / cap, 1): weighted averaging in which no client counts more than one.

    Parameters
    ----------
    cap : float
        The number of examples ŵ from which a client counts fully. Declared by the operator from
        public knowledge, never computed from clients' counts. The median or less serves well:
        a cap at the maximum makes most clients whisper under noise sized for the loudest.
    total_weight : float
        W = sum of min(n_k / cap, 1) over the population, as the operator declares it. A wrong W
        changes the learning rate, not the privacy.
    """

    cap: float
    total_weight: float

    def __post_init__(self) -> None:
        for name in ("cap", "total_weight"):
            arguments.convert(self, name, arguments.number, above=0)

    def weight(self, metrics: MetricRecord | None, key: str) -> float:
        """min(n_k / cap, 1) of a positive, finite n_k."""
        examples = None if metrics is None else metrics.get(key)
        if isinstance(examples, bool) or not isinstance(examples, int | float):
            raise ValueError(f"'{key}' is missing or not a number")
        if not (isfinite(examples) and examples > 0):
            raise ValueError(f"'{key}' is not finite and positive")
        return min(examples / self.cap, 1.0)

    def total(self, population: int) -> float:
        """W, as declared: at most N, since no weight is above one."""
        if self.total_weight > population:
            raise ValueError(
                f"total_weight = {self.total_weight} is more than the population of {population}; "
                "no client weighs more than 1"
            )
        return self.total_weight
