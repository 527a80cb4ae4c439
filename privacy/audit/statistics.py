"""The statistics of an audit with one training run (Steinke, Nasr and Jagielski 2023)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from privacy.arguments import number, whole

Numbers = NDArray[np.float64]

_LARGEST_EPSILON = 64.0
_BISECTIONS = 60
_SIMULATIONS, _NUMBERS_AT_ONCE = 9_999, 1 << 21


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are if the audited algorithm is (ε, δ)-private.

    Theorem 5.2 of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846): let each of m canaries be
    included by a fair coin of its own, and let the auditor guess r of the coins, r fixed ahead,
    from what the algorithm released. Then, with W ~ Binomial(r, e^ε / (1 + e^ε)),

        P[at least v right] ≤ P[W ≥ v] + 2 m δ · max over i in 1..m of P[v > W ≥ v − i] / i.

    **Guarantee.** A p-value: under the claim it is at most x with probability at most x.

    **Assumptions.** The coins are fair and independent, and nothing that the auditor used depends
    on them but the release. How many guesses are made does not depend on the release.

    **Not covered.** Choosing the best of several attacks or numbers of guesses afterwards; divide
    the error by their number first, as :func:`privacy.audit.audit` does.

    Parameters
    ----------
    canaries : int
        m.
    guesses : int
        r ≤ m; the auditor abstained from the others.
    correct : int
        v ≤ r.
    epsilon, delta : float
        The claim, ε ≥ 0 and δ in [0, 1), under adding or removing one canary.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range.
    """
    canaries, guesses, correct = check_counts(canaries, guesses, correct)
    delta = number("delta", delta, least=0, below=1)
    epsilon = number("epsilon", epsilon, least=0)
    if guesses == 0:
        return 1.0
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, rate))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
    steepest = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * steepest)


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest ε that so many right guesses refute.

    Parameters
    ----------
    canaries, guesses, correct, delta
        As in :func:`p_value`.
    confidence : float
        In (0, 1). An (ε, δ)-private algorithm gets a bound above its ε in at most a fraction
        ``1 - confidence`` of audits.

    Returns
    -------
    float
        At least 0; 0 if the guesses refute nothing.

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range.
    """
    canaries, guesses, correct = check_counts(canaries, guesses, correct)
    delta = number("delta", delta, least=0, below=1)
    confidence = number("confidence", confidence, above=0, below=1)

    def refuted(epsilon: float) -> bool:
        value = p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return value < 1 - confidence

    # Refuting one ε refutes all smaller ones, since a smaller ε is a stronger claim.
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def poisson_cohort_p_value(sizes: Sequence[int], *, population: int, rate: float) -> float:
    """How unusual the sizes of a run's cohorts are, had they been drawn by Poisson sampling.

    A cohort's size is Binomial(N, q), with variance N q (1 − q). A cohort of fixed size has none,
    which betrays a ledger that claims Poisson sampling. (Chua et al. 2024, arXiv 2403.17673, show
    by how much such a ledger can under-state ε.)

    The mean is tested exactly. The sum of squared deviations is compared with that of 9,999
    simulations, so that its p-value is exact too, and at least 0.0004: sizes are whole numbers, so
    that a continuous law would find a few rounds unusual that are just as large as expected.

    Parameters
    ----------
    sizes : sequence of int
        Of each round's cohort, at least one round.
    population : int
        N, how many clients could be drawn.
    rate : float
        The claimed q, in (0, 1).

    Returns
    -------
    float
        A p-value, for both ends of the mean and of the spread.

    Raises
    ------
    TypeError, ValueError
        If there are no sizes, one is out of range, or the rate is.
    """
    population = whole("population", population, least=1)
    drawn = [whole("sizes", size, least=0, most=population) for size in sizes]
    if not drawn:
        raise ValueError("sizes is empty; give the size of at least one round's cohort")
    rate = number("rate", rate, above=0, below=1)
    rounds = len(drawn)
    mean = stats.binomtest(sum(drawn), rounds * population, rate).pvalue
    observed = float(_spreads(np.array([drawn]), population * rate)[0])
    spread = _p_value_beside(observed, _usual_spreads(population, rate, rounds))
    return float(min(1.0, 2 * min(mean, spread)))


def independent_cohorts_p_value(
    cohorts: Sequence[Set[int]], *, population: int, rate: float
) -> float:
    """How unusual it is how often each client was drawn, had every round drawn anew.

    Under Poisson sampling each client's number of rounds is Binomial(T, q), by itself. A cohort
    that is kept, or drawn from a generator that repeats itself, makes some clients' numbers large
    and others' small; clients that take turns have numbers that are all alike. Either way the sizes
    of the cohorts may be as they should be. The sum of squares of the numbers about their mean is
    compared with that of 9,999 simulations, so that the p-value is exact, and at least 0.0002.

    Parameters
    ----------
    cohorts : sequence of set of int
        Who was drawn, round by round, at least one round.
    population : int
        N, how many clients could be drawn.
    rate : float
        The claimed q, in (0, 1).

    Returns
    -------
    float
        A p-value, for both ends. 1 for one round, which says nothing.

    Raises
    ------
    TypeError, ValueError
        If there are no cohorts, one has more than the population, or the rate is out of range.
    """
    population = whole("population", population, least=1)
    rate = number("rate", rate, above=0, below=1)
    if not cohorts:
        raise ValueError("cohorts is empty; give at least one round's")
    times = Counter(client for cohort in cohorts for client in cohort)
    if len(times) > population:
        raise ValueError(f"cohorts holds {len(times)} clients, and population is {population}")
    rounds = len(cohorts)
    if rounds == 1:
        return 1.0
    observed = np.zeros(population)
    observed[: len(times)] = list(times.values())
    simulated = _simulated(
        lambda source, count: source.binomial(rounds, rate, (count, population)).var(axis=1),
        numbers=population,
    )
    return _p_value_beside(float(observed.var()), simulated)


@lru_cache(maxsize=16)
def _usual_spreads(population: int, rate: float, rounds: int) -> Numbers:
    """Of simulated cohorts' sizes; audits that are repeated ask for the same ones."""
    return _simulated(
        lambda source, count: _spreads(
            source.binomial(population, rate, (count, rounds)), population * rate
        ),
        numbers=rounds,
    )


