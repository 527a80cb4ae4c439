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

_CELLS = 2**17
_TILTS = np.array([sign * 2.0**k for sign in (-1, 1) for k in np.arange(-12, 12.5, 1.0)])
_UNIT = 2.0**-53
_FFT_CONSTANT = 8.0


@dataclass(frozen=True, eq=False)
class _Losses:
    """A discretised privacy loss: mass ``mass[i]`` at ``(lowest + i)·interval``, rest at ∞."""

    interval: float
    lowest: int
    mass: NDArray[np.float64]
    infinite: float
    log_moments: NDArray[np.float64]
    """log Σ mass·exp(tilt·loss) for every tilt of ``_TILTS``."""


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
        The larger ε of the two directions; infinite where δ is below what the arithmetic can
        resolve.
    """
    return max(
        _directed_epsilon(releases, delta, direction)
        for direction in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    )


def _directed_epsilon(
    releases: Mapping[Sampled, int], delta: float, direction: AdjacencyType
) -> float:
    # Each tail left outside the window is charged as infinite loss.
    tail = delta * 2.0**-24
    rough = [(_coarse(z, q, direction), n) for (z, q), n in releases.items()]
    interval = 2.0 ** math.floor(math.log2(_window(rough, tail)[2] / _CELLS))
    parts = [(_losses(z, q, direction, interval), n) for (z, q), n in releases.items()]
    low, high, _ = _window(parts, tail)
    first = math.floor(low / interval)
    cells = next_fast_len(
        max(math.ceil(high / interval) - first + 1, *(len(part.mass) for part, _ in parts)),
        real=True,
    )

    spectrum: NDArray[np.complex128] = np.ones(cells // 2 + 1, dtype=np.complex128)
    log_finite, shift, spread = 0.0, 0, 0.0
    for part, times in parts:
        spectrum *= _power(rfft(part.mass, cells), times)
        log_finite += times * math.log1p(-part.infinite)
        shift += times * part.lowest
        spread += times * float(np.linalg.norm(part.mass))
    mass = np.roll(irfft(spectrum, cells), (shift - first) % cells)
    releases_made = sum(releases.values())
    rounding = (
        _FFT_CONSTANT
        * _UNIT
        * math.sqrt(cells)
        * (math.log2(cells) * spread + (math.log2(cells) + releases_made) * np.linalg.norm(mass))
    )
    curves = 16 * _UNIT * releases_made
    infinite = -math.expm1(log_finite) + tail + float(rounding) + curves
    return _epsilon_of(np.maximum(mass, 0.0), first, interval, infinite, delta)


def _epsilon_of(
    mass: NDArray[np.float64], first: int, interval: float, infinite: float, delta: float
) -> float:
    """Solve δ(ε) = ``delta`` for the loss that is ``mass`` on the grid and else infinite."""
    if infinite >= delta:
        return math.inf
    if first <= 0:
        mass, first = mass[1 - first :], 1
    if len(mass) == 0:
        return 0.0
    # For ε just below loss k: δ(ε) = above[k] − exp(ε − loss k)·discounted[k].
    backwards = mass[::-1]
    step = math.exp(-interval)
    above = infinite + np.cumsum(backwards)[::-1]
    discounted = lfilter([1.0], [1.0, -step], backwards)[::-1]
    at_loss = above - discounted
    within = np.flatnonzero(at_loss <= delta)
    if len(within) == 0:
        return math.inf
    k = int(within[0])
    loss = (first + k) * interval
    if above[k] <= delta or discounted[k] <= 0:
        return 0.0 if k == 0 else loss
    epsilon = loss + math.log((above[k] - delta) / discounted[k])
    return max(0.0, min(loss, epsilon) * (1 + 2.0**-40))


def _power(spectrum: NDArray[np.complex128], times: int) -> NDArray[np.complex128]:
    if times == 1:
        return spectrum
    half = _power(spectrum, times // 2)
    return half * half * spectrum if times % 2 else half * half


def _window(parts: list[tuple[_Losses, int]], tail: float) -> tuple[float, float, float]:
    """Chernoff bounds: each side of (low, high) holds at most ``tail``; and their distance."""
    log_moments = sum(times * part.log_moments for part, times in parts)
    bounds = (log_moments + math.log(1 / tail)) / _TILTS
    reach_low = sum(times * part.lowest * part.interval for part, times in parts)
    reach_high = sum(
        times * (part.lowest + len(part.mass) - 1) * part.interval for part, times in parts
    )
    low = max(reach_low, float(bounds[_TILTS < 0].max()))
    high = min(reach_high, float(bounds[_TILTS > 0].min()))
    return low, high, high - low


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
    lowest = math.floor(bounds.epsilon_lower / interval)
    highest = max(math.ceil(bounds.epsilon_upper / interval), lowest + 2)
    grid = np.arange(lowest, highest + 1)
    deltas = np.asarray(mechanism.get_delta_for_epsilon(grid * interval), dtype=np.float64)
    deltas = np.minimum.accumulate(np.clip(deltas, 0.0, 1.0))
    falls = np.diff(deltas)
    growth = math.expm1(interval)
    mass = np.empty_like(deltas)
    mass[0] = 1 - deltas[0] + falls[0] / growth
    mass[1:-1] = (falls[1:] - falls[:-1] * math.exp(interval)) / growth
    mass[-1] = falls[-1] / math.expm1(-interval)
    np.maximum(mass, 0.0, out=mass)
    mass.setflags(write=False)
    return _Losses(interval, lowest, mass, float(deltas[-1]), _log_moments(mass, lowest, interval))


def _log_moments(mass: NDArray[np.float64], lowest: int, interval: float) -> NDArray[np.float64]:
    held = np.flatnonzero(mass)
    losses = (held + lowest) * interval
    logs = np.log(mass[held])
    moments = np.empty(len(_TILTS))
    for i, tilt in enumerate(_TILTS):
        exponents = logs + tilt * losses
        top = exponents.max()
        moments[i] = top + math.log(np.exp(exponents - top).sum())
    return moments


def _mechanism(z: float, q: float, direction: AdjacencyType) -> GaussianPrivacyLoss:
    return GaussianPrivacyLoss(z, sampling_prob=q, adjacency_type=direction)
