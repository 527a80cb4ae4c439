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
_FEW_BANDS = 4
COMPARED = ("lattice", "amplified", "banded", "blt")
"""Mechanisms, those first whose cohorts must stay secret."""

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
        z / (q·N); where it is correlated, of independent noise that would leave as much in the
        models. Smaller is better.
    round_bytes : float
        Expected bytes that a round moves, to and from its cohort.
    client_bytes : float
        Expected bytes that one client moves in the whole run.
    round_seconds : float or None
        Scaled from a measured round, or None where none was measured.
    way : str
        Sampling and mechanism, as a strategy takes them.
    secret : bool
        Whether ε holds only while nobody learns who was drawn.
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
    way: str
    secret: bool


@dataclass(frozen=True)
class _Way:
    """What a mechanism asks of clients and leaves in the models.

    ``releases`` of a client, sampled so; ``left``, the share of the noise that stays.
    """

    words: str
    sampling: Poisson | Full
    releases: int
    left: float = 1.0


def options(
    question: Question,
    *,
    rates: Sequence[float],
    rounds: Sequence[int],
    spent: Sequence[Event] = (),
    own: OwnModel | None = None,
    mechanism: str = "lattice",
) -> Iterator[Option]:
    """Work out every combination of sampling rate and number of rounds, one after another.

    Parameters
    ----------
    spent : sequence of Event
        What the clients' ledger has, from the same budget.
    own : OwnModel, optional
        The figures of a model that is not the app's.
    mechanism : str
        ``lattice``: independent noise, Poisson cohorts. ``banded`` or ``blt``: correlated noise;
        each of 1/q groups is asked in turn, and what a client pays needs no secret, so that ε
        without amplification is ε. ``amplified``: a few bands, with cohorts that are drawn, in
        secret, within the groups.
    """
    size = own.message_bytes if own else message_bytes(question.model)
    momentum = own.server_momentum if own else RECIPES[question.model].server_momentum
    for count in rounds:
        for rate in rates:
            way = _way(mechanism, rate, count, momentum)
            in_turns = way.sampling == Full()
            cohort = question.population * (1 / round(1 / rate) if in_turns else rate)
            asked = way.releases if in_turns else rate * count
            try:
                z: float | None = calibrate_noise_multiplier(
                    sampling=way.sampling,
                    rounds=way.releases,
                    budget=question.budget,
                    spent=spent,
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
                else _without_amplification(z, way.releases, question.budget.delta, spent),
                noise_share=None if z is None else z * way.left / cohort,
                round_bytes=2 * size * cohort,
                client_bytes=2 * size * asked,
                round_seconds=_round_seconds(question.model, cohort, measured_rounds()),
                way=way.words,
                secret=isinstance(way.sampling, Poisson) and way.sampling.rate < 1,
            )


def _way(mechanism: str, rate: float, rounds: int, momentum: float) -> _Way:
    if mechanism == "lattice":
        return _Way(f"Poisson({rate:g}), LatticeGaussian()", Poisson(rate), rounds)
    groups = round(1 / rate)
    bands = min(_FEW_BANDS, groups) if mechanism == "amplified" else groups
    turns = CyclicGroups(bands, min(1.0, rate * bands) if mechanism == "amplified" else 1.0)
    noise = BLT() if mechanism == "blt" else BandedMF(bands)
    factor = noise.factor(rounds=rounds, momentum=momentum, groups=bands)
    left = relative_error(
        factor.coefficients,
        rounds=rounds,
        participation=MinSeparation(bands),
        momentum=momentum,
    )
    drawn = f"{bands}" if turns.rate == 1 else f"{bands}, {turns.rate:g}"
    named = "BLT()" if mechanism == "blt" else f"BandedMF({bands})"
    return _Way(f"CyclicGroups({drawn}), {named}", turns.within, turns.participations(rounds), left)


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
