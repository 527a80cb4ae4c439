"""Costs and accuracy of a private run, before any training.

Accuracies and times were measured: ``measured.json`` is written by ``python -m benchmarks results``
from the committed figures.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flower_app.models.specs import RECIPES
from privacy.accounting import (
    Budget,
    CyclicGroups,
    Full,
    GaussianRelease,
    Poisson,
    calibrate_noise_multiplier,
    epsilon,
)
from privacy.correlated_noise import MinSeparation, banded_coefficients, relative_error

if TYPE_CHECKING:
    from torch import nn

RATES_IN_TURNS = (0.02, 0.05, 0.1, 0.2, 0.5)
SAMPLING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TABLE = Path(__file__).with_name("measured.json")


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


@dataclass(frozen=True)
class MeasuredRound:
    """The median time of a round with an expected ``cohort``, on the machine ``where``."""

    model: str
    cohort: float
    seconds: float
    where: str


@cache
def measured_accuracies() -> tuple[MeasuredAccuracy, ...]:
    """All measured accuracies."""
    return tuple(MeasuredAccuracy(**row) for row in json.loads(TABLE.read_text())["accuracy"])


@cache
def measured_rounds() -> tuple[MeasuredRound, ...]:
    """All measured times of a round."""
    return tuple(MeasuredRound(**row) for row in json.loads(TABLE.read_text())["rounds"])


@dataclass(frozen=True)
class Question:
    """A budget at client level, under adding or removing one client; N; and a task.

    Only measured accuracies depend on ``records``, a client's.
    """

    budget: Budget
    population: int
    records: int = 50
    dataset: str = "mnist"
    model: str = "hog-linear"


@dataclass(frozen=True)
class OwnModel:
    """The bytes of a message with a model of the user's own, and its server's momentum."""

    message_bytes: int
    server_momentum: float


@dataclass(frozen=True)
class Option:
    """One way to spend the budget: q, T, and z, which is None where no noise fits.

    Attributes
    ----------
    cohort : float
        Expected clients a round, q·N.
    epsilon_without_amplification : float or None
        ε against whoever learns who was drawn, at the budget's δ; None where z is, or it is
        infinite.
    noise_share : float or None
        The noise on each parameter of the round's average, as a share of the clipping norm:
        z / (q·N). Smaller is better.
    round_bytes : float
        Expected bytes that a round moves, to and from its cohort.
    client_bytes : float
        Expected bytes that one client moves in the whole run.
    round_seconds : float or None
        Scaled from a measured round, or None where none was measured.
    """

    sampling_rate: float
    rounds: int
    noise_multiplier: float | None
    cohort: float
    epsilon_without_amplification: float | None
    noise_share: float | None
    round_bytes: float
    client_bytes: float
    round_seconds: float | None


@dataclass(frozen=True)
class AccuracyRange:
    """The best measured run that was no easier in any respect, and the worst no harder, if any."""

    at_least: MeasuredAccuracy | None
    at_most: MeasuredAccuracy | None

    @property
    def sentence(self) -> str:
        """The bounds in words."""
        if self.at_least is None and self.at_most is None:
            return "not known: nothing comparable was measured"
        if self.at_least is not None and self.at_least == self.at_most:
            m = self.at_least
            return (
                f"about {100 * m.median:.1f} % after {m.rounds} rounds ({100 * m.low:.1f} to "
                f"{100 * m.high:.1f} % in {m.runs} runs), measured with {_conditions(m)}"
            )
        parts = [
            f"at {bound} about {100 * m.median:.1f} % after {m.rounds} rounds, measured with "
            f"{_conditions(m)}"
            for bound, m in (("least", self.at_least), ("most", self.at_most))
            if m is not None
        ]
        other = "more" if self.at_most is None else "less" if self.at_least is None else ""
        return "; ".join([*parts, f"how much {other} is not known"] if other else parts)


def options(
    question: Question,
    *,
    rates: Sequence[float],
    rounds: Sequence[int],
    own: OwnModel | None = None,
) -> Iterator[Option]:
    """Work out every combination of sampling rate and number of rounds, one after another.

    ``own`` has the figures of a model that is not the app's.
    """
    size = own.message_bytes if own else message_bytes(question.model)
    for count in rounds:
        for rate in rates:
            cohort = rate * question.population
            try:
                z: float | None = calibrate_noise_multiplier(
                    sampling=Poisson(rate), rounds=count, budget=question.budget
                )
            except ValueError:
                z = None
            yield Option(
                sampling_rate=rate,
                rounds=count,
                noise_multiplier=z,
                cohort=cohort,
                epsilon_without_amplification=None
                if z is None
                else _without_amplification(z, count, question.budget.delta),
                noise_share=None if z is None else z / cohort,
                round_bytes=2 * size * cohort,
                client_bytes=2 * size * rate * count,
                round_seconds=_round_seconds(question.model, cohort, measured_rounds()),
            )


def options_in_turns(
    question: Question,
    *,
    rates: Sequence[float],
    rounds: Sequence[int],
    own: OwnModel | None = None,
) -> Iterator[Option]:
    """As :func:`options` with correlated noise, where each of b groups is asked in turn: q = 1/b.

    ``noise_share`` is that of independent noise which would leave as much in the models. What a
    client pays needs no secret, so that ε without amplification is ε.
    """
    size = own.message_bytes if own else message_bytes(question.model)
    momentum = own.server_momentum if own else RECIPES[question.model].server_momentum
    for count in rounds:
        for rate in rates:
            groups = CyclicGroups(round(1 / rate))
            turns, cohort = groups.participations(count), question.population / groups.groups
            try:
                z: float | None = calibrate_noise_multiplier(
                    sampling=Full(), rounds=turns, budget=question.budget
                )
            except ValueError:
                z = None
            left = relative_error(
                banded_coefficients(groups.groups, rounds=count, momentum=momentum),
                rounds=count,
                participation=MinSeparation(groups.groups),
                momentum=momentum,
            )
            yield Option(
                sampling_rate=rate,
                rounds=count,
                noise_multiplier=z,
                cohort=cohort,
                epsilon_without_amplification=None
                if z is None
                else _without_amplification(z, turns, question.budget.delta),
                noise_share=None if z is None else z * left / cohort,
                round_bytes=2 * size * cohort,
                client_bytes=2 * size * turns,
                round_seconds=_round_seconds(question.model, cohort, measured_rounds()),
            )


def expected_accuracy(
    question: Question, table: Sequence[MeasuredAccuracy] | None = None
) -> AccuracyRange:
    """Bound the accuracy by measured runs, without interpolation.

    More clients, more records a client, a larger ε and a larger δ never lower the best possible
    accuracy, so a measured run bounds all that are easier, or harder, in every respect.

    The default ``table`` is the packaged one.
    """
    rows = [
        m
        for m in (measured_accuracies() if table is None else table)
        if (m.dataset, m.model) == (question.dataset, question.model)
    ]
    no_easier = [m for m in rows if _sizes(m) <= _question_sizes(question)]
    no_harder = [m for m in rows if _sizes(m) >= _question_sizes(question)]
    return AccuracyRange(
        max(no_easier, key=lambda m: m.median, default=None),
        min(no_harder, key=lambda m: m.median, default=None),
    )


def _without_amplification(z: float, rounds: int, delta: float) -> float | None:
    spent = epsilon({GaussianRelease(z, Full()): rounds}, delta=delta)
    return spent if math.isfinite(spent) else None


def message_bytes(model: str) -> int:
    """The bytes of an app model's arrays as Flower carries them, without the envelope."""
    from flower_app.models.build import build_model  # PyTorch; most commands do without it

    return module_bytes(build_model(model))


