"""Numerical composition of privacy loss distributions, with its own rounding paid for.

The curves δ(ε) of one release come from Google's ``dp-accounting``. From there on:
``docs/explanation/proofs/composition.md``, section "Composition", says why every step errs upwards.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

Sampled = tuple[float, float]
"""One release as (noise multiplier, sampling rate), for sensitivity 1."""

_CELLS = 2**16
_MOST_CELLS = 2**19
_LARGEST_GRID = 2**23  # cells; a plan that asks for more was led by rounding, not by the losses
_NARROWEST, _WIDEST = 2.0**-30, 2.0**20  # losses beyond are left to bounds in closed form
_LARGEST_INTERVAL = 2.0**6  # exp of it stays small
_LARGEST_EXPONENT = 700.0  # exp of it is a double
_RARE = 2.0**-16  # share of δ
_SHARPNESS = 2.0**-12  # the grid's largest share in ε
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
    log_moments: dict[float, float] = field(default_factory=dict)
    """Those that were asked for, by slope."""

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

    Notes
    -----
    The losses of one release are on at most 2²³ cells, and so are composed ones: where more would
    be needed the answer is infinite, at once.
    """
    removed = _directed_epsilon(releases, delta, AdjacencyType.REMOVE)
    if removed >= _largest_added_loss(releases):
        return removed
    return max(removed, _directed_epsilon(releases, delta, AdjacencyType.ADD))


