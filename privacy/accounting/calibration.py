"""Calibration: the noise, the number of rounds or the sampling rate that fits a budget."""

import math
from collections.abc import Callable

from privacy.accounting.composition import Accountant, Budget, Events, count_events, epsilon
from privacy.accounting.events import (
    Adjacency,
    Event,
    FixedSize,
    GaussianRelease,
    Poisson,
    Sampling,
)
from privacy.arguments import whole

_LARGEST_NOISE = 2.0**30
_MOST_ROUNDS = 2**40


def calibrate_noise_multiplier(
    *,
    sampling: Sampling,
    rounds: int,
    budget: Budget,
    accountant: Accountant | None = None,
    spent: Events = (),
    release: Callable[[float], Event] | None = None,
) -> float:
    """The smallest noise multiplier with which the rounds fit the budget.

    Parameters
    ----------
    sampling : Poisson, Full or FixedSize
        How cohorts are drawn.
    rounds : int
        How many rounds are to be paid for.
    budget : Budget
        The target ε and δ.
    accountant : "pld" or "rdp", optional
        As in :func:`epsilon`.
    spent : events
        The population's earlier payments.
    release : callable, optional
        The event of a round with a given z. Default: a ``GaussianRelease``.

    Returns
    -------
    float
        z, larger than the smallest possible one by at most 1 part in 10⁵. Its own ε was
        computed and does not exceed the target. (Where nobody is drawn but with a probability
        below δ, next to no noise is enough: z is then 2⁻³⁰ or so, and δ too large to mean much.)

    Raises
    ------
    ValueError
        If no z up to 2³⁰ fits.
    """
    rounds = whole("rounds", rounds, least=1)
    _check_limit(budget)

    def cost(z: float) -> float:
        one = GaussianRelease(z, sampling) if release is None else release(z)
        return _cost(one, rounds, budget, accountant, spent)

    if cost(_LARGEST_NOISE) > budget.epsilon:
        raise ValueError(
            f"no noise multiplier reaches epsilon {budget.epsilon:g} at delta {budget.delta:g} "
            f"in {rounds} rounds{_already(budget, accountant, spent, sampling)}; "
            "allow a larger epsilon or a larger delta"
        )
    high = 1.0
    while cost(high) > budget.epsilon:
        high *= 2
    low = high / 2
    while low > 2.0**-30 and cost(low) <= budget.epsilon:
        low, high = low / 2, low
    return _narrow(cost, budget.epsilon, good=high, bad=low)


def calibrate_rounds(
    *,
    noise_multiplier: float,
    sampling: Sampling,
    budget: Budget,
    accountant: Accountant | None = None,
    spent: Events = (),
) -> int:
    """The largest number of equal rounds that fits the budget.

    Parameters
    ----------
    noise_multiplier : float
        z.
    sampling, budget, accountant, spent
        As in :func:`calibrate_noise_multiplier`.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If not even one round fits.
    """
    _check_limit(budget)
    release = GaussianRelease(noise_multiplier, sampling)

    def fits(rounds: int) -> bool:
        return _cost(release, rounds, budget, accountant, spent) <= budget.epsilon

    if not fits(1):
        raise ValueError(
            f"not one round with noise multiplier {release.noise_multiplier:g} fits epsilon "
            f"{budget.epsilon:g} at delta {budget.delta:g}"
            f"{_already(budget, accountant, spent, sampling)}; use more noise, a smaller "
            "sampling rate or a larger epsilon"
        )
    good = 1
    while good < _MOST_ROUNDS and fits(2 * good):
        good *= 2
    bad = 2 * good
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def calibrate_sampling_rate(
    *,
    noise_multiplier: float,
    rounds: int,
    budget: Budget,
    accountant: Accountant | None = None,
    spent: Events = (),
) -> float:
    """The largest Poisson sampling rate with which the rounds fit the budget.

    Parameters
    ----------
    noise_multiplier, rounds
        z and how many rounds.
    budget, accountant, spent
        As in :func:`calibrate_noise_multiplier`.

    Returns
    -------
    float
        q in (0, 1], smaller than the largest possible one by at most 1 part in 10⁵.

    Raises
    ------
    ValueError
        If no rate of at least 2⁻³⁰ fits.
    """
    rounds = whole("rounds", rounds, least=1)
    _check_limit(budget)

    def cost(rate: float) -> float:
        release = GaussianRelease(noise_multiplier, Poisson(rate))
        return _cost(release, rounds, budget, accountant, spent)

    if cost(1.0) <= budget.epsilon:
        return 1.0
    bad, good = 1.0, 0.5
    while cost(good) > budget.epsilon:
        bad, good = good, good / 2
        if good < 2.0**-30:
            raise ValueError(
                f"no sampling rate reaches epsilon {budget.epsilon:g} at delta "
                f"{budget.delta:g} with noise multiplier {noise_multiplier:g} in {rounds} "
                f"rounds{_already(budget, accountant, spent, Poisson(1.0))}; use more noise, "
                "fewer rounds or a larger epsilon"
            )
    return _narrow(cost, budget.epsilon, good=good, bad=bad)


def _cost(
    release: Event, rounds: int, budget: Budget, accountant: Accountant | None, spent: Events
) -> float:
    counts = count_events(spent)
    counts[release] += rounds
    return epsilon(counts, delta=budget.delta, accountant=accountant)


def _narrow(cost: Callable[[float], float], target: float, *, good: float, bad: float) -> float:
    """Move ``good`` (whose cost is within the target) to within 1e-5 of ``bad`` (beyond it)."""
    cost_good, cost_bad = cost(good), cost(bad)
    step = 0
    while abs(good - bad) > 1e-5 * min(good, bad):
        step += 1
        part = 0.5
        if step % 4 and 0 < cost_good * (1 + 2.0**-40) < cost_bad < math.inf:
            # ε is near a power of z or q. Aim a little to either side of the root in turn, so
            # that both ends close in on it.
            part = math.log(target / cost_good) / math.log(cost_bad / cost_good)
            nudge = 3e-6 / abs(math.log(bad / good))
            part += nudge if step % 2 else -nudge
            part = min(max(part, 1e-3), 1 - 1e-3)
        guess = good * (bad / good) ** part
        value = cost(guess)
        if value <= target:
            good, cost_good = guess, value
        else:
            bad, cost_bad = guess, value
    return good


def _already(
    budget: Budget, accountant: Accountant | None, spent: Events, sampling: Sampling
) -> str:
    counts = count_events(spent)
    if not counts:
        return ""
    fixed = isinstance(sampling, FixedSize)
    adjacency = Adjacency.REPLACE_ONE if fixed else None
    paid = epsilon(counts, delta=budget.delta, accountant=accountant, adjacency=adjacency)
    return f", of which {paid:.6g} is spent already"


def _check_limit(budget: Budget) -> None:
    if budget.epsilon == math.inf:
        raise ValueError("epsilon is inf, which sets no limit: nothing can be calibrated to it")
