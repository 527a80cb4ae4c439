"""Accuracies and times that were measured, from which ``plan`` answers.

``measured.json`` is written by ``python -m benchmarks results`` from the committed figures.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from privacy.json_text import read_json

TABLE = Path(__file__).with_name("measured.json")


class Sizes(tuple[float, ...]):
    """What makes a run easier, the more of it: compared in all respects at once.

    So two may not be comparable.
    """

    def __le__(self, other: tuple[float, ...]) -> bool:
        return all(a <= b for a, b in zip(self, other, strict=True))

    def __ge__(self, other: tuple[float, ...]) -> bool:
        return all(a >= b for a, b in zip(self, other, strict=True))


class Measured(Protocol):
    """A test accuracy that was measured: median, lowest and highest of so many runs."""

    @property
    def median(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102
    @property
    def runs(self) -> int: ...  # noqa: D102

    @property
    def sizes(self) -> Sizes:
        """What makes it easier."""

    @property
    def played(self) -> str:
        """How long it trained, in words."""

    @property
    def conditions(self) -> str:
        """Under which it was measured, in words."""


@dataclass(frozen=True)
class MeasuredAccuracy:
    """The test accuracy that one setting reached, with label-sorted, disjoint clients.

    ``clients`` is N, ``records`` the number that each held; ``epsilon`` and ``delta`` were spent;
    ``median``, ``low`` and ``high`` are of the accuracies of ``runs`` runs.
    """

    dataset: str
    model: str
    clients: int
    records: int
    epsilon: float
    delta: float
    sampling_rate: float
    rounds: int
    noise_multiplier: float
    median: float
    low: float
    high: float
    runs: int

    @property
    def sizes(self) -> Sizes:
        """Clients, their records, and the budget."""
        return Sizes((self.clients, self.records, self.epsilon, self.delta))

    @property
    def played(self) -> str:
        """Rounds."""
        return f"{self.rounds} rounds"

    @property
    def conditions(self) -> str:
        """See :class:`Measured`."""
        return (
            f"N = {self.clients:,}, {self.records} records each, ε = {self.epsilon:g}, "
            f"δ = {self.delta:g}, q = {self.sampling_rate:g}"
        )


@dataclass(frozen=True)
class MeasuredSilos:
    """The test accuracy of distributed DP-SGD over ``silos`` silos with ``records`` in all.

    ``honest`` is the number of silos for which the noise was sized; the rest as in
    :class:`MeasuredAccuracy`.
    """

    dataset: str
    model: str
    silos: int
    honest: int
    records: int
    epsilon: float
    delta: float
    sampling_rate: float
    steps: int
    median: float
    low: float
    high: float
    runs: int

    @property
    def sizes(self) -> Sizes:
        """Records, the budget, and the share of silos for which the noise is sized."""
        return silo_sizes(self.records, self.epsilon, self.delta, self.honest / self.silos)

    @property
    def played(self) -> str:
        """Steps."""
        return f"{self.steps} steps"

    @property
    def conditions(self) -> str:
        """See :class:`Measured`."""
        return (
            f"{self.silos} silos, N = {self.records:,}, ε = {self.epsilon:g}, δ = {self.delta:g}, "
            f"p = {self.sampling_rate:g}"
        )


def silo_sizes(records: int, epsilon: float, delta: float, honest_share: float) -> Sizes:
    """What makes a run over silos easier."""
    return Sizes((records, epsilon, delta, honest_share))


@dataclass(frozen=True)
class MeasuredRound:
    """The median time of a round with an expected ``cohort``, on the machine ``where``."""

    model: str
    cohort: float
    seconds: float
    where: str


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = read_json(TABLE.read_text())
    return table


def measured_accuracies() -> tuple[MeasuredAccuracy, ...]:
    """All measured accuracies of runs over clients."""
    return tuple(MeasuredAccuracy(**row) for row in _table()["accuracy"])


def measured_silos() -> tuple[MeasuredSilos, ...]:
    """All measured accuracies of runs over silos."""
    return tuple(MeasuredSilos(**row) for row in _table()["silos"])


def measured_rounds() -> tuple[MeasuredRound, ...]:
    """All measured times of a round."""
    return tuple(MeasuredRound(**row) for row in _table()["rounds"])


@dataclass(frozen=True)
class AccuracyRange:
    """The best measured run that was no easier in any respect, and the worst no harder, if any."""

    at_least: Measured | None
    at_most: Measured | None

    @classmethod
    def of(cls, sizes: Sizes, rows: Iterable[Measured]) -> "AccuracyRange":
        """Bound the accuracy of a run of these sizes by measured ones, without interpolation.

        More of any of the sizes never lowers the best possible accuracy, so a measured run bounds
        all that are easier, or harder, in every respect. One of these very sizes is both bounds.
        """
        rows = list(rows)
        for m in rows:
            if m.sizes == sizes:
                return cls(m, m)
        return cls(
            max((m for m in rows if m.sizes <= sizes), key=lambda m: m.median, default=None),
            min((m for m in rows if m.sizes >= sizes), key=lambda m: m.median, default=None),
        )

    @property
    def known(self) -> bool:
        """Whether anything comparable was measured."""
        return self.at_least is not None or self.at_most is not None

    @property
    def sentence(self) -> str:
        """The bounds in words."""
        if not self.known:
            return "not known: nothing comparable was measured"
        if self.at_least is not None and self.at_least == self.at_most:
            m = self.at_least
            return (
                f"about {100 * m.median:.1f} % after {m.played} ({100 * m.low:.1f} to "
                f"{100 * m.high:.1f} % in {m.runs} runs), measured with {m.conditions}"
            )
        parts = [
            f"at {bound} about {100 * m.median:.1f} % after {m.played}, measured with "
            f"{m.conditions}"
            for bound, m in (("least", self.at_least), ("most", self.at_most))
            if m is not None
        ]
        other = "more" if self.at_most is None else "less" if self.at_least is None else ""
        return "; ".join([*parts, f"how much {other} is not known"] if other else parts)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON document."""
        return {"known": self.known, **asdict(self), "sentence": self.sentence}
