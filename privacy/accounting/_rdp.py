"""Rényi differential privacy by Google's ``dp-accounting``, with its rounding paid for."""

import logging
import math
from collections.abc import Mapping
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting import rdp
from numpy.typing import NDArray

from privacy._logging import untouched_root_logger

from ._discrete import as_gaussian, distance_from_one
from .events import Adjacency, DiscreteGaussianSum, FixedSize, GaussianRelease, Poisson, Release

_ORDERS: NDArray[np.float64] = np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)

_MOST_FIXED_SIZE_NOISE = 2.0**15


def renyi_epsilon(releases: Mapping[Release, int], *, delta: float, adjacency: Adjacency) -> float:
    """ε of releases by Rényi accounting, the best of dp-accounting's orders.

    Parameters
    ----------
    releases : mapping of GaussianRelease or DiscreteGaussianSum to int
        How often each was made; every noise multiplier above 0.
    delta : float
        In (0, 1).
    adjacency : Adjacency
        Under replace-one the sensitivity is 2S, so the mechanism is given z/2.

    Returns
    -------
    float
    """
    total = np.zeros_like(_ORDERS)
    for release, times in releases.items():
        if isinstance(release, DiscreteGaussianSum):
            total += times * _discrete_divergences(release, adjacency)
        else:
            total += times * _divergences(release, adjacency)
    return float(rdp.compute_epsilon(_ORDERS, total, delta)[0]) * (1 + 2.0**-40)


def _discrete_divergences(
    release: DiscreteGaussianSum, adjacency: Adjacency
) -> NDArray[np.float64]:
    """Kairouz, Liu and Steinke 2021, proposition 14; sampled, by way of the nearby Gaussian."""
    if isinstance(release.sampling, Poisson) and release.sampling.rate < 1:
        near, apart = as_gaussian(release)
        # Factors of e^η on P^α and on Q^(1−α), under a logarithm over α − 1.
        return _divergences(near, adjacency) + (2 * _ORDERS - 1) / (_ORDERS - 1) * apart
    z = release.noise_multiplier * (1 - 2.0**-48)
    if adjacency is Adjacency.REPLACE_ONE:
        z /= 2
    tau, d = distance_from_one(release), release.dimension
    squared = np.minimum(
        _ORDERS / (2 * z * z) + tau * d, _ORDERS / 2 * (1 / z + tau * math.sqrt(d)) ** 2
    )
    return squared * (1 + 2.0**-48)


@lru_cache(maxsize=256)
def _divergences(release: GaussianRelease, adjacency: Adjacency) -> NDArray[np.float64]:
    z = float(release.noise_multiplier)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if adjacency is Adjacency.REPLACE_ONE:
        relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        z /= 2
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(z)
    rate = 1.0
    if isinstance(release.sampling, Poisson):
        rate = float(release.sampling.rate)
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    elif isinstance(release.sampling, FixedSize):
        rate = release.sampling.cohort / release.sampling.population
        # The library's bound fails for noise that is larger still; less noise costs no less.
        z = min(z, _MOST_FIXED_SIZE_NOISE)
        event = dp_accounting.GaussianDpEvent(z)
        event = dp_accounting.SampledWithoutReplacementDpEvent(
            int(release.sampling.population), int(release.sampling.cohort), event
        )
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    # It warns of every order whose series does not converge; such an order counts as ∞ and is
    # not chosen, which is nothing that a user could act upon.
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with untouched_root_logger():
            accountant.compose(event)
    finally:
        logger.disabled = was_disabled
    divergences = np.asarray(accountant.rdp, dtype=np.float64)
    # The library sums terms in log space whose parts are as large as `parts`; a sum that comes
    # out at or below 0 would be read as "no loss at all".
    parts = _ORDERS * (4 + np.log(_ORDERS) + abs(math.log(rate))) + _ORDERS**2 / (2 * z * z)
    slack = 2.0**-48 * (_ORDERS + parts) / (_ORDERS - 1)
    return np.maximum(divergences, 0.0) + slack
