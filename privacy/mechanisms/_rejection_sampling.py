"""Gaussian draws, a chunk at a time: real ones and integer ones.

Most are taken by a table alone. Doubles decide most of the others;
:mod:`privacy.mechanisms._exact_arithmetic` decides the rest, from the same bits.
``docs/explanation/proofs/noise.md``, "Rounded Gaussian" and "Discrete Gaussian", has the algorithm.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms._exact_arithmetic import (
    KnownPlace,
    LazyUniform,
    Place,
    Settled,
    leading_zeros,
    lies_under,
)
from privacy.mechanisms._proposal_table import REAL, TAIL_BLOCK, Grid, table_for
from privacy.mechanisms.randomness import Randomness

CHUNK = 1 << 16  # elements; their draws take about 40 bytes each

_REAL_BITS = 53  # of a place, as doubles have them
_INVERTED = 1 << 63


@dataclass(frozen=True, eq=False)
class Draws:
    """Independent draws w(j + T) of a standard normal, or of one on a lattice."""

    cells: NDArray[Any]
    """j, in the form of :class:`Table`."""
    words: NDArray[np.uint64]
    """The first 64 bits of T; of a real T the first is inverted, so that int64 is T − ½."""
    settled: dict[int, Settled]
    """Those that doubles could not decide, which the arrays do not hold."""


class Sampler:
    """Draws from one source on one grid, into memory that is used again."""

    def __init__(self, randomness: Randomness, grid: Grid = REAL, *, size: int = CHUNK) -> None:
        self.randomness, self.grid, self.table = randomness, grid, table_for(grid)
        most = _proposals(min(size, CHUNK))
        self._raw = np.empty(10 * most, dtype=np.uint8)
        self._cells = np.empty(most, dtype=self.table.by_code.dtype)

    def draw(self, count: int) -> Draws:
        """``count`` draws, at most a chunk; they last until the next call."""
        size, table = _proposals(count), self.table
        while True:
            raw, cells = self._raw[: 10 * size], self._cells[:size]
            self.randomness.fill(raw)
            words, codes = raw[: 8 * size].view(np.uint64), raw[8 * size :].view(np.uint16)
            table.by_code.take(codes, out=cells, mode="clip")  # no code lies outside
            questioned = np.flatnonzero(codes >= table.taken)
            rejected, settled = self._question(questioned, cells, words)
            # Those in front that were rejected give way to accepted ones from behind.
            holes = rejected[: rejected.searchsorted(count)]
            accepted = np.ones(size - count, dtype=np.bool_)
            accepted[rejected[len(holes) :] - count] = False
            spare = np.flatnonzero(accepted)[: len(holes)] + count
            if len(spare) == len(holes):
                break
        cells[holes], words[holes] = cells[spare], words[spare]
        if settled:
            moved = dict(zip(spare.tolist(), holes.tolist(), strict=True))
            settled = {moved.get(i, i): draw for i, draw in settled.items()}
            settled = {i: draw for i, draw in settled.items() if i < count}
        return Draws(cells[:count], words[:count], settled)

    def settle(self, draws: Draws, index: int) -> Settled:
        """A draw as exact arithmetic takes it, with bits that can be added to."""
        if index in draws.settled:
            return draws.settled[index]
        cell = draws.cells[index]
        j = int(cell) if self.grid.place_bits is not None else (int(cell) >> 63) // 2
        sign = 1 if j >= 0 else -1
        inner = abs(j) if self.grid.place_bits == 0 else (j if j >= 0 else -j - 1)
        return Settled(sign, inner, self._place(int(draws.words[index]), sign))

    def _question(
        self, questioned: NDArray[np.intp], cells: NDArray[Any], words: NDArray[np.uint64]
    ) -> tuple[NDArray[np.intp], dict[int, Settled]]:
        """Give cells to those that the table does not take; which were rejected, which settled."""
        table, count = self.table, len(questioned)
        raw = self.randomness.bytes(6 * count)
        accept_bits = np.frombuffer(raw, dtype=np.uint32, count=count)
        numbers = table.by_selector[np.frombuffer(raw, np.uint16, count, 4 * count)]
        cells[questioned] = table.cells[numbers]

        bits = _REAL_BITS if self.grid.place_bits is None else self.grid.place_bits
        place_bits = words[questioned]
        if self.grid.place_bits is None:
            place_bits ^= np.uint64(_INVERTED)
        place_bits >>= np.uint64(63 - bits)  # in two shifts, as one by 64 is no shift at all
        place_bits >>= np.uint64(1)
        place = place_bits.astype(np.float64)
        place *= 2.0**-bits
        if bits:  # from the end that is nearer to zero
            np.subtract(1, place, out=place, where=table.sign[numbers] < 0)
        exponent = place + 2.0 * table.inner[numbers]
        exponent *= place
        exponent *= float(1 / self.grid.step)
        # 1 − exp(−e) in four terms.
        drop = exponent * -0.25
        for divisor in (-3.0, -2.0):
            drop += 1
            drop *= exponent
            drop *= 1 / divisor
        drop += 1
        drop *= exponent
        drop *= table.height[numbers]
        left = table.above[numbers]
        left -= drop
        left -= accept_bits * 2.0**-32
        slack = table.slack[numbers]
        refused = left <= slack
        settled = {}
        for i in np.flatnonzero(np.abs(left) <= slack):
            index = int(questioned[i])
            decided = self._decide(int(numbers[i]), int(accept_bits[i]), int(words[index]))
            refused[i] = decided is None
            if decided is not None:
                settled[index] = decided
        return questioned[refused], settled

    def _decide(self, number: int, accept_bits: int, word: int) -> Settled | None:
        """A questioned proposal, decided exactly: None where it is rejected."""
        table, envelope = self.table, self.table.envelope(number)
        sign, inner = int(table.sign[number]), int(table.inner[number])
        if number == table.tail:
            block = leading_zeros(self.randomness)
            bits = self.randomness.bytes(1)[0]
            sign = 1 - 2 * (bits >> 7)
            inner = table.beyond + TAIL_BLOCK * block + bits % TAIL_BLOCK
            envelope /= 4 * TAIL_BLOCK << block
        place = self._place(word, sign)
        under = lies_under(
            LazyUniform(accept_bits, 32, self.randomness),
            envelope,
            inner,
            place,
            step=self.grid.step,
            scale=table.scale,
            paid=int(table.paid[number]),
        )
        return Settled(sign, inner, place) if under else None

    def _place(self, word: int, sign: int) -> Place:
        """The place in a cell, from the end that is nearer to zero."""
        bits = self.grid.place_bits
        if bits is None:
            word ^= _INVERTED if sign > 0 else _INVERTED ^ ((1 << 64) - 1)
            return LazyUniform(word, 64, self.randomness)
        place = Fraction(word >> (64 - bits), 1 << bits)
        return KnownPlace(1 - place if sign < 0 and bits else place)


def _proposals(count: int) -> int:
    """For so many draws: 0.7 % of the proposals are rejected."""
    return count + count // 64 + 16


def flattened(out: NDArray[Any], *dtypes: type) -> NDArray[Any]:
    """A flat view of an array of one of the types, to which noise can be added in place."""
    if out.dtype not in dtypes:
        names = " or ".join(dtype.__name__ for dtype in dtypes)
        raise TypeError(f"out has dtype {out.dtype}; it must be {names}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writeable, C-contiguous array; copy it first")
    return out.reshape(-1)
