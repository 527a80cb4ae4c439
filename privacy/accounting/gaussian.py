"""How near the sum of discrete Gaussians is to a Gaussian, and what the difference costs.

``docs/proofs.md``, section "Sums of discrete Gaussians", has the proofs.
"""

import math
from functools import lru_cache

import numpy as np

from privacy.accounting.events import DiscreteGaussianSum, GaussianRelease

_SMOOTHING = 4.0  # squared, in cells: costs a factor of 1 + 10⁻³³ a coordinate
OVERFLOW_DELTA = 2.0**-60  # at least 2⁻¹⁰⁰·(1 + e^ε), the overflow's share of δ …
LARGEST_EPSILON = 27.0  # … up to this ε
_TINY = 2.0**-1000  # what may have been lost to underflow


def as_gaussian(release: DiscreteGaussianSum) -> tuple[GaussianRelease, float]:
    """A Gaussian release that is no more private, but for a factor.

    Parameters
    ----------
    release : DiscreteGaussianSum

    Returns
    -------
    GaussianRelease
        With a little less noise.
    float
        η: at each point the probabilities of what is released, and those of a post-processing
        of the Gaussian release, are within a factor of e^η.
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