def module_bytes(model: "nn.Module") -> int:
    """The bytes of a model's arrays as Flower carries them, without the envelope."""
    total = 0
    for tensor in model.state_dict().values():
        buffer = io.BytesIO()
        np.save(buffer, tensor.numpy(), allow_pickle=False)
        total += buffer.tell()
    return total


class _Sizes(tuple[float, ...]):
    """Compared in all respects at once, so that two may not be comparable."""

    def __le__(self, other: tuple[float, ...]) -> bool:
        return all(a <= b for a, b in zip(self, other, strict=True))

    def __ge__(self, other: tuple[float, ...]) -> bool:
        return all(a >= b for a, b in zip(self, other, strict=True))


def _sizes(m: MeasuredAccuracy) -> _Sizes:
    return _Sizes((m.clients, m.records, m.epsilon, m.delta))


def _question_sizes(question: Question) -> _Sizes:
    budget = question.budget
    return _Sizes((question.population, question.records, budget.epsilon, budget.delta))


def _conditions(m: MeasuredAccuracy) -> str:
    return (
        f"N = {m.clients:,}, {m.records} records each, ε = {m.epsilon:g}, δ = {m.delta:g}, "
        f"q = {m.sampling_rate:g}"
    )


def _round_seconds(model: str, cohort: float, table: Sequence[MeasuredRound]) -> float | None:
    rows = [m for m in table if m.model == model]
    if not rows:
        return None
    nearest = min(rows, key=lambda m: abs(math.log(m.cohort / cohort)))
    return nearest.seconds * max(1.0, cohort / nearest.cohort)
