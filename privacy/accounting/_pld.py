"""Numerical composition of privacy loss distributions, with its own rounding paid for.

The curves δ(ε) of one release come from Google's ``dp-accounting``. From there on:
``docs/proofs.md``, section "Composition", says why every step errs upwards.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

Sampled = tuple[float, float]
"""One release as (noise multiplier, sampling rate), for sensitivity 1."""

_CELLS = 2**16
_UNIT = 2.0**-53
_FFT_CONSTANT = 8.0
_TAIL = 2.0**-24
_CURVE_CONSTANT = 1024.0


@dataclass(frozen=True, eq=False)
class _Losses:
    """A discretised privacy loss: mass ``mass[i]`` at ``(lowest + i)·interval``, rest at ∞."""

    interval: float
    lowest: int
    mass: NDArray[np.float64]
    infinite: float

    @property
    def losses(self) -> NDArray[np.float64]:
        """The grid, ascending."""
        steps = np.arange(self.lowest, self.lowest + len(self.mass), dtype=np.float64)
        return steps * self.interval


_Parts = list[tuple[_Losses, int]]


def sampled_epsilon(releases: Mapping[Sampled, int], delta: float) -> float:
    """ε of Poisson-sampled Gaussian releases, add or remove one, never under-stated.

    Parameters
    ----------
    releases : mapping of (float, float) to int
        How often each (z, q) was released, with z > 0 and 0 < q ≤ 1.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        The larger ε of the two directions; infinite where the arithmetic cannot resolve δ.
    """
    return max(
        _directed_epsilon(releases, delta, direction)
        for direction in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    )


def _norm(values: NDArray[np.float64]) -> float:
    """The L2 norm, without BLAS.

    OpenBLAS ends its threads when a process forks, and an operation that another thread has under
    way then waits for them for ever; Flower's simulation starts Ray while its ServerApp runs.
    """
    return math.sqrt(float(np.sum(np.square(values))))


def _directed_epsilon(
    releases: Mapping[Sampled, int], delta: float, direction: AdjacencyType
) -> float:
    made = sum(releases.values())
    plan = _plan([(_coarse(z, q, direction), n) for (z, q), n in releases.items()], delta)
    interval = plan.interval
    parts = [(_losses(z, q, direction, interval), n) for (z, q), n in releases.items()]

    # Chernoff: at most `tail` of the composed mass lies above the window, and counts as ∞.
    tail = delta * _TAIL
    moment = sum(n * _log_moment(part, plan.top_slope) for part, n in parts)
    above = (moment + math.log(1 / tail)) / plan.top_slope
    high = min(max(plan.high, above), sum(n * float(part.losses[-1]) for part, n in parts))
    first = math.floor(plan.low / interval)
    cells = next_fast_len(
        max(math.ceil(high / interval) - first + 1, *(len(part.mass) for part, _ in parts)),
        real=True,
    )
    # Tilted by exp(tilt·loss) and normalised, the losses that decide ε are the likely ones, and
    # rounding is small beside them however small δ is.
    spectrum: NDArray[np.complex128] = np.ones(cells // 2 + 1, dtype=np.complex128)
    log_finite, log_scale, shift, spread, inexact = 0.0, 0.0, 0, 0.0, 0.0
    for part, times in parts:
        log_moment = _log_moment(part, plan.tilt)
        tilted = part.mass * np.exp(plan.tilt * part.losses - log_moment)
        spectrum *= _power(rfft(tilted, cells), times)
        log_finite += times * math.log1p(-part.infinite)
        log_scale += times * log_moment
        shift += times * part.lowest
        spread += times * _norm(tilted)
        inexact += times * (_CURVE_CONSTANT + 8.0 * len(part.mass))
    mass = np.roll(irfft(spectrum, cells), (shift - first) % cells)
    rounding = (
        _FFT_CONSTANT
        * _UNIT
        * math.sqrt(cells)
        * (math.log2(cells) * spread + (math.log2(cells) + made) * _norm(mass))
    )
    return _solve(
        np.maximum(mass, 0.0),
        first=first,
        interval=interval,
        tilt=plan.tilt,
        log_scale=log_scale,
        rounding=rounding,
        infinite=-math.expm1(log_finite) + tail,
        inflation=2.0**-30 + _UNIT * inexact,
        delta=delta,
    )


def _solve(
    mass: NDArray[np.float64],
    *,
    first: int,
    interval: float,
    tilt: float,
    log_scale: float,
    rounding: float,
    infinite: float,
    inflation: float,
    delta: float,
) -> float:
    """Solve δ(ε) = ``delta`` for the loss that is tilted ``mass`` on the grid and else ∞."""
    if infinite >= delta:
        return math.inf
    if first <= 0:
        mass, first = mass[1 - first :], 1
    if len(mass) == 0:
        return 0.0
    losses = np.arange(first, first + len(mass)) * interval
    # Losses far below ε may weigh more than a double holds; an infinite δ there is no harm.
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(log_scale - tilt * losses)
        backwards = (mass * weights)[::-1]
        # For ε in (loss k − interval, loss k]: δ(ε) ≤ above[k] − exp(ε − loss k)·discounted[k].
        errors = rounding * weights * math.exp(tilt * interval)
        above = errors + (1 + inflation) * (infinite + np.cumsum(backwards)[::-1])
        discounted = lfilter([1.0], [1.0, -math.exp(-interval)], backwards)[::-1]
        within = np.flatnonzero(above - (1 - inflation) * discounted <= delta)
    if len(within) == 0:
        return math.inf
    k = int(within[0])
    # Between the loss below and this one ε = loss k + log((above[k] − δ)/discounted[k]).
    lowered = (1 - inflation) * float(discounted[k])
    below = float(above[k]) - delta
    inside = max(math.exp(-interval), min(1.0, below / lowered)) if below < lowered else 1.0
    return max(0.0, (float(losses[k]) + math.log(inside)) * (1 + 2.0**-40))


def _power(spectrum: NDArray[np.complex128], times: int) -> NDArray[np.complex128]:
    if times == 1:
        return spectrum
    half = _power(spectrum, times // 2)
    return half * half * spectrum if times % 2 else half * half


@dataclass(frozen=True)
class _Plan:
    """How to compose: only the sharpness of ε depends on it, not whether it is a bound."""

    tilt: float
    top_slope: float
    low: float
    high: float
    interval: float


def _plan(rough: _Parts, delta: float) -> _Plan:
    """Choose tilt, window and grid from Chernoff bounds on coarse losses.

    The tilt is one whose mean loss is near ε and not above it. Mass outside of the window comes
    back at its other end, counted once too often: next to nothing of the tilted mass does.
    """
    slopes = _slopes(rough)
    moments = np.array([sum(n * _log_moment(part, slope) for part, n in rough) for slope in slopes])
    positive = np.flatnonzero(slopes > 0)
    bound = ((moments + math.log(1 / delta)) / slopes)[positive].min()
    # Moments are convex in the slope: the chord to the next one is steeper than the mean loss.
    means = np.append(np.diff(moments) / np.diff(slopes), math.inf)
    fitting = positive[means[positive] <= bound]
    tilt = int(fitting[-1] if len(fitting) else positive[0])

    need = math.log(1 / (delta * _TAIL))
    tops = (moments + need) / slopes
    top = int(positive[np.argmin(tops[positive])])
    with np.errstate(divide="ignore"):
        tilted = (moments - moments[tilt] + need) / (slopes - slopes[tilt])
    lowest = sum(n * float(part.losses[0]) for part, n in rough)
    highest = sum(n * float(part.losses[-1]) for part, n in rough)
    low = max(lowest, float(tilted[slopes < slopes[tilt]].max()))
    high = max(float(tops[top]), float(tilted[slopes > slopes[tilt]].min(initial=math.inf)))
    high = max(min(highest, high), low + rough[0][0].interval)
    interval = 2.0 ** math.floor(math.log2((high - low) / _CELLS))
    return _Plan(float(slopes[tilt]), float(slopes[top]), low, high, interval)


def _slopes(rough: _Parts) -> NDArray[np.float64]:
    """Slopes that suit the problem, negative ones and finer positive ones, ascending.

    From well below one over the widest loss to well above one over the composed deviation.
    """
    variance = 0.0
    for part, times in rough:
        mean = float(np.sum(part.mass * part.losses))
        variance += times * float(np.sum(part.mass * (part.losses - mean) ** 2))
    widest = max(float(np.abs(part.losses[[0, -1]]).max()) for part, _ in rough)
    least = math.floor(math.log2(1 / widest)) - 2
    most = max(math.ceil(math.log2(1 / math.sqrt(variance))) + 6, least + 8)
    upwards = 2.0 ** (np.arange(2 * least, 2 * most + 1) / 2)
    return np.concatenate([-(2.0 ** np.arange(float(most), least, -2)), upwards])


@lru_cache(maxsize=128)
def _coarse(z: float, q: float, direction: AdjacencyType) -> _Losses:
    bounds = _mechanism(z, q, direction).connect_dots_bounds()
    width = bounds.epsilon_upper - bounds.epsilon_lower
    return _losses(z, q, direction, 2.0 ** math.floor(math.log2(width / 4096)))


@lru_cache(maxsize=64)
def _losses(z: float, q: float, direction: AdjacencyType, interval: float) -> _Losses:
    """Connect the dots (Doroshenko et al. 2022, algorithm 1): a loss that dominates."""
    mechanism = _mechanism(z, q, direction)
    bounds = mechanism.connect_dots_bounds()
    # Losses far below the window may as well lie at its foot: that only raises them.
    lowest = min(max(math.floor(bounds.epsilon_lower / interval), -4 * _CELLS), -1)
    highest = max(math.ceil(bounds.epsilon_upper / interval), 1)
    growth = math.expm1(interval)

    # At losses above 0 from δ(ε); at the others from δ(ε) − (1 − e^ε), which gives the same
    # masses and is e^ε times the curve of the opposite direction at −ε: small where δ is near 1.
    grid = np.arange(highest + 1) * interval
    deltas = _curve(mechanism, grid)
    falls = np.diff(deltas)
    positive = np.append(
        (falls[1:] - falls[:-1] * math.exp(interval)) / growth,
        falls[-1] / math.expm1(-interval),
    )
    opposite = AdjacencyType.ADD if direction is AdjacencyType.REMOVE else AdjacencyType.REMOVE
    grid = np.arange(lowest, 2) * interval
    # One point above 0 is needed there, where the curve of the opposite direction has none.
    mirrored = np.append(
        _curve(_mechanism(z, q, opposite), -grid[:-1][::-1])[::-1] * np.exp(grid[:-1]),
        deltas[1] + growth,
    )
    rises = np.diff(mirrored)
    negative = np.insert(
        (rises[1:] - rises[:-1] * math.exp(interval)) / growth, 0, rises[0] / growth - mirrored[0]
    )
    mass = np.maximum(np.concatenate([negative, positive]), 0.0)
    mass.setflags(write=False)
    return _Losses(interval, lowest, mass, float(deltas[-1]))


def _curve(mechanism: GaussianPrivacyLoss, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """δ at each ε ≥ 0, never rising, from dp-accounting's distribution functions.

    δ(ε) = P(X ≤ x) − e^ε·Q(X ≤ x) where the loss is above ε for X < x. dp-accounting's own
    method finds the points x one by one.
    """
    q, variance = mechanism.sampling_prob, mechanism.standard_deviation**2
    removes = mechanism.adjacency_type is AdjacencyType.REMOVE
    side = 1.0 if removes else -1.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # The loss without sampling where the loss with it is ε.
        plain = side * np.log1p(np.expm1(side * epsilons) / q)
        if removes:
            large = epsilons - math.log(q) + np.log1p(-(1 - q) * np.exp(-epsilons))
            plain = np.where(epsilons > 1, large, plain)
        if q == 1:
            plain = epsilons
        points = -0.5 * side - plain * variance
        deltas = mechanism.mu_upper_cdf(points) - np.exp(
            epsilons + mechanism.mu_lower_log_cdf(points)
        )
    # An ADD loss is nowhere above −log(1 − q).
    deltas = np.where(np.isfinite(deltas), deltas, 0.0)
    return np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))


@lru_cache(maxsize=4096)
def _log_moment(part: _Losses, slope: float) -> float:
    """Logarithm of Σ mass·exp(slope·loss)."""
    held = part.mass > 0
    exponents = np.log(part.mass[held]) + slope * part.losses[held]
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).sum()))


def _mechanism(z: float, q: float, direction: AdjacencyType) -> GaussianPrivacyLoss:
    return GaussianPrivacyLoss(z, sampling_prob=q, adjacency_type=direction)
