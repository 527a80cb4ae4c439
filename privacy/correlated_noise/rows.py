"""Rows of correlated integers: x = C⁻¹z, rounded row by row, and the past that they take back."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from math import inf, nextafter, sqrt
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from privacy.arguments import exact_bytes, number, whole
from privacy.mechanisms import KeyedRandomness, round_with_gaussian

Integers = npt.NDArray[np.int64]

_BITS = 16
_ONE = 1 << _BITS
_AT_ONCE = 1 << 16  # elements; the past rows of as many fit a cache
LARGEST_SIGMA = 2.0**36  # so that sums of 2¹⁶ times a row fit 64 bits, whatever is drawn


@dataclass(frozen=True)
class Factor:
    """The matrix C: its first column as exact multiples of 2⁻¹⁶, which begins with 1.

    Parameters
    ----------
    numerators : tuple of int
        2¹⁶·cⱼ; the first is 2¹⁶.
    """

    numerators: tuple[int, ...]

    def __post_init__(self) -> None:
        limit = 2 * _ONE
        numerators = tuple(
            whole("a numerator", n, least=-limit, most=limit) for n in self.numerators
        )
        object.__setattr__(self, "numerators", numerators)
        if not numerators or numerators[0] != _ONE:
            raise ValueError(f"numerators is {numerators!r:.80}; it must begin with {_ONE}")

    @classmethod
    def nearest(cls, coefficients: ArrayLike) -> "Factor":
        """The matrix whose coefficients are these, rounded to multiples of 2⁻¹⁶.

        Raises
        ------
        ValueError
            If they do not begin with 1, or one is above 2 or no number.
        """
        scaled = np.rint(np.asarray(coefficients, dtype=np.float64) * _ONE)
        if not np.all(np.abs(scaled) <= 2 * _ONE):
            raise ValueError("coefficients must begin with 1, and none be above 2")
        return cls(tuple(int(n) for n in scaled))

    @property
    def bands(self) -> int:
        """b, how many rows one contribution reaches."""
        return len(self.numerators)

    @property
    def coefficients(self) -> npt.NDArray[np.float64]:
        """c₀, c₁, …, exactly; float64, (b,)."""
        return np.array(self.numerators, dtype=np.float64) / _ONE

    @property
    def norm(self) -> float:
        """‖c‖, rounded up: how far one contribution of norm 1 moves all rows together."""
        square = Fraction(sum(n * n for n in self.numerators), _ONE * _ONE)
        return nextafter(sqrt(float(square)) * (1 + 2.0**-50), inf)


class CorrelatedNoise:
    """The noise of one instance: row after row, each of a key of its own and of the rows before.

    Row t is xₜ = ⌊zₜ − Σ_{j≥1} cⱼ·xₜ₋ⱼ⌉ with zₜ ~ N(0, σ²) from the row's key, in each place.

    Parameters
    ----------
    factor : Factor
        C.
    sigma : float
        σ in cells, in [0, 2³⁶].
    size : int
        d, how many integers a row has.

    Notes
    -----
    **Guarantee.** If each Gₜ is a sum of integer vectors of norm at most R, every client in rows at
    least b apart, Gₜ + xₜ of all rows is post-processing of C·G + z, whatever Gₜ was made to
    depend on before: for each time that a client took part, of one Gaussian mechanism with noise
    multiplier σ/(R·‖c‖) (``docs/explanation/proofs/correlated-noise.md``, "Correlated noise on
    integers").

    **Assumptions.** Keys are secret, random, and used for one row each. No row number is used
    twice: what a row takes back of the past is taken back once.

    **Not covered.** An adversary who reads this process's memory, or the keys. A row's own noise
    is larger than independent noise would be; only over the rows does it cancel.
    """

    def __init__(self, factor: Factor, *, sigma: float, size: int) -> None:
        self.factor = factor
        self._sigma = number("sigma", sigma, least=0, most=LARGEST_SIGMA)
        self._size = whole("size", size, least=1)
        # The latest last; None: skipped.
        self._past: deque[npt.NDArray[np.signedinteger] | None] = deque(maxlen=factor.bands - 1)
        self._rows = 0

    @property
    def rows(self) -> int:
        """How many rows there were, drawn or skipped."""
        return self._rows

    def skip(self) -> None:
        """Go past a row whose noise no model holds, as if it had not been drawn.

        If it was, and even released, the columns of its clients end there: they are shorter.
        """
        self._past.append(None)
        self._rows += 1

    def draw(self, key: bytes) -> Integers:
        """The next row; int64, (d,)."""
        randomness = KeyedRandomness(exact_bytes("key", key, 32))
        row = np.empty(self._size, dtype=np.int64)
        past = [
            (n, vector)
            for n, vector in zip(self.factor.numerators[1:], reversed(self._past), strict=False)
            if vector is not None
        ]
        scratch = np.empty(min(self._size, _AT_ONCE), dtype=np.int64)
        for begin in range(0, self._size, _AT_ONCE):
            part = row[begin : begin + _AT_ONCE]
            part.fill(0)
            product = scratch[: len(part)]
            for numerator, vector in past:
                np.multiply(
                    vector[begin : begin + _AT_ONCE], numerator, out=product, dtype=np.int64
                )
                part -= product
            round_with_gaussian(part, bits=_BITS, sigma=self._sigma, randomness=randomness)
        self._past.append(_narrow(row))
        self._rows += 1
        return row

    def digest(self) -> int:
        """A number that tells whether the last row, drawn again, is the same; it is as secret."""
        last = next((vector for vector in reversed(self._past) if vector is not None), None)
        return 0 if last is None else crc32(last)


def _narrow(row: Integers) -> npt.NDArray[np.signedinteger]:
    """A copy, in half the room where every entry fits."""
    largest = np.iinfo(np.int32).max
    fits = -largest <= row.min(initial=0) and row.max(initial=0) <= largest
    return row.astype(np.int32 if fits else np.int64)
