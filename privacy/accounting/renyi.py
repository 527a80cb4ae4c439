"""Rényi differential privacy by Google's ``dp-accounting``, with its rounding paid for."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting import rdp
from numpy.typing import NDArray

from privacy._logging import untouched_root_logger
from privacy.accounting.events import (
    Adjacency,
    DiscreteGaussianSum,
    FixedSize,
    GaussianRelease,
    Poisson,
    Release,
)
from privacy.accounting.gaussian import as_gaussian, distance_from_one

_ORDERS: NDArray[np.float64] = np.asarray(rdp.RdpAccountant().orders, dtype=np.float64)
# Places in ``_ORDERS``. Where another bound is known, they are tried in this order: divergences of
# small whole orders are short sums, those of other orders slow series.
_EVERY = np.arange(len(_ORDERS))
_WHOLE = np.flatnonzero(np.floor(_ORDERS) == _ORDERS)
_QUICK = np.flatnonzero(np.isin(_ORDERS, (_ORDERS.min(), 2, 4, 8, 16, 32)))
_IN_TURN = (_QUICK, np.setdiff1d(_WHOLE, _QUICK), np.setdiff1d(_EVERY, np.union1d(_WHOLE, _QUICK)))

_MOST_FIXED_SIZE_NOISE = 2.0**15


def renyi_epsilon(
    releases: Mapping[Release, int],
    *,
    delta: float,
    adjacency: Adjacency,
    below: float = math.inf,
) -> float:
    """ε of releases by Rényi accounting, the best of dp-accounting's orders.

    Parameters
    ----------
    releases : mapping of GaussianRelease or DiscreteGaussianSum to int
        How often each was made; every noise multiplier above 0.
    delta : float
        In (0, 1).
    adjacency : Adjacency
        Under replace-one the sensitivity is 2S, so the mechanism is given z/2.
    below : float, optional
        Another bound. Orders that cannot give less are left out, which is most of them.

    Returns
    -------
    float
        At most ``below``.
    """
    gaussians: Counter[GaussianRelease] = Counter()
    others = np.zeros_like(_ORDERS)
    for release, times in releases.items():
        if not isinstance(release, DiscreteGaussianSum):
            gaussians[release] += times
        elif isinstance(release.sampling, Poisson) and release.sampling.rate < 1:
            # By way of the nearby Gaussian: factors of e^η on P^α and on Q^(1−α), under a
            # logarithm over α − 1.
            near, apart = as_gaussian(release)
            gaussians[near] += times
            others += times * (2 * _ORDERS - 1) / (_ORDERS - 1) * apart
        else:
            others += times * _discrete_divergences(release, adjacency)

    known = np.full_like(_ORDERS, math.nan)
    floor = sum(n * _least_divergence(release, adjacency) for release, n in gaussians.items())
    best = below
    for orders in (_EVERY,) if math.isinf(below) else _IN_TURN:
        least = np.maximum(_least_divergences(known), floor) + others
        promising = [order for order in orders if _best([order], least[[order]], delta) < best]
        if promising:
            known[promising] = 0.0
            for release, times in gaussians.items():
                known[promising] += times * _divergences(release, adjacency, promising)
            best = min(best, _best(promising, known[promising] + others[promising], delta))
    return best


def _least_divergence(release: GaussianRelease, adjacency: Adjacency) -> float:
    """A lower bound of a release's divergence at every order: Pinsker's, of order 1.

    The slow orders near 1 are then seldom promising. 0 where the total variation is not at hand.
    """
    if adjacency is not Adjacency.ADD_OR_REMOVE_ONE or isinstance(release.sampling, FixedSize):
        return 0.0
    rate = float(release.sampling.rate) if isinstance(release.sampling, Poisson) else 1.0
    variation = rate * math.erf(1 / (math.sqrt(8) * float(release.noise_multiplier)))
    return 2 * variation**2 * (1 - 2.0**-40)


def _least_divergences(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower bounds at every order, rounding aside, from those that are known; the others are NaN.

    (α − 1)·D_α is convex in α (van Erven and Harremoës 2014, corollary 2), and 0 at α = 1: it lies
    above the line through two of its points on either side.
    """
    finite = np.flatnonzero(np.isfinite(known))
    x = np.concatenate([[1.0], _ORDERS[finite]])
    y = (x - 1) * np.concatenate([[0.0], known[finite]])
    slopes = np.concatenate([[0.0], np.diff(y) / np.diff(x), [0.0]])  # that before each point
    at = np.searchsorted(x, _ORDERS, side="right") - 1
    from_below = y[at] + slopes[at] * (_ORDERS - x[at])
    after = np.minimum(at + 1, len(x) - 1)
    from_above = y[after] - slopes[np.minimum(at + 2, len(x))] * (x[after] - _ORDERS)
    from_above[at + 2 >= len(x)] = 0.0
    least: NDArray[np.float64] = np.maximum(from_below, from_above) / (_ORDERS - 1) - 2.0**-40
    return np.maximum(least, 0.0)


def _best(orders: Sequence[int], divergences: NDArray[np.float64], delta: float) -> float:
    epsilon, _ = rdp.compute_epsilon(_ORDERS[orders], divergences, delta)
    return float(epsilon) * (1 + 2.0**-40)


def _discrete_divergences(
    release: DiscreteGaussianSum, adjacency: Adjacency
) -> NDArray[np.float64]:
    """Kairouz, Liu and Steinke 2021, proposition 14, for a sum over all clients."""
    z = release.noise_multiplier * (1 - 2.0**-48)
    if adjacency is Adjacency.REPLACE_ONE:
        z /= 2
    tau, d = distance_from_one(release), release.dimension
    squared = np.minimum(
        _ORDERS / (2 * z * z) + tau * d, _ORDERS / 2 * (1 / z + tau * math.sqrt(d)) ** 2
    )
    return squared * (1 + 2.0**-48)


def _divergences(
    release: GaussianRelease, adjacency: Adjacency, orders: Sequence[int]
) -> NDArray[np.float64]:
    """At the orders with these places in ``_ORDERS``."""
    known = _known_divergences(release, adjacency)
    missing = [order for order in orders if math.isnan(known[order])]
    if missing:
        known[missing] = _compute_divergences(release, adjacency, _ORDERS[missing])
    return known[orders]


@lru_cache(maxsize=256)
def _known_divergences(release: GaussianRelease, adjacency: Adjacency) -> NDArray[np.float64]:
    """Filled in as orders are asked for."""
    return np.full_like(_ORDERS, math.nan)


def _compute_divergences(
    release: GaussianRelease, adjacency: Adjacency, orders: NDArray[np.float64]
) -> NDArray[np.float64]:
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
    accountant = rdp.RdpAccountant(orders, relation)
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
    parts = orders * (4 + np.log(orders) + abs(math.log(rate))) + orders**2 / (2 * z * z)
    slack = 2.0**-48 * (orders + parts) / (orders - 1)
    return np.maximum(divergences, 0.0) + slack
