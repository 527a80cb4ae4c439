"""The reverse questions: which noise, how many rounds, which sampling rate fit a budget."""

from collections.abc import Callable

from .composition import Accountant, Budget, Events, count_events, epsilon
from .events import Adjacency, FixedSize, GaussianRelease, Poisson, Sampling

_LARGEST_NOISE = 2.0**30
_MOST_ROUNDS = 2**40


def calibrate_noise_multiplier(
    *,
    sampling: Sampling,
    rounds: int,
    budget: Budget,
    accountant: Accountant | None = None,
    spent: Events = (),
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
        What this population has paid already.

    Returns
    -------
    float
        z, larger than the smallest possible one by at most 1 part in 10⁵. Its own ε was
        computed and does not exceed the target.

    Raises
    ------
    ValueError
        If ``rounds`` is not a whole number of at least 1, or no z fits.
    """
    _check_rounds(rounds)

    def fits(z: float) -> bool:
        return _fits(GaussianRelease(z, sampling), rounds, budget, accountant, spent)

    if not fits(_LARGEST_NOISE):
        raise ValueError(
            f"no noise multiplier reaches epsilon {budget.epsilon:g} at delta {budget.delta:g} "
            f"in {rounds} rounds{_already(budget, accountant, spent, sampling)}; "
            "allow a larger epsilon or a larger delta"
        )
    high = 1.0
    while not fits(high):
        high *= 2
    low = high / 2
    while low > 2.0**-30 and fits(low):
        low, high = low / 2, low
    return _bisect(fits, good=high, bad=low)


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
    release = GaussianRelease(noise_multiplier, sampling)

    def fits(rounds: int) -> bool:
        return _fits(release, rounds, budget, accountant, spent)

    if not fits(1):
        raise ValueError(
            f"not one round with noise multiplier {noise_multiplier:g} fits epsilon "
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
    _check_rounds(rounds)

    def fits(rate: float) -> bool:
        return _fits(
            GaussianRelease(noise_multiplier, Poisson(rate)), rounds, budget, accountant, spent
        )

    if fits(1.0):
        return 1.0
    bad, good = 1.0, 0.5
    while not fits(good):
        bad, good = good, good / 2
        if good < 2.0**-30:
            raise ValueError(
                f"no sampling rate reaches epsilon {budget.epsilon:g} at delta "
                f"{budget.delta:g} with noise multiplier {noise_multiplier:g} in {rounds} "
                f"rounds{_already(budget, accountant, spent, Poisson(1.0))}; use more noise, "
                "fewer rounds or a larger epsilon"
            )
    return _bisect(fits, good=good, bad=bad)


def _fits(
    release: GaussianRelease,
    rounds: int,
    budget: Budget,
    accountant: Accountant | None,
    spent: Events,
) -> bool:
    counts = count_events(spent)
    counts[release] += rounds
    total = epsilon(
        counts,
        delta=budget.delta,
        accountant=accountant,
        adjacency=_adjacency(release.sampling),
    )
    return total <= budget.epsilon


def _bisect(fits: Callable[[float], bool], *, good: float, bad: float) -> float:
    while abs(good - bad) > 1e-5 * min(good, bad):
        middle = 0.5 * (good + bad)
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _adjacency(sampling: Sampling) -> Adjacency | None:
    return Adjacency.REPLACE_ONE if isinstance(sampling, FixedSize) else None


def _already(
    budget: Budget, accountant: Accountant | None, spent: Events, sampling: Sampling
) -> str:
    counts = count_events(spent)
    if not counts:
        return ""
    paid = epsilon(
        counts, delta=budget.delta, accountant=accountant, adjacency=_adjacency(sampling)
    )
    return f", of which {paid:.6g} is spent already"


def _check_rounds(rounds: int) -> None:
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds is {rounds!r}; it must be a whole number of at least 1")
