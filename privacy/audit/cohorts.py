"""Whether cohorts were drawn as the ledger says they were."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def poisson_cohort_p_value(sizes: Sequence[int], *, population: int, rate: float) -> float:
    """How unusual the sizes of a run's cohorts are, had they been drawn by Poisson sampling.

    A cohort's size is Binomial(N, q), with variance N q (1 − q). A cohort of fixed size has none,
    which is how a ledger that claims Poisson sampling over fixed-size cohorts is found out. (Chua
    et al. 2024, arXiv 2403.17673, show by how much such a ledger can under-state ε.)

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
        A p-value. It tests the mean exactly and the spread by the χ² law, which the sum of
        squared deviations follows nearly where N q (1 − q) is at least 5 or so.

    Raises
    ------
    ValueError
        If there are no sizes, one is out of range, or the rate is.
    """
    observed = np.asarray(sizes, dtype=np.int64)
    if observed.size == 0:
        raise ValueError("sizes is empty; give the size of at least one round's cohort")
    if observed.min() < 0 or observed.max() > population:
        raise ValueError(f"sizes must lie between 0 and the population of {population}")
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate!r}; it must lie strictly between 0 and 1")
    rounds = observed.size
    mean = stats.binomtest(int(observed.sum()), rounds * population, rate).pvalue
    variance = population * rate * (1 - rate)
    spread = float(((observed - population * rate) ** 2).sum()) / variance
    tail = min(stats.chi2.cdf(spread, rounds), stats.chi2.sf(spread, rounds))
    return float(min(1.0, 2 * min(mean, 2 * tail)))
