"""Rational bounds and lazily extended random bits, for draws that floats cannot decide.

Everything here is exact integer arithmetic. It is slow, and asked a few times in a million.
``docs/proofs.md``, section "Rounded Gaussian", gives the algorithm and its proof.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from privacy.mechanisms.randomness import Randomness

CELLS = 16
"""Cells of the half line per unit of standard deviation."""

STEP = Fraction(2 * CELLS * CELLS)
"""2/w² where a cell is w = 1/16 wide."""

_MORE = 32


@dataclass
class LazyUniform:
    """A uniform real in [0, 1) of which the first ``length`` bits are known.

    Parameters
    ----------
    bits : int
        The known bits, as an integer below 2^length.
    length : int
        How many.
    randomness : Randomness
        Where further bits come from.
    """

    bits: int
    length: int
    randomness: Randomness

    def extend(self) -> None:
        """Learn 32 more bits."""
        self.bits = self.bits << _MORE | int.from_bytes(self.randomness.bytes(_MORE // 8), "big")
        self.length += _MORE

    @property
    def low(self) -> Fraction:
        """The smallest value it can have."""
        return Fraction(self.bits, 1 << self.length)

    @property
    def high(self) -> Fraction:
        """What it stays below."""
        return Fraction(self.bits + 1, 1 << self.length)


@dataclass(frozen=True)
class KnownPlace:
    """A place in a cell that is known exactly, as on a lattice.

    Parameters
    ----------
    value : Fraction
        In [0, 1).
    """

    value: Fraction

    @property
    def low(self) -> Fraction:
        """The value."""
        return self.value

    @property
    def high(self) -> Fraction:
        """The value."""
        return self.value

    def extend(self) -> None:
        """There is nothing more to know."""


def propose(
    cell: LazyUniform,
    accept: LazyUniform,
    place: LazyUniform | KnownPlace,
    step: Fraction = STEP,
) -> int | None:
    """Decide one proposal x = w(j + T) for |Z|, Z standard normal.

    Parameters
    ----------
    cell, accept : LazyUniform
        Which cell, and whether to accept. Bits are added as needed.
    place : LazyUniform or KnownPlace
        Where in the cell.
    step : Fraction
        2/w².

    Returns
    -------
    int or None
        The cell j, or None where the proposal is rejected.
    """
    j = pick_cell(cell, step)
    return j if _accepted(accept, place, j, step) else None


def rounded(j: int, place: LazyUniform | KnownPlace, scale: Fraction) -> int:
    """Round scale·(j + T)/16 to the nearest integer.

    Parameters
    ----------
    j : int
        The cell.
    place : LazyUniform
        T. Bits are added until it is decided.
    scale : Fraction
        σ.

    Returns
    -------
    int
    """
    while True:
        first = _round(scale * (j + place.low) / CELLS)
        last = _round(scale * (j + place.high) / CELLS)
        if first == last:
            return first
        place.extend()


def pick_cell(cell: LazyUniform, step: Fraction = STEP) -> int:
    """The j with C(j+1) ≤ U < C(j), where C(j) = Σ_{i≥j} g(i) / Σ_{i≥0} g(i).

    Parameters
    ----------
    cell : LazyUniform
        U.
    step : Fraction
        g(i) = exp(−i²/step).

    Returns
    -------
    int
    """
    while True:
        precision = 64 * math.ceil((cell.length + 64) / 64)
        shift = precision - cell.length
        low, high = cell.bits << shift, (cell.bits + 1) << shift
        bounds = cumulative_bounds(precision, step)
        for j in range(len(bounds) - 1):
            if bounds[j + 1][1] <= low and high <= bounds[j][0]:
                return j
        cell.extend()


@lru_cache(maxsize=32)
def cumulative_bounds(precision: int, step: Fraction = STEP) -> tuple[tuple[int, int], ...]:
    """Integers around 2^precision·C(j) for j = 0, 1, …, as far as C(j) can be told from 0.

    Parameters
    ----------
    precision : int
        Bits.
    step : Fraction
        g(j) = exp(−j²/step).

    Returns
    -------
    tuple of (int, int)
        The lower and the upper bound for each j.
    """
    work = precision + 32
    last = math.isqrt(math.ceil(step * work)) + 2
    weights = [exp_bounds(j * j / step, work) for j in range(last)]
    # From `last` on the weights fall at least geometrically, by exp(−a) ≤ 1/(1 + a) a step.
    a = (2 * last + 1) / step
    beyond = math.ceil(exp_bounds(last * last / step, work)[1] * (1 + a) / a)
    low, high = 0, beyond
    sums = []
    for lower, upper in reversed(weights):
        low, high = low + lower, high + upper
        sums.append((low, high))
    sums.reverse()
    total_low, total_high = sums[0]
    one = 1 << precision
    bounds = [(s * one // total_high, -(-t * one // total_low)) for s, t in sums]
    bounds[0] = (one, one)
    return tuple(bounds)


def exp_bounds(x: Fraction, precision: int) -> tuple[int, int]:
    """Integers below and above 2^precision·exp(−x).

    Parameters
    ----------
    x : Fraction
        At least 0.
    precision : int
        Bits.

    Returns
    -------
    int, int
    """
    whole = math.floor(x)
    low, high = _short_exp_bounds(x - whole, precision)
    for _ in range(whole):
        low = low * _inverse_e(precision)[0] >> precision
        high = -(-high * _inverse_e(precision)[1] >> precision)
    return low, high


@lru_cache(maxsize=8)
def _inverse_e(precision: int) -> tuple[int, int]:
    return _short_exp_bounds(Fraction(1), precision)


def _short_exp_bounds(x: Fraction, precision: int) -> tuple[int, int]:
    # For x in [0, 1] the partial sums of Σ (−x)^k/k! lie in turn above and below exp(−x).
    term, above, k = Fraction(1), Fraction(1), 0
    while True:
        term *= x / (k + 1)
        below = above - term
        if term * (1 << precision) < 1:
            return math.floor(below * (1 << precision)), math.ceil(above * (1 << precision))
        term *= x / (k + 2)
        above = below + term
        k += 2


def _accepted(accept: LazyUniform, place: LazyUniform | KnownPlace, j: int, step: Fraction) -> bool:
    """Whether U < exp(−T(2j + T)/2w⁻²) for the two lazy reals U and T."""
    while True:
        precision = accept.length + 32
        shift = precision - accept.length
        smallest = exp_bounds(place.high * (2 * j + place.high) / step, precision)[0]
        largest = exp_bounds(place.low * (2 * j + place.low) / step, precision)[1]
        if (accept.bits + 1) << shift <= smallest:
            return True
        if accept.bits << shift >= largest:
            return False
        accept.extend()
        place.extend()


def _round(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))
