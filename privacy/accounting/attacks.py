"""ε in other terms: as the μ of Gaussian differential privacy, and as an attack's success.

Both are read off the whole curve δ(ε) that :func:`privacy.accounting.epsilon` computes, so they
hold for whatever that can account, and are as exact.
"""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from privacy import arguments
from privacy.accounting.composition import Accountant, Events, count_events, epsilon
from privacy.accounting.events import Adjacency, Event

_LARGEST_DELTA = 0.999  # the curve is followed up to here: more δ is no promise
_STEP = 0.45  # at most, between its points, in the logarithm of δ / (1 - δ)
_BETWEEN = 64  # at which a chord is compared with a Gaussian's curve
_LARGEST_MU = 2.0**10


def gaussian_dp(
    events: Events,
    *,
    delta: float,
    accountant: Accountant | None = None,
    adjacency: Adjacency | None = None,
) -> float:
    """The μ of a Gaussian mechanism that is no more private than all the events together.

    Parameters
    ----------
    events, accountant, adjacency
        As in :func:`epsilon`.
    delta : float
        The smallest δ at which the two are compared, in (0, 1).

    Returns
    -------
    float
        μ, at least 0: at every δ′ from ``delta`` to 0.999, and at ``delta`` where that is larger,
        the ε of one release of N(μ, 1) against N(0, 1) is at least that of the events. Infinite
        where ε is at ``delta``.

    Notes
    -----
    Dong, Roth and Su (arXiv 1905.02383) define μ-GDP by the trade-off of all tests, without a
    smallest δ. A sampled Gaussian has the tails of the unsampled one, so that its μ in their sense
    is next to that without amplification; events rarer than ``delta`` are left out here, as
    they are in (ε, δ). Without sampling both are the same: √(Σ 1/z²).

    **Guarantee.** Never under-stated: between the computed points, δ(ε) lies below its chord in
    e^ε, and the Gaussian's curve is compared with the chord.

    **Assumptions.** Those of :func:`epsilon`.

    **Not covered.** As :func:`epsilon`, and δ′ below ``delta``.
    """
    curve = privacy_curve(events, delta=delta, accountant=accountant, adjacency=adjacency)
    if math.isinf(curve[0][0]):
        return math.inf
    mu = 0.0
    for (high, least), (low, most) in pairwise(curve):
        steps = np.linspace(low, high, _BETWEEN + 1)
        # Convex in e^ε. In units of e^high, which no double need hold.
        width = math.exp(low - high) - 1
        share = (np.exp(steps - high) - 1) / width if width else np.ones_like(steps)
        chord = np.minimum((least + (most - least) * share) * (1 + 2.0**-40), most)
        mu = max(mu, _mu_at_least(steps[1:], chord[:-1]))
    return max(mu, _mu_at_least(np.array([curve[0][0]]), np.array([curve[0][1]])))


def attack_success(
    events: Events,
    *,
    delta: float,
    false_alarm_rate: float,
    accountant: Accountant | None = None,
    adjacency: Adjacency | None = None,
) -> float:
    """An attack's largest true-positive rate: how often it detects that a client took part.

    Parameters
    ----------
    events, accountant, adjacency
        As in :func:`epsilon`.
    delta : float
        The run's own, in (0, 1): the curve is followed from there. A smaller one can only lower
        the answer.
    false_alarm_rate : float
        How often the attack accuses a client that took no part, in (0, 1).

    Returns
    -------
    float
        In [``false_alarm_rate``, 1]. No test that sees everything that was released, and knows all
        other clients' data, does better.

    Notes
    -----
    **Guarantee.** What is (ε, δ)-private lets no test with false-alarm rate α have a true-positive
    rate above min(δ + e^ε·α, 1 − e^(−ε)·(1 − δ − α)) (Kairouz, Oh and Viswanath 2015, theorem 2.1);
    the least of these along the curve is returned. For one Gaussian with multiplier z that is
    Φ(Φ⁻¹(α) + 1/z), and nothing less holds.
    """
    name = "false_alarm_rate"
    false_alarm_rate = arguments.number(name, false_alarm_rate, above=0, below=1)
    curve = privacy_curve(events, delta=delta, accountant=accountant, adjacency=adjacency)
    best = 1.0
    for eps, at in curve:
        if eps < 700:
            best = min(best, at + math.exp(eps) * false_alarm_rate)
        best = min(best, 1 - math.exp(-eps) * (1 - at - false_alarm_rate))
    return min(1.0, max(best * (1 + 2.0**-40), false_alarm_rate))