def _largest_added_loss(releases: Mapping[Sampled, int]) -> float:
    """ε at δ = 0 of adding one, rounded up: no loss of one release is above −log(1 − q)."""
    if any(q == 1 for _, q in releases):
        return math.inf
    return math.fsum(-n * math.log1p(-q) for (_, q), n in releases.items()) * (1 + 2.0**-40)


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
    planned = _planned(releases, direction, delta)
    if planned is None:
        return math.inf
    plan, parts = planned
    interval = plan.interval

    # Chernoff: at most `tail` of the composed mass lies above the window, and counts as ∞.
    tail = delta * _TAIL
    moment = sum(n * _log_moment(part, plan.top_slope) for part, n in parts)
    above = (moment + math.log(1 / tail)) / plan.top_slope
    high = min(max(plan.high, above), sum(n * float(part.losses[-1]) for part, n in parts))
    first = math.floor(plan.low / interval)
    needed = max(math.ceil(high / interval) - first + 1, *(len(part.mass) for part, _ in parts))
    if needed > _LARGEST_GRID:
        return math.inf
    cells = next_fast_len(needed, real=True)
    # Tilted by exp(tilt·loss) and normalised, the losses that decide ε are the likely ones, and
    # rounding is small beside them however small δ is.
    spectrum: NDArray[np.complex128] = np.ones(cells // 2 + 1, dtype=np.complex128)
    log_finite, log_scale, shift, inexact = 0.0, 0.0, 0, 0.0
    log_peak = 0.0
    log_modulus = np.zeros(cells // 2 + 1)
    errors = np.full(cells // 2 + 1, 4 * _UNIT * made)
    for part, times in parts:
        log_moment = _log_moment(part, plan.tilt)
        exponents = plan.tilt * part.losses
        if exponents[-1] - log_moment > _LARGEST_EXPONENT:
            return math.inf  # the mass there is smaller than doubles resolve
        tilted = part.mass * np.exp(exponents - log_moment)
        # Most of the mass is often in one cell. Where that is cell 0 its transform is a constant.
        peak = int(np.argmax(tilted))
        rest = np.zeros(cells)
        rest[: len(tilted)] = tilted
        rest[peak] = 0.0
        transform = tilted[peak] + rfft(np.roll(rest, -peak))
        log_peak += times * math.log(tilted[peak])
        log_finite += times * math.log1p(-part.infinite)
        log_scale += times * log_moment
        shift += times * (part.lowest + peak)
        inexact += times * (_CURVE_CONSTANT + 4 * float(np.abs(exponents[[0, -1]]).max()))
        total = float(tilted.sum()) * (1 + 2.0**-40)
        error = _UNIT * (_FFT_CONSTANT * math.log2(cells) * float(rest.sum()) + 2 * total)
        modulus = np.minimum(np.abs(transform) * (1 + 2.0**-40) + 2 * error, total)
        log_modulus += times * np.log(modulus)
        if log_modulus.max() > _LARGEST_EXPONENT:
            return math.inf  # so often released, the error of one is too large
        spectrum *= _power(transform, times)
        errors += times * error / modulus
    # What is known to lie in cell 0, however exactly, needs no inverse transform, which would round
    # by as much as a δ of 10⁻¹² where hardly anything else is there.
    known = math.exp(log_peak)
    mass = irfft(spectrum - known, cells)
    errors = errors * np.exp(log_modulus) + 4 * _UNIT
    rounding = _rounding(errors, mass, plan.tilt * interval)
    mass[0] += known
    mass = np.roll(mass, (shift - first) % cells)
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


def _rounding(errors: NDArray[np.float64], mass: NDArray[np.float64], slope: float) -> float:
    """How much rounding can add to, or hide from, the tilted mass above any loss.

    ``errors`` bounds that of each coefficient of the spectrum (the half that a real transform
    keeps); ``slope`` is the tilt times the interval. The larger of mass's own weights is 1.
    """
    cells = len(mass)
    with np.errstate(over="ignore"):
        total = math.sqrt(2 * float(np.sum(np.square(errors))))
    each = 2 * float(np.sum(errors)) / cells
    inverse = _FFT_CONSTANT * _UNIT * math.log2(cells) * math.sqrt(cells) * _norm(mass)
    return (min(total, each / -math.expm1(-slope)) + inverse) * (1 + 2.0**-10)


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
        errors = rounding * np.exp(log_scale - tilt * (losses - interval))
        above = errors + (1 + inflation) * (infinite + np.cumsum(backwards)[::-1])
        discounted = lfilter([1.0], [1.0, -math.exp(-interval)], backwards)[::-1]
        within = np.flatnonzero(above - (1 - inflation) * discounted <= delta)
    if len(within) == 0:
        return math.inf
    k = int(within[0])
    # Between the loss below and this one ε = loss k + log((above[k] − δ)/discounted[k]).
    lowered = (1 - inflation) * float(discounted[k])
    below = float(above[k]) - delta
    inside = 1.0
    if below < lowered:
        inside = max(math.exp(-interval), below / lowered if below > 0 else 0.0)
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
    bound: float


def _planned(
    releases: Mapping[Sampled, int], direction: AdjacencyType, delta: float
) -> tuple[_Plan, _Parts] | None:
    """A plan and the losses on its grid, finer where the grid would show in ε.

    None where doubles cannot tell the losses from 0, or hold their weights.
    """
    # A loss so rare counts as ∞. Left where it is, it would draw the tilt towards itself.
    rare = delta * _RARE / 2.0 ** math.ceil(math.log2(sum(releases.values())))
    for z, q in releases:
        bounds = _mechanism(z, q, direction).connect_dots_bounds()
        if not _NARROWEST < bounds.epsilon_upper - bounds.epsilon_lower < _WIDEST:
            return None
    rough = [(_coarse(z, q, direction, rare), n) for (z, q), n in releases.items()]
    tops = [float(part.losses[-1]) for part, _ in rough]
    plan = _plan(rough, delta)

    def losses(interval: float, cells: int) -> _Parts:
        connect = _losses if cells <= 2 * _CELLS else _fine_losses
        return [
            (connect(z, q, direction, interval, -2 * cells, top), n)
            for ((z, q), n), top in zip(releases.items(), tops, strict=True)
        ]

    def excess(plan: _Plan, parts: _Parts, cells: int) -> float:
        # Connecting the dots raises the log-moment by about the square of the interval. Twice
        # the interval tells how much; divided by the tilt that is what it adds to ε.
        raised = sum(
            n * (_log_moment(wide, plan.tilt) - _log_moment(part, plan.tilt))
            for (part, n), (wide, _) in zip(
                parts, losses(2 * plan.interval, cells // 2), strict=True
            )
        )
        return raised / (3 * plan.tilt * plan.bound * _SHARPNESS)

    if plan is None:
        return None
    cells = _CELLS
    parts = losses(plan.interval, cells)
    before, now = math.inf, excess(plan, parts, cells)
    if now > 1:
        # The rough losses led the plan astray as well.
        plan = _plan(parts, delta)
        if plan is None:
            return None
        parts = losses(plan.interval, cells)
        now = excess(plan, parts, cells)
    while 1 < now < before / 2 and cells < _MOST_CELLS:
        finer = min(2 ** max(1, math.ceil(math.log2(now) / 2)), _MOST_CELLS // cells)
        if finer * max(tops) > plan.interval * _LARGEST_GRID:
            break
        cells *= finer
        plan = replace(plan, interval=plan.interval / finer)
        parts = losses(plan.interval, cells)
        before, now = now, excess(plan, parts, cells) if cells < _MOST_CELLS else 0.0
    return plan, parts


def _variance(rough: _Parts) -> float:
    variance = 0.0
    for part, times in rough:
        mean = float(np.sum(part.mass * part.losses))
        variance += times * float(np.sum(part.mass * (part.losses - mean) ** 2))
    return variance


def _plan(rough: _Parts, delta: float) -> _Plan | None:
    """Choose tilt, window and grid from Chernoff bounds on coarse losses.

    The tilt is one whose mean loss is near ε and not above it. Mass outside of the window comes
    back at its other end, counted once too often: next to nothing of the tilted mass does.
    """
    variance = _variance(rough)
    if not 0 < variance < math.inf:
        return None
    slopes = _slopes(rough, variance)
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
    if not high > low:  # losses so large that doubles hold nothing between them
        return None
    interval = 2.0 ** math.floor(math.log2((high - low) / _CELLS))
    widest = max(float(part.losses[-1]) for part, _ in rough)
    if not widest / _LARGEST_GRID <= interval < _LARGEST_INTERVAL:
        return None
    return _Plan(float(slopes[tilt]), float(slopes[top]), low, high, interval, float(bound))


def _slopes(rough: _Parts, variance: float) -> NDArray[np.float64]:
    """Slopes that suit the problem, negative ones and finer positive ones, ascending.

    From well below one over the widest loss to well above one over the composed deviation.
    """
    widest = max(float(np.abs(part.losses[[0, -1]]).max()) for part, _ in rough)
    least = math.floor(math.log2(1 / widest)) - 2
    most = max(math.ceil(math.log2(1 / math.sqrt(variance))) + 6, least + 8)
    upwards = 2.0 ** (np.arange(2 * least, 2 * most + 1) / 2)
    return np.concatenate([-(2.0 ** np.arange(float(most), least, -2)), upwards])


@lru_cache(maxsize=128)
def _coarse(z: float, q: float, direction: AdjacencyType, rare: float) -> _Losses:
    """The losses on 4,096 cells or so, but for those whose probability is below ``rare``."""
    bounds = _mechanism(z, q, direction).connect_dots_bounds()
    width = bounds.epsilon_upper - bounds.epsilon_lower
    part = _losses(z, q, direction, 2.0 ** math.floor(math.log2(width / 4096)))
    beyond = part.infinite + np.cumsum(part.mass[::-1])[::-1]
    end = max(1 - part.lowest + 1, int(np.searchsorted(-beyond, -rare)))
    if end >= len(part.mass):
        return part
    return _Losses(part.interval, part.lowest, part.mass[:end], float(beyond[end]))


def _connect_dots(
    z: float,
    q: float,
    direction: AdjacencyType,
    interval: float,
    foot: int = -2 * _CELLS,
    top: float = math.inf,
) -> _Losses:
    """Connect the dots (Doroshenko et al. 2022, algorithm 1): a loss that dominates.

    Losses below ``foot`` steps of the interval are put there, those above ``top`` at ∞.
    """
    mechanism = _mechanism(z, q, direction)
    bounds = mechanism.connect_dots_bounds()
    # Losses far below the window may as well lie at its foot: that only raises them.
    lowest = min(max(math.floor(bounds.epsilon_lower / interval), foot), -1)
    highest = max(math.ceil(min(bounds.epsilon_upper, top) / interval), 1)
    growth = math.expm1(interval)

    def masses(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Second differences of a curve from its first, raised by the rounding."""
        before, after = steps[:-1] * math.exp(interval), steps[1:]
        rounded = 16 * _UNIT * (np.abs(before) + np.abs(after))
        return (np.maximum(after - before, 0.0) + rounded) / growth

    # At losses above 0 from δ(ε); at the others from δ(ε) − (1 − e^ε), which gives the same
    # masses and is e^ε times the curve of the opposite direction at −ε: small where δ is near 1.
    grid = np.arange(highest + 1) * interval
    deltas = _curve(mechanism, grid)
    falls = np.diff(deltas)
    positive = np.append(masses(falls), falls[-1] / math.expm1(-interval) * (1 + 2.0**-49))
    opposite = AdjacencyType.ADD if direction is AdjacencyType.REMOVE else AdjacencyType.REMOVE
    grid = np.arange(lowest, 2) * interval
    # One point above 0 is needed there, where the curve of the opposite direction has none.
    mirrored = np.append(
        _curve(_mechanism(z, q, opposite), -grid[:-1][::-1])[::-1] * np.exp(grid[:-1]),
        deltas[1] + growth,
    )
    rises = np.diff(mirrored)
    foot = rises[0] / growth * (1 + 2.0**-49) - mirrored[0] * (1 - 2.0**-49)
    mass = np.concatenate([[max(foot, 0.0)], masses(rises), positive])
    mass.setflags(write=False)
    return _Losses(interval, lowest, mass, float(deltas[-1]))


_losses = lru_cache(maxsize=64)(_connect_dots)
_fine_losses = lru_cache(maxsize=4)(_connect_dots)  # tens of megabytes each


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


def _log_moment(part: _Losses, slope: float) -> float:
    """Logarithm of Σ mass·exp(slope·loss)."""
    if slope not in part.log_moments:
        positive = part.mass > 0
        exponents = np.log(part.mass[positive]) + slope * part.losses[positive]
        top = float(exponents.max())
        part.log_moments[slope] = top + math.log(float(np.exp(exponents - top).sum()))
    return part.log_moments[slope]


@lru_cache(maxsize=256)  # scipy takes milliseconds to make its two distributions
def _mechanism(z: float, q: float, direction: AdjacencyType) -> GaussianPrivacyLoss:
    return GaussianPrivacyLoss(z, sampling_prob=q, adjacency_type=direction)
