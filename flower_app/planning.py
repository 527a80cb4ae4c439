"""Costs and accuracy of a private run, before any training."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flower_app.measurements import (
    AccuracyRange,
    MeasuredAccuracy,
    MeasuredRound,
    Sizes,
    measured_accuracies,
    measured_rounds,
)
from flower_app.models.specs import MODELS, RECIPES
from privacy.accounting import (
    Budget,
    CyclicGroups,
    Event,
    Full,
    GaussianRelease,
    Poisson,
    calibrate_noise_multiplier,
    epsilon,
    without_amplification,
)
from privacy.correlated_noise import BLT, BandedMF, MinSeparation, relative_error

# Each of a model's arrays travels as an .npy file.
_HEADER_BYTES = 128
_ARRAYS = {"hog-linear": 1, "mlp": 4, "cnn": 6, "relu-cnn": 6}
RATES_IN_TURNS = (0.02, 0.05, 0.1, 0.2, 0.5)
SAMPLING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


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
    """A model of the user's: ``arrays``, ``parameters``, momentum, and S, None where it is open."""

    arrays: int
    parameters: int
    server_momentum: float
    clipping_norm: float | None

    @property
    def message_bytes(self) -> int:
        """The bytes of its arrays as Flower carries them, without the envelope."""
        return _HEADER_BYTES * self.arrays + 4 * self.parameters


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


def options(
    question: Question,
    *,
    rates: Sequence[float],
    rounds: Sequence[int],
    spent: Sequence[Event] = (),
    own: OwnModel | None = None,
) -> Iterator[Option]:
    """Work out every combination of sampling rate and number of rounds, one after another.

    ``spent`` is what the clients' ledger has, from the same budget; ``own`` has the figures of a
    model that is not the app's.
    """
    size = own.message_bytes if own else message_bytes(question.model)
    for count in rounds:
        for rate in rates:
            cohort = rate * question.population
            try:
                z: float | None = calibrate_noise_multiplier(
                    sampling=Poisson(rate), rounds=count, budget=question.budget, spent=spent
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
                else _without_amplification(z, count, question.budget.delta, spent),
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
    spent: Sequence[Event] = (),
    own: OwnModel | None = None,
    buffered: bool = False,
) -> Iterator[Option]:
    """As :func:`options` with correlated noise, where each of b groups is asked in turn: q = 1/b.

    Of b bands, or of a BLT's buffers.

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
                    sampling=Full(), rounds=turns, budget=question.budget, spent=spent
                )
            except ValueError:
                z = None
            mechanism = BLT() if buffered else BandedMF(groups.groups)
            factor = mechanism.factor(rounds=count, momentum=momentum, groups=groups.groups)
            left = relative_error(
                factor.coefficients,
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
                else _without_amplification(z, turns, question.budget.delta, spent),
                noise_share=None if z is None else z * left / cohort,
                round_bytes=2 * size * cohort,
                client_bytes=2 * size * turns,
                round_seconds=_round_seconds(question.model, cohort, measured_rounds()),
            )


def expected_accuracy(
    question: Question, table: Sequence[MeasuredAccuracy] | None = None
) -> AccuracyRange:
    """Bound the accuracy by measured runs; the default ``table`` is the packaged one."""
    rows = measured_accuracies() if table is None else table
    budget = question.budget
    sizes = Sizes((question.population, question.records, budget.epsilon, budget.delta))
    return AccuracyRange.of(
        sizes, (m for m in rows if (m.dataset, m.model) == (question.dataset, question.model))
    )


def _without_amplification(
    z: float, rounds: int, delta: float, spent: Sequence[Event]
) -> float | None:
    before = map(without_amplification, spent)
    total = epsilon([*before, *[GaussianRelease(z, Full())] * rounds], delta=delta)
    return total if math.isfinite(total) else None


def message_bytes(model: str) -> int:
    """The bytes of a model's arrays as Flower carries them, without the envelope."""
    return _HEADER_BYTES * _ARRAYS[model] + 4 * MODELS[model].parameters


def _round_seconds(model: str, cohort: float, table: Sequence[MeasuredRound]) -> float | None:
    rows = [m for m in table if m.model == model]
    if not rows:
        return None
    nearest = min(rows, key=lambda m: abs(math.log(m.cohort / cohort)))
    return nearest.seconds * max(1.0, cohort / nearest.cohort)
