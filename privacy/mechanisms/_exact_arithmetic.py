"""Rational bounds and lazily extended random bits, for draws that floats cannot decide.

Exact integer arithmetic: slow, and needed a few times in a million draws.
``docs/explanation/proofs/noise.md``, section "Rounded Gaussian", gives the algorithm and its proof.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from privacy.mechanisms.randomness import Randomness

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
    """A place in a cell that is known exactly, as on a lattice; in [0, 1]."""

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


Place = LazyUniform | KnownPlace


@dataclass(frozen=True)
class Settled:
    """A draw sign·(cell + place), in widths of a cell, that was decided exactly."""

    sign: int
    cell: int
    place: Place


def nearest(draw: Settled, width: Fraction, offset: Fraction = Fraction(0)) -> int:
    """⌊sign·width·(cell + place) + offset + ½⌋; bits of the place are added until it is decided."""
    while True:
        first, last = (
            math.floor(draw.sign * width * (draw.cell + end) + offset + Fraction(1, 2))
            for end in (draw.place.low, draw.place.high)
        )
        if first == last:
            return first
        draw.place.extend()


def lies_under(
    accept: LazyUniform,
    envelope: Fraction,
    cell: int,
    place: Place,
    *,
    step: Fraction,
    scale: Fraction,
    paid: int,
) -> bool:
    """Whether V·envelope < scale·exp(−(cell + T)²/step) − paid for the two lazy reals V and T.

    Bits are added as needed.
    """
    while True:
        precision = accept.length + 64
        smallest = exp_bounds((cell + place.high) ** 2 / step, precision)[0]
        largest = exp_bounds((cell + place.low) ** 2 / step, precision)[1]
        if accept.high * envelope <= scale * Fraction(smallest, 1 << precision) - paid:
            return True
        if accept.low * envelope >= scale * Fraction(largest, 1 << precision) - paid:
            return False
        accept.extend()
        place.extend()


def leading_zeros(randomness: Randomness) -> int:
    """How many zeros fair coins show before the first one."""
    zeros = 0
    while not (byte := randomness.bytes(1)[0]):
        zeros += 8
    return zeros + 8 - byte.bit_length()


def weight_bounds(
    step: Fraction, count: int, precision: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Integers below and above 2^precision·exp(−n²/step), for n < ``count``."""
    # exp(−(n+1)²/step) is exp(−n²/step) times a factor that itself falls by exp(−2/step) a step.
    work = precision + 32
    down, up = exp_bounds(1 / step, work)
    fall_down, fall_up = exp_bounds(2 / step, work)
    low = high = 1 << work
    lows, highs = [], []
    for _ in range(count):
        lows.append(low >> 32)
        highs.append(-(-high >> 32))
        low, high = low * down >> work, -(-high * up >> work)
        down, up = down * fall_down >> work, -(-up * fall_up >> work)
    return tuple(lows), tuple(highs)


def exp_bounds(x: Fraction, precision: int) -> tuple[int, int]:
    """Integers below and above 2^precision·exp(−x), for x ≥ 0."""
    whole, work = math.floor(x), precision + 32
    shifted, rest = divmod((x.numerator - whole * x.denominator) << work, x.denominator)
    low, high = _short_exp_bounds(shifted, shifted + bool(rest), work)
    if whole:
        power_low, power_high = _inverse_e_power(whole, work)
        low, high = low * power_low >> work, -(-high * power_high >> work)
    return low >> 32, -(-high >> 32)


@lru_cache(maxsize=256)
def _inverse_e_power(exponent: int, precision: int) -> tuple[int, int]:
    base_low, base_high = _short_exp_bounds(1 << precision, 1 << precision, precision)
    low = high = 1 << precision
    for _ in range(exponent):
        low, high = low * base_low >> precision, -(-high * base_high >> precision)
    return low, high


def _short_exp_bounds(least: int, most: int, precision: int) -> tuple[int, int]:
    # For x in [0, 1] the partial sums of Σ (−x)^k/k! miss exp(−x) by at most the next term.
    term_low = term_high = 1 << precision
    low = high = k = 0
    while term_high > 1:
        if k % 2 == 0:
            low, high = low + term_low, high + term_high
        else:
            low, high = low - term_high, high - term_low
        k += 1
        term_low = (term_low * least >> precision) // k
        term_high = -((-term_high * most >> precision) // k)
    return low - term_high, high + term_high
