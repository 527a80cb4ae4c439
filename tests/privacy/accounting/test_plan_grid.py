"""Every plan that has an answer gets one, and no ε is below the truth.

The truth is found another way: δ(ε) is a contour integral of the composed moment-generating
function (Alghamdi et al. 2022, "The saddle-point method in differential privacy"), whose
integrand is smooth where sums over a grid are not. Trapezoids over it converge exponentially.
"""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    Budget,
    Full,
    GaussianRelease,
    Poisson,
    calibrate_noise_multiplier,
    calibrate_rounds,
    calibrate_sampling_rate,
    epsilon,
    privacy_loss,
)

PLANS = list(
    itertools.product(
        (0.01, 0.1, 1.0, 8.0, 50.0),
        (1e-6, 1e-4, 0.01, 0.1, 0.5, 1.0),
        (1, 100, 10**4, 10**6),
        (1e-3, 1e-7, 1e-12),
    )
)


def losses(z: float, q: float, *, added: bool) -> tuple[npt.NDArray[np.float64], ...]:
    """Logarithms of quadrature weights, and the privacy losses there, of one release."""
    step = z / 40
    x = np.arange(-12 * z - 1, 13 * z + 2, step)
    loss = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * z * z))
    log_weights = -x * x / (2 * z * z) + math.log(step / (z * math.sqrt(2 * math.pi)))
    return (log_weights, -loss) if added else (log_weights + loss, loss)


def true_delta(z: float, q: float, rounds: int, eps: float, *, added: bool) -> float:
    """δ(ε) of ``rounds`` Poisson-sampled Gaussian releases, one client added or removed."""
    log_weights, loss = losses(z, q, added=added)

    def tilted(slope: float) -> tuple[float, npt.NDArray[np.float64]]:
        exponents = log_weights + slope * loss
        log_moment = float(np.logaddexp.reduce(exponents))
        return log_moment, np.exp(exponents - log_moment)

    # The contour runs through the saddle point, where the integrand is smallest on the axis.
    slopes = 2.0 ** np.arange(-6, 18, 0.25)
    heights = [rounds * tilted(s)[0] - eps * s - math.log(s * (s + 1)) for s in slopes]
    slope = float(slopes[int(np.argmin(heights))])
    log_moment, weights = tilted(slope)
    mean = float(weights @ loss)
    deviation = math.sqrt(rounds * float(weights @ (loss - mean) ** 2))
    widest = 2 * float(loss[weights > 1e-18].max())
    step = min(
        1 / (8 * deviation),
        2 * math.pi / (60 * deviation + abs(rounds * mean - eps) + widest),
    )
    total = 0.5 / (slope * (slope + 1))
    for first in range(1, 60_000, 256):
        along = step * np.arange(first, first + 256)
        s = slope + 1j * along
        one = np.exp(1j * np.outer(along, loss - mean)) @ weights
        values = one**rounds * np.exp(1j * along * (rounds * mean - eps)) / (s * (s + 1))
        total += float(values.real.sum())
        if np.abs(values).max() < 1e-13 * total:
            break
    return math.exp(rounds * log_moment - eps * slope) * step / math.pi * total


@pytest.mark.parametrize("added", [False, True])
def test_the_truth_is_that_of_the_closed_form(added: bool) -> None:
    z, rounds, eps = 20.0, 100, 1.5
    joint = z / math.sqrt(rounds)
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    exact = phi(0.5 / joint - eps * joint) - math.exp(eps) * phi(-0.5 / joint - eps * joint)
    assert true_delta(z, 1 - 1e-12, rounds, eps, added=added) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta", "sharpness"),
    [
        (1.2, 120 / 3383, 100, 1e-5, 1e-4),
        (1.0, 1e-4, 10**5, 1e-10, 3e-3),
        (1.0, 1e-5, 10**6, 1e-12, 1e-2),
        (0.8, 1e-5, 10**6, 1e-9, 2e-2),
        (0.9, 0.0017, 10**5, 1e-12, 1e-3),
    ],
)
def test_epsilon_is_never_below_the_truth_and_hardly_above(
    z: float, rate: float, rounds: int, delta: float, sharpness: float
) -> None:
    ours = epsilon({GaussianRelease(z, Poisson(rate)): rounds}, delta=delta)

    def true(eps: float) -> float:
        return max(true_delta(z, rate, rounds, eps, added=added) for added in (False, True))

    assert true(ours) <= delta * (1 + 1e-9)
    assert true(ours * (1 - sharpness)) > delta


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta"),
    [(0.3, 0.5, 3, 1e-5), (0.1, 0.9, 40, 1e-5), (2.0, 0.01, 500, 1e-5), (1.9, 2.8e-9, 1, 5e-8)],
)
def test_neither_direction_costs_more_than_what_is_stated(
    z: float, rate: float, rounds: int, delta: float
) -> None:
    """In the first two plans only one of them is computed; in the last the other costs more."""
    releases = {(z, rate): rounds}
    stated = privacy_loss.sampled_epsilon(releases, delta)
    for direction in privacy_loss.AdjacencyType.ADD, privacy_loss.AdjacencyType.REMOVE:
        assert privacy_loss._directed_epsilon(releases, delta, direction) <= stated


