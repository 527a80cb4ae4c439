"""The statistics of an audit with one training run (Steinke, Nasr and Jagielski 2023)."""

import math

import numpy as np
from scipy import stats

_LARGEST_EPSILON = 64.0
_STEPS = 60


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are if the audited algorithm is (ε, δ)-private.

    Theorem 5.2 of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846): let each of m canaries be
    included by a fair coin of its own, and let the auditor guess r of the coins, r fixed ahead,
    from what the algorithm released. Then, with W ~ Binomial(r, e^ε / (1 + e^ε)),

        P[at least v right] ≤ P[W ≥ v] + 2 m δ · max over i in 1..m of P[v > W ≥ v − i] / i.

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
    ValueError
        If a number is out of range.

    Notes
    -----
    *Guarantee.* A p-value: under the claim it is at most x with probability at most x.

    *Assumptions.* The coins are fair and independent, and nothing that the auditor used depends
    on them but the release. How many guesses are made does not depend on the release.

    *Not covered.* Choosing the best of several attacks or numbers of guesses afterwards; divide
    the error by their number first, as :func:`privacy.audit.audit` does.
    """
    _check(canaries, guesses, correct, delta)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon is {epsilon!r}; it must be finite and at least 0")
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
    ValueError
        If a number is out of range.
    """
    _check(canaries, guesses, correct, delta)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; it must lie strictly between 0 and 1")

    def refuted(epsilon: float) -> bool:
        value = p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return value < 1 - confidence

    # Refuting one ε refutes all smaller ones, since a smaller ε is a stronger claim.
    if not refuted(0.0):
        return 0.0
    good, bad = 0.0, _LARGEST_EPSILON
    for _ in range(_STEPS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if refuted(middle) else (good, middle)
    return good


def _check(canaries: int, guesses: int, correct: int, delta: float) -> None:
    if canaries < 1:
        raise ValueError(f"canaries is {canaries!r}; an audit needs at least 1")
    if not 0 <= guesses <= canaries:
        raise ValueError(
            f"guesses is {guesses!r}; it must lie between 0 and the {canaries} canaries"
        )
    if not 0 <= correct <= guesses:
        raise ValueError(f"correct is {correct!r}; it must lie between 0 and {guesses} guesses")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta!r}; it must lie in [0, 1)")