def attack_advantage(
    events: Events,
    *,
    delta: float,
    accountant: Accountant | None = None,
    adjacency: Adjacency | None = None,
) -> float:
    """An attack's largest advantage: its true-positive rate less its false-alarm rate.

    Whoever guesses at even odds whether a client took part is right with probability
    (1 + advantage) / 2 at most.

    Parameters
    ----------
    events, delta, accountant, adjacency
        As in :func:`attack_success`.

    Returns
    -------
    float
        In [0, 1].

    Notes
    -----
    **Guarantee.** What is (ε, δ)-private lets no test have an advantage above
    (e^ε − 1 + 2δ) / (e^ε + 1) (Kairouz, Oh and Viswanath 2015, theorem 2.1); the least of these
    along the curve is returned. For one Gaussian with multiplier z that is 2·Φ(1/(2z)) − 1, the
    total variation, and nothing less holds.
    """
    curve = privacy_curve(events, delta=delta, accountant=accountant, adjacency=adjacency)
    best = min(math.tanh(eps / 2) + at * (1 - math.tanh(eps / 2)) for eps, at in curve)
    return min(1.0, best * (1 + 2.0**-40))


def privacy_curve(
    events: Events,
    *,
    delta: float,
    accountant: Accountant | None = None,
    adjacency: Adjacency | None = None,
) -> tuple[tuple[float, float], ...]:
    """Points of the whole curve δ(ε) of all the events together.

    Parameters
    ----------
    events, accountant, adjacency
        As in :func:`epsilon`.
    delta : float
        The smallest δ, in (0, 1).

    Returns
    -------
    tuple of (float, float)
        Pairs (ε, δ), in each of which the events are (ε, δ)-private; δ grows from ``delta`` up to
        0.999 at most, and ε falls. One pair where ε is infinite or 0 at ``delta``.

    Notes
    -----
    **Guarantee, assumptions, not covered.** Those of :func:`epsilon`, at every point.
    """
    delta = arguments.delta("delta", delta)
    return _points(frozenset(count_events(events).items()), delta, accountant, adjacency)


@lru_cache(maxsize=16)
def _points(
    counts: frozenset[tuple[Event, int]],
    delta: float,
    accountant: Accountant | None,
    adjacency: Adjacency | None,
) -> tuple[tuple[float, float], ...]:
    """Points (ε, δ) of the curve, ε falling from that at ``delta``, if it can to 0.

    That at ``delta`` alone where the rest of the curve would not add anything to it.
    """

    def spent(position: float) -> float:
        return epsilon(
            dict(counts),
            delta=1 / (1 + math.exp(-position)),
            accountant=accountant,
            adjacency=adjacency,
        )

    first = epsilon(dict(counts), delta=delta, accountant=accountant, adjacency=adjacency)
    if math.isinf(first) or first == 0 or delta >= _LARGEST_DELTA:
        return ((first, delta),)
    start, end = (math.log(d / (1 - d)) for d in (delta, _LARGEST_DELTA))
    last = spent(end)
    if last == 0:
        # From where on ε is 0: the total variation between the two worlds.
        positive = start
        while end - positive > 2.0**-7:
            middle = (positive + end) / 2
            positive, end = (middle, end) if spent(middle) > 0 else (positive, middle)
    points = [(first, delta)]
    count = math.ceil((end - start) / _STEP)
    for position in np.linspace(start, end, count + 1)[1:]:
        points.append((spent(float(position)), (1 + 2.0**-40) / (1 + math.exp(-position))))
    return tuple(points)


def _mu_at_least(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> float:
    """The smallest μ, rounded up, whose δ is at least ``deltas`` at all ``epsilons``."""
    from scipy.special import log_ndtr

    def reaches(mu: float) -> bool:
        left, right = 0.5 * mu - epsilons / mu, -0.5 * mu - epsilons / mu
        near = np.exp(log_ndtr(left))
        far = np.exp(np.minimum(epsilons + log_ndtr(right), 0.0))
        slack = 2.0**-46 * (1 + left**2 + right**2) * (near + far)
        return bool(np.all(near - far - slack >= deltas))

    low, high = 2.0**-40, _LARGEST_MU
    if reaches(low):
        return low
    if not reaches(high):
        return math.inf
    while high / low > 1 + 2.0**-20:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high
