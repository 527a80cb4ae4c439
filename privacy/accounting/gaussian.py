"""Gaussian releases without sampling in closed form, and sums of discrete Gaussians as Gaussians.

``docs/explanation/proofs/distributed-noise.md``, section "Sums of discrete Gaussians", has the
proofs of the second.
"""

import math
from functools import lru_cache

import numpy as np

from privacy.accounting.events import DiscreteGaussianSum, GaussianRelease

_SMOOTHING = 4.0  # squared, in cells: costs a factor of 1 + 10⁻³³ a coordinate
OVERFLOW_DELTA = 2.0**-60  # at least 2⁻¹⁰⁰·(1 + e^ε), the overflow's share of δ …
LARGEST_EPSILON = 27.0  # … up to this ε
_TINY = 2.0**-1000  # a bound of losses to underflow


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The smallest δ at which one Gaussian release is (ε, δ)-private, never under-stated.

    Balle and Wang 2018 (arXiv 1805.06530), theorem 8, for sensitivity 1 and σ = z:
    δ(ε) = Φ(1/2z − εz) − e^ε·Φ(−1/2z − εz).

    For z > 0 and ε ≥ 0, with an allowance for rounding.
    """
    from scipy.special import log_ndtr

    z = noise_multiplier
    near = math.exp(float(log_ndtr(0.5 / z - epsilon * z)))
    far = math.exp(min(0.0, epsilon + float(log_ndtr(-0.5 / z - epsilon * z))))
    # log_ndtr is good to a few units in the last place of its argument's square.
    slack = 2.0**-48 * (1 + (0.5 / z - epsilon * z) ** 2 + (0.5 / z + epsilon * z) ** 2)
    return min(1.0, max(0.0, near - far) + slack * (near + far))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The smallest ε at which one Gaussian release is (ε, δ)-private, rounded up.

    For z > 0 and δ in (0, 1); infinite only where ε exceeds every double. An infinite z is that of
    no release.
    """
    if noise_multiplier == math.inf or gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, 2 * high
        if not math.isfinite(high):
            return math.inf
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if gaussian_delta(noise_multiplier, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def as_gaussian(release: DiscreteGaussianSum) -> tuple[GaussianRelease, float]:
    """A Gaussian release that is no more private, but for a factor.

    Returns
    -------
    GaussianRelease
        With a little less noise.
    float
        η: at each point the probabilities of the sum, and those of a post-processing of the
        Gaussian release, are within a factor of e^η.
    """
    total = release.shares * release.variance
    smoothing = min(_SMOOTHING, total / 4)
    z = math.sqrt(total - smoothing) / release.sensitivity * (1 - 2.0**-48)
    theta = 2 * _series(smoothing)
    if theta >= 0.5:
        return GaussianRelease(z, release.sampling), math.inf
    smoothed = math.log1p(2 * theta / (1 - theta))
    apart = release.dimension * (distance_from_one(release) / 2 + smoothed)
    return GaussianRelease(z, release.sampling), apart * (1 + 2.0**-40) + _TINY


@lru_cache(maxsize=256)
def distance_from_one(release: DiscreteGaussianSum) -> float:
    """τ = 10·Σ_{k<n} exp(−2π²σ²k/(k+1)) of n shares: twice a coordinate's distance from one.

    Kairouz, Liu and Steinke 2021 (arXiv 2102.06387), proposition 14: at each point the
    probabilities of the sum of n discrete Gaussians N_Z(0, σ²), and of N_Z(0, nσ²), are within
    a factor of e^(τ/2). Rounded up.
    """
    k = np.arange(1, release.shares, dtype=np.float64)
    exponents = -2 * math.pi**2 * release.variance * (k / (k + 1)) * (1 - 2.0**-48)
    return 10 * float(np.exp(exponents).sum()) * (1 + 2.0**-20) + _TINY


def _series(variance: float) -> float:
    """Σ_{m≥1} exp(−2π²·variance·m²), rounded up; bounded by a geometric series."""
    first = math.exp(-2 * math.pi**2 * variance * (1 - 2.0**-48))
    return first / (1 - first**3) * (1 + 2.0**-40)
