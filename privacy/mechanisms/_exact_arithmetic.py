"""Rational bounds and lazily extended random bits, for draws that floats cannot decide.

Exact integer arithmetic: slow, and needed a few times in a million draws.
``docs/explanation/proofs/noise.md``, section "Rounded Gaussian", gives the algorithm and its proof.
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
    """A uniform real in [0, 1) of which the first ``length`` bits are known: ``bits``/2^length."""

    bits: int
    length: int
    randomness: Randomness

    def extend(self) -> None:
        """Draw 32 more bits."""
        self.bits = self.bits << _MORE | int.from_bytes(self.randomness.bytes(_MORE // 8), "big")
        self.length += _MORE

    @property
    def low(self) -> Fraction:
        """Its smallest possible value."""
        return Fraction(self.bits, 1 << self.length)

    @property
    def high(self) -> Fraction:
        """The value that it stays below."""
        return Fraction(self.bits + 1, 1 << self.length)


@dataclass(frozen=True)
class KnownPlace:
    """A place in a cell that is known exactly, as on a lattice; in [0, 1)."""

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
        """Do nothing: all is known."""


def propose(
    cell: LazyUniform,
    accept: LazyUniform,
    place: LazyUniform | KnownPlace,
    step: Fraction = STEP,
) -> int | None:
    """Decide one proposal x = w(j + T) for |Z|, Z standard normal, with step = 2/w².

    Returns the cell j, or None where the proposal is rejected. Bits are added as needed.
    """
    j = pick_cell(cell, step)
    return j if _accepted(accept, place, j, step) else None


def rounded(j: int, place: LazyUniform | KnownPlace, scale: Fraction) -> int:
    """Round σ·(j + T)/16 to the nearest integer; bits of T are added until it is decided."""
    while True:
        first = _round(scale * (j + place.low) / CELLS)
        last = _round(scale * (j + place.high) / CELLS)
        if first == last:
            return first
        place.extend()


def floored(
    j: int, place: LazyUniform | KnownPlace, scale: Fraction, sign: int, offset: Fraction
) -> int:
    """⌊sign·σ·(j + T)/16 + offset⌋; bits of T are added until it is decided."""
    while True:
        first = math.floor(sign * scale * (j + place.low) / CELLS + offset)
        last = math.floor(sign * scale * (j + place.high) / CELLS + offset)
        if first == last:
            return first
        place.extend()


def pick_cell(cell: LazyUniform, step: Fraction = STEP) -> int:
    """The j with C(j+1) ≤ U < C(j): C(j) = Σ_{i≥j} g(i) / Σ_{i≥0} g(i), g(i) = exp(−i²/step)."""
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
    """Lower and upper integers around 2^precision·C(j), for j = 0, 1, … until C(j) may be 0."""
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
    """Integers below and above 2^precision·exp(−x), for x ≥ 0."""
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