@settings(max_examples=6, deadline=None)
@given(plan=st.sampled_from(PLANS))
@example(plan=(3.0, 0.01, 3000, 1e-5))
@example(plan=(1.0, 1e-3, 30_000, 1e-10))
@example(plan=(0.01, 1.0, 10**6, 1e-12))
@example(plan=(50.0, 1e-6, 1, 1e-3))
def test_every_plan_has_its_noise(plan: tuple[float, float, int, float]) -> None:
    target, rate, rounds, delta = plan
    sampling = Full() if rate == 1 else Poisson(rate)

    def cost(multiplier: float) -> float:
        return epsilon({GaussianRelease(multiplier, sampling): rounds}, delta=delta)

    z = calibrate_noise_multiplier(sampling=sampling, rounds=rounds, budget=Budget(target, delta))
    assert cost(z) <= target
    # No less would do, but where whoever is drawn at all is an event rarer than δ.
    assert cost(z * (1 - 1e-3)) > target or rate * rounds <= delta


@pytest.mark.parametrize("rate", [1e-6, 0.3])
def test_rounds_and_rates_are_found_at_the_ends_of_the_scale(rate: float) -> None:
    target = 1.0
    budget = Budget(target, 1e-9)
    release = GaussianRelease(400.0, Poisson(rate))
    rounds = calibrate_rounds(
        noise_multiplier=400.0, sampling=release.sampling, budget=budget, accountant="rdp"
    )
    assert epsilon({release: rounds}, delta=1e-9) <= target
    found = calibrate_sampling_rate(noise_multiplier=400.0, rounds=100_000, budget=budget)
    assert epsilon({GaussianRelease(400.0, Poisson(found)): 100_000}, delta=1e-9) <= target


@pytest.mark.parametrize("z", [2.0**-60, 0.05, 2.0**60])
@pytest.mark.parametrize("rate", [1e-9, 0.3])
@pytest.mark.parametrize("rounds", [1, 2**40])
def test_no_release_is_beyond_accounting(z: float, rate: float, rounds: int) -> None:
    spent = epsilon({GaussianRelease(z, Poisson(rate)): rounds}, delta=1e-9)
    unsampled = epsilon({GaussianRelease(z, Full()): rounds}, delta=1e-9)
    assert 0 <= spent <= unsampled


EXTREMES = list(
    itertools.product(
        (0.1, 0.3, 1.0, 3.0),
        (1e-16, 1e-14, 1e-12, 1e-9, 1e-6, 0.5, 1 - 1e-12),
        (1, 7, 10**9, 10**17, 10**25, 10**36, 10**40, 10**45),
        (1e-5, 1e-12),
    )
)


@settings(max_examples=20)
@given(plan=st.sampled_from(EXTREMES))
@example(plan=(0.3, 1e-14, 10**40, 1e-5))
@example(plan=(0.3, 1e-14, 10**36, 1e-5))
@example(plan=(0.24, 1.84e-15, 6 * 10**17, 1e-12))
@example(plan=(0.06, 1 - 1e-14, 2, 1e-19))
@example(plan=(1.65, 2.43e-10, 61_358_512_380, 3.9e-11))
@example(plan=(0.045, 1.84e-18, 753_722_956_862_568, 1.2e-5))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_however_extreme_a_plan_its_work_is_bounded(plan: tuple[float, float, int, float]) -> None:
    """Counted in points at which δ(ε) is evaluated, and in cells that are transformed."""
    z, rate, rounds, delta = plan
    points, cells = [], []
    with pytest.MonkeyPatch.context() as spy:
        curve, transform = privacy_loss._curve, privacy_loss.irfft
        spy.setattr(privacy_loss, "_curve", lambda m, eps: points.append(len(eps)) or curve(m, eps))
        spy.setattr(privacy_loss, "irfft", lambda s, n: cells.append(n) or transform(s, n))
        spent = epsilon({GaussianRelease(z, Poisson(rate)): rounds}, delta=delta)
    assert sum(points) <= 2**23
    assert max(cells, default=0) <= 2**23
    assert 0 <= spent <= epsilon({GaussianRelease(z, Full()): rounds}, delta=delta)


def test_who_is_never_drawn_pays_nothing() -> None:
    events = {GaussianRelease(0.01, Poisson(1e-7)): 100}
    assert epsilon(events, delta=1.1e-5) == 0.0
    assert epsilon(events, delta=0.5e-5) > 10
