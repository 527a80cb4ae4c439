"""Tests of correlated noise that was released alone: its size, its factor, and that it is fresh."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from privacy.arguments import number, whole
from privacy.audit.statistics import little_noise_p_value

LESS = "noise: there is less of it than its factor and the ledger claim"
FACTOR = "factor: noise of different rounds does not go together as the claimed factor says"
REUSED = "reused noise: two rounds were given the same noise"
SEPARATION = "separation: a client was asked again before its turn"

_ALIKE = 0.5  # correlation of two rows, which independent ones of a few thousand never have


def correlated_noise_p_values(
    rows: ArrayLike, coefficients: ArrayLike, *, sigma: float
) -> dict[str, float]:
    """Hold the noise of several rounds against the factor and the deviation that are claimed.

    Under the claim C applied to the rows is independent, N(0, σ²) in each place.

    **Guarantee.** P-values, under the claim and up to rounding to integers of far less than σ: each
    is at most x with probability at most x, as nearly as sums of as many products are Gaussian.

    **Not covered.** Noise that depends on what it hides.

    Parameters
    ----------
    rows : array of float, (T, d)
        The noise of T rounds; a few thousand places tell a factor well.
    coefficients : array of float, (b,)
        The first column of C.
    sigma : float
        σ, in units of the rows.

    Returns
    -------
    dict of str to float
        By what a small one says: less noise, another factor, noise that was used twice.
    """
    x, c = np.asarray(rows, dtype=np.float64), np.asarray(coefficients, dtype=np.float64)
    white = x.copy()
    for back in range(1, min(len(c), len(x))):
        white[back:] += c[back] * x[:-back]
    white /= number("sigma", sigma, above=0)
    count, size = white.shape
    gram = white @ white.T
    length = np.sqrt(np.diag(gram))
    above = np.triu_indices(count, 1)
    pairs = max(1, len(above[0]))
    # Under the claim the correlation of two rows is about N(0, 1/d).
    correlation = np.abs(gram / np.maximum(np.outer(length, length), 1e-300))[above]
    tails = np.minimum(1.0, 2 * stats.norm.sf(correlation * np.sqrt(size)) * pairs)
    alike = correlation > _ALIKE
    return {
        LESS: little_noise_p_value(white, sigma=1.0),
        FACTOR: float(tails[~alike].min(initial=1.0)),
        REUSED: float(tails[alike].min(initial=1.0)),
    }


def separation_p_value(cohorts: list[set[int]], *, separation: int) -> float:
    """0 if somebody was asked twice within fewer rounds than claimed, which never happens; or 1.

    Parameters
    ----------
    cohorts : list of set of int
        Who was asked, round by round.
    separation : int
        How many rounds lie between two times at least.
    """
    separation = whole("separation", separation, least=1, most=10**9)
    last: dict[int, int] = {}
    for place, cohort in enumerate(cohorts):
        if any(place - last[node] < separation for node in cohort if node in last):
            return 0.0
        last |= dict.fromkeys(cohort, place)
    return 1.0
