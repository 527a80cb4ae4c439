"""What a whole privacy curve says of guesses (Mahloujifar, Melis and Chaudhuri 2024).

``docs/explanation/proofs/audit.md`` has the proof.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from privacy.accounting import Accountant, Adjacency, privacy_curve
from privacy.accounting.composition import Events
from privacy.arguments import number
from privacy.audit.statistics import check_counts

Numbers = NDArray[np.float64]
Inverse = Callable[[Numbers], Numbers]
"""The least false-alarm rate of a test with this true-positive rate, element by element."""

_PASSES, _PLACES = 4, 64  # each pass narrows the bracket 63 times
_LEAST_P_VALUE = 1e-300
_LARGEST_MU = 64.0
_LARGEST_EXPONENT = 700.0  # e^ε fits a double


@dataclass(frozen=True)
class PrivacyCurve:
    """A claim: (ε, δ)-privacy at each of several points.

    Parameters
    ----------
    points : tuple of (float, float)
        Pairs (ε, δ), ε ≥ 0 and δ in [0, 1]. A point of infinite ε claims nothing.

    Raises
    ------
    TypeError, ValueError
        If there is no point, or a number is none or out of range.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("points is empty; give at least one pair of ε and δ")
        checked = tuple(
            (
                math.inf if epsilon == math.inf else number("points", epsilon, least=0),
                number("points", delta, least=0, most=1),
            )
            for epsilon, delta in self.points
        )
        object.__setattr__(self, "points", checked)

    @classmethod
    def of_events(
        cls,
        events: Events,
        *,
        delta: float,
        accountant: Accountant | None = None,
        adjacency: Adjacency | None = None,
    ) -> Self:
        """The curve of all the events together, from ``delta`` on.

        Parameters and errors as :func:`privacy.accounting.privacy_curve`.
        """
        return cls(privacy_curve(events, delta=delta, accountant=accountant, adjacency=adjacency))

    def least_false_alarm_rate(self, true_positive_rate: Numbers) -> Numbers:
        """The least false-alarm rate that the claim leaves to a test of this true-positive rate.

        Of one (ε, δ): the larger of (y − δ) / e^ε and 1 − δ − e^ε (1 − y), and 0 (Kairouz, Oh and
        Viswanath 2015, theorem 2.1); the largest of all points' is returned.

        Parameters
        ----------
        true_positive_rate : ndarray of float, any shape
            y, in [0, 1].

        Returns
        -------
        ndarray of float, of the same shape
        """
        usable = [(e, d) for e, d in self.points if e < _LARGEST_EXPONENT]
        shape = (len(usable),) + (1,) * true_positive_rate.ndim
        growth = np.exp([e for e, _ in usable]).reshape(shape)
        delta = np.array([d for _, d in usable]).reshape(shape)
        low = (true_positive_rate - delta) / growth
        high = 1 - delta - growth * (1 - true_positive_rate)
        return np.asarray(np.maximum(low, high).max(axis=0, initial=0.0))


def curve_p_value(curve: PrivacyCurve, *, canaries: int, guesses: int, correct: int) -> float:
    """How likely so many right guesses are if the audited algorithm keeps to the whole curve.

    After Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential privacy in one run"
    (arXiv 2410.22235), whose recursion this is; ``docs/explanation/proofs/audit.md`` has a proof.

    **Guarantee.** A p-value: under the claim it is at most x with probability at most x.

    **Assumptions, not covered.** Those of :func:`p_value`.

    Parameters
    ----------
    curve : PrivacyCurve
        The claim, under adding or removing one canary.
    canaries, guesses, correct : int
        m, r and v, as in :func:`p_value`.

    Returns
    -------
    float
        In (0, 1], at least 10⁻³⁰⁰.

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range.
    """
    canaries, guesses, correct = check_counts(canaries, guesses, correct)
    if correct == 0:
        return 1.0

    def possible(logarithms: Numbers) -> NDArray[np.bool_]:
        total = _least_total(
            curve.least_false_alarm_rate, canaries, guesses, correct, np.exp(logarithms)
        )
        return total <= 1 + 2.0**-30

    return min(1.0, math.exp(_boundary(possible, math.log(_LEAST_P_VALUE), 0.0)[1]))


def mu_lower_bound(*, canaries: int, guesses: int, correct: int, confidence: float = 0.95) -> float:
    """The largest μ of Gaussian differential privacy that so many right guesses refute.

    Whoever knows that what was released is Gaussian noise on a sum, of whatever size, has a sharper
    bound than :func:`epsilon_lower_bound`, which holds for all that could be released: the ε of
    this μ at a δ. The source is that of :func:`curve_p_value`.

    **Guarantee.** An algorithm that is μ-GDP gets a bound above its μ in at most a fraction
    ``1 - confidence`` of audits.

    **Assumptions, not covered.** Those of :func:`p_value`.

    Parameters
    ----------
    canaries, guesses, correct : int
        m, r and v, as in :func:`p_value`.
    confidence : float
        In (0, 1).

    Returns
    -------
    float
        At least 0, at most 64; 0 if the guesses refute nothing.

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range.
    """
    canaries, guesses, correct = check_counts(canaries, guesses, correct)
    confidence = number("confidence", confidence, above=0, below=1)
    if correct == 0:
        return 0.0

    def refuted(mus: Numbers) -> NDArray[np.bool_]:
        def least(rate: Numbers) -> Numbers:
            return np.asarray(ndtr(ndtri(rate) - mus))

        tail = np.full(mus.shape, 1 - confidence)
        return _least_total(least, canaries, guesses, correct, tail) > 1 + 2.0**-30

    return _boundary(refuted, 0.0, _LARGEST_MU)[0]


def _least_total(
    least: Inverse, canaries: int, guesses: int, correct: int, tail: Numbers
) -> Numbers:
    """The least that P[C ≥ 0] can be if P[C ≥ ``correct``] is ``tail``; above 1 it cannot be.

    With S_i = P[C ≥ i], R_i = E[C; C ≥ i] / m and H_i = E[r − C; C ≥ i] / m, every i has
    H_i ≥ least(R_(i+1)), and m R_i = i S_i + Σ_(j > i) S_j. So the smallest S_i that the larger
    ones allow grows with each of them, and the smallest of all come one after the other.
    """
    at_least = np.asarray(tail, dtype=np.float64)  # S_(i+1)
    beyond = np.zeros_like(at_least)  # the sum of S_j over j > i + 1
    for i in range(correct - 1, -1, -1):
        right = np.minimum(((i + 1) * at_least + beyond) / canaries, 1.0)
        beyond = beyond + at_least
        needed = (least(right) * canaries + beyond) / (guesses - i)
        at_least = np.maximum(at_least, needed)
    return at_least


def _boundary(
    holds: Callable[[Numbers], NDArray[np.bool_]], low: float, high: float
) -> tuple[float, float]:
    """A bracket of where ``holds``, true at first and then false, ends; ``low`` where it never is.

    Both ends are ``high`` where it always is.
    """
    for _ in range(_PASSES):
        places = np.linspace(low, high, _PLACES)
        true = holds(places)
        if true.all():
            return high, high
        first = int(np.argmin(true))
        if first == 0:
            return low, low
        low, high = float(places[first - 1]), float(places[first])
    return low, high
