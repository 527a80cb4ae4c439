"""Rényi differential privacy by Google's ``dp-accounting``, with its rounding paid for."""

import logging
import math
from collections.abc import Mapping
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting import rdp
from numpy.typing import NDArray

from .events import Adjacency, FixedSize, GaussianRelease, Poisson

_ORDERS: NDArray[np.float64] = np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)

_MOST_FIXED_SIZE_NOISE = 2.0**15


def renyi_epsilon(
    releases: Mapping[GaussianRelease, int], *, delta: float, adjacency: Adjacency
) -> float:
    """ε of Gaussian releases by Rényi accounting, the best of dp-accounting's orders.

    Parameters
    ----------
    releases : mapping of GaussianRelease to int
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
        total += times * _divergences(release, adjacency)
    return float(rdp.compute_epsilon(_ORDERS, total, delta)[0]) * (1 + 2.0**-40)


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
        accountant.compose(event)
    finally:
        logger.disabled = was_disabled
    divergences = np.asarray(accountant.rdp, dtype=np.float64)
    # The library sums terms in log space whose parts are as large as `parts`; a sum that comes
    # out at or below 0 would be read as "no loss at all".
    parts = _ORDERS * (4 + np.log(_ORDERS) + abs(math.log(rate))) + _ORDERS**2 / (2 * z * z)
    slack = 2.0**-48 * (_ORDERS + parts) / (_ORDERS - 1)
    return np.maximum(divergences, 0.0) + slack
