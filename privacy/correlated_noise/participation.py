"""How often a client may take part, and how far it then moves all rows of C·G together."""

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import convert, whole

Vector = NDArray[np.float64]
MOST_ROUNDS = 10**6  # more have no use for coefficients, and take their room


@dataclass(frozen=True)
class MinSeparation:
    """A client takes part at most ``at_most`` times, two of them at least ``rounds`` apart.

    Parameters
    ----------
    rounds : int
        s: after round t the client's next is t + s or later.
    at_most : int, optional
        k. Default: as often as the separation allows.
    """

    rounds: int
    at_most: int | None = None

    def __post_init__(self) -> None:
        convert(self, "rounds", whole, least=1)
        if self.at_most is not None:
            convert(self, "at_most", whole, least=1)

    def participations(self, rounds: int) -> int:
        """The most that one client takes part in, of so many rounds."""
        most = -(-whole("rounds", rounds, least=1) // self.rounds)
        return most if self.at_most is None else min(most, self.at_most)


def sensitivity(coefficients: ArrayLike, *, rounds: int, participation: MinSeparation) -> float:
    """How far one client can move C·G, in clipping norms: its whole contribution to all rows.

    C is lower triangular and Toeplitz: ``coefficients`` is its first column, c₀, c₁, …, followed
    by zeros.

    Parameters
    ----------
    coefficients : array of float, (b,)
        b ≤ ``rounds`` of them count.
    rounds : int
        T, how many rows there are.
    participation : MinSeparation

    Returns
    -------
    float
        Exact where no two of a client's columns overlap (b ≤ s), and where the coefficients are
        at least zero and never increase; otherwise an upper bound, of |c| with each entry raised
        to the largest that follows.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range or there is no coefficient.

    Notes
    -----
    A client's contributions are vectors of norm 1 at most, whose directions an adversary picks.
    Where columns do not overlap their squares add up, and the earliest places lose the least at
    the end. Where the coefficients are at least zero and never increase, equal directions and the
    earliest places 0, s, 2s, … are the worst (McMahan et al. 2024, arXiv 2405.13763, theorem 2).
    Raising |c| entry by entry raises every inner product of columns, and so the bound.
    """
    rounds = whole("rounds", rounds, least=1, most=MOST_ROUNDS)
    c = _checked(coefficients)[:rounds]
    separation, count = participation.rounds, participation.participations(rounds)
    if len(c) <= separation:
        places = range(0, count * separation, separation)
        return sqrt(sum(float(np.square(c[: rounds - place]).sum()) for place in places))
    if np.any(c < 0) or np.any(np.diff(c) > 0):
        c = np.maximum.accumulate(np.abs(c)[::-1])[::-1]
    column = np.zeros(rounds)
    column[: len(c)] = c
    total = np.zeros(rounds)
    for place in range(0, count * separation, separation):
        total[place:] += column[: rounds - place]
    return sqrt(float(np.square(total).sum()))


def cost_of_a_participation(coefficients: ArrayLike, *, rows: int, separation: int) -> float:
    """How far C·G moves for each participation: k of them move it √k times as far at most.

    The largest of ``sensitivity``/√k, over all k: with noise for it every participation is one
    Gaussian release of the same multiplier, however many there have been and will be, of so many
    rows in all.

    Parameters
    ----------
    coefficients : array of float, (b,)
        At least zero, and never increasing.
    rows : int
        How many there may be.
    separation : int
        Between two participations lie so many rows or more.

    Returns
    -------
    float
        In clipping norms, rounded up.

    Notes
    -----
    Of k participations the earliest places, as near as they may be, are the worst: every inner
    product of two columns is then the largest (McMahan et al. 2024, arXiv 2405.13763, theorem 2).
    """
    rows = whole("rows", rows, least=1, most=MOST_ROUNDS)
    separation = whole("separation", separation, least=1)
    c = _checked(coefficients)[:rows]
    if np.any(c < 0) or np.any(np.diff(c) > 0):
        raise ValueError("coefficients must be at least zero and never increase")
    column = np.zeros(rows)
    column[: len(c)] = c
    total, largest = np.zeros(rows), 0.0
    for count, place in enumerate(range(0, rows, separation), 1):
        total[place:] += column[: rows - place]
        largest = max(largest, float(total @ total) / count)
    return sqrt(largest) * (1 + 2.0**-32)


def _checked(coefficients: ArrayLike) -> Vector:
    c = np.asarray(coefficients, dtype=np.float64)
    if c.ndim != 1 or not len(c) or not np.all(np.abs(c) < inf) or c[0] == 0:
        raise ValueError(
            "coefficients must be finite numbers, c₀ (not 0), c₁, …: the first column of the matrix"
        )
    return c