def _spreads(sizes: NDArray[np.int64], expected: float) -> Numbers:
    """The sum of each row's squared deviations."""
    return np.asarray(np.square(sizes - expected).sum(axis=1))


def _simulated(simulate: Callable[[np.random.Generator, int], Numbers], *, numbers: int) -> Numbers:
    """A statistic of 9,999 simulations, ``simulate(source, count)``, each of so many numbers."""
    source = np.random.default_rng()
    at_once = max(1, _NUMBERS_AT_ONCE // numbers)
    starts = range(0, _SIMULATIONS, at_once)
    return np.concatenate(
        [simulate(source, min(at_once, _SIMULATIONS - start)) for start in starts]
    )


def _p_value_beside(observed: float, simulated: Numbers) -> float:
    """For both ends; exact, since under the law what was observed is one more simulation."""
    larger = int((simulated >= observed * (1 - 1e-12)).sum())
    smaller = int((simulated <= observed * (1 + 1e-12)).sum())
    return min(1.0, 2 * (1 + min(larger, smaller)) / (1 + len(simulated)))


def little_noise_p_value(noise: ArrayLike, *, sigma: float) -> float:
    """How unusual it is that numbers which hold nothing but noise are so small.

    Under the claim each is N(0, σ²) by itself, and their squares' sum follows the χ² law; discrete
    noise follows it as nearly as σ is large beside its lattice.

    Parameters
    ----------
    noise : array of float
        At least one number; more noise than claimed is no fault.
    sigma : float
        The claimed σ, in the same units.

    Returns
    -------
    float
        A p-value.

    Raises
    ------
    TypeError, ValueError
        If there are no numbers, or sigma is out of range.
    """
    numbers = np.asarray(noise, dtype=np.float64).ravel()
    if not numbers.size:
        raise ValueError("noise is empty; give at least one number")
    scaled = numbers / number("sigma", sigma, above=0)
    return float(stats.chi2.cdf(float(scaled @ scaled), numbers.size))


def check_counts(canaries: int, guesses: int, correct: int) -> tuple[int, int, int]:
    """m, r and v as whole numbers, m ≥ r ≥ v, or a ``TypeError`` or ``ValueError``."""
    canaries = whole("canaries", canaries, least=1)
    guesses = whole("guesses", guesses, least=0, most=canaries)
    return canaries, guesses, whole("correct", correct, least=0, most=guesses)
