"""The table that Gaussian draws are made from: how often a cell is taken without a question.

``docs/explanation/proofs/noise.md``, "The algorithm", says why the draws have the law they claim.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms._exact_arithmetic import weight_bounds

CODES = 1 << 16
"""How many values the 16 bits of a proposal have, and the 16 of a questioned one."""

CELLS = 64
"""Cells of the half line per unit of standard deviation, for real draws."""

TAIL_BLOCK = 16
"""Cells that share a probability beyond those of the table."""

_SPARE = 32  # values of the first 16 bits by which envelopes may be rounded up
_PRECISION = 128


@dataclass(frozen=True)
class Grid:
    """How the line is cut into cells [wj, w(j+1)), w in standard deviations.

    Parameters
    ----------
    step : Fraction
        2/w², from 2·64² to 2·128² or, where ``place_bits`` is 0, at most the latter.
    place_bits : int, optional
        A place T in a cell is a multiple of 2^-place_bits, at most 36. By default it is real.
    """

    step: Fraction
    place_bits: int | None = None


REAL = Grid(Fraction(2 * CELLS * CELLS))


@dataclass(frozen=True, eq=False)
class Table:
    """What a proposal's bits say, on one grid.

    ``scale`` is the A of the proof. Arrays by number of a cell end with the tail and with nothing:
    ``tail`` is the number of the first of the two.
    """

    grid: Grid
    scale: Fraction
    taken: int
    """Values of the first 16 bits below which the cell is taken."""
    by_code: NDArray[Any]
    """The cell for each of them, (65536,): j as int16, or of a real grid (2j+1)·2⁶³ as float32."""
    by_selector: NDArray[np.int16]
    """A cell's number for each value of the second 16 bits, (65536,)."""
    cells: NDArray[Any]
    """j of each cell, in the form of ``by_code``."""
    inner: NDArray[np.int64]
    """How many cells lie between it and zero, n."""
    sign: NDArray[np.int64]
    paid: NDArray[np.int64]
    """How many values of the first 16 bits take it, k."""
    selectors: NDArray[np.int64]
    """How many values of the second 16 bits select it."""
    height: NDArray[np.float64]
    """A·exp(−n²/step) over the envelope."""
    above: NDArray[np.float64]
    """A·exp(−n²/step) − k over the envelope."""
    slack: NDArray[np.float64]
    """How near doubles may come to the threshold and still decide."""

    @property
    def tail(self) -> int:
        """The number of all that lies beyond the cells."""
        return len(self.inner) - 2

    @property
    def beyond(self) -> int:
        """The least n that no cell of the table has."""
        return int(self.inner.max()) + 1

    def envelope(self, number: int) -> Fraction:
        """What the selectors of a cell, or the tail, amount to in values of the first 16 bits."""
        return Fraction(int(self.selectors[number]) * (CODES - self.taken), CODES)


@lru_cache(maxsize=16)
def table_for(grid: Grid = REAL) -> Table:
    """The table of a grid, computed exactly."""
    points = grid.place_bits == 0
    count = math.isqrt(math.ceil(18 * grid.step)) + 1  # six standard deviations
    lows, highs = weight_bounds(grid.step, count + 1, _PRECISION)
    numbers = [*range(count), *range(1 if points else 0, count)]
    total = sum(highs[n] for n in numbers)
    # A = codes·2^precision/total, so that A·exp(−n²/step) lies in codes/total·[low, high].
    codes = CODES - _SPARE
    paid = [codes * lows[n if points else n + 1] // total for n in numbers]
    taken = sum(paid)
    rest = CODES - taken

    def enough(share: int) -> int:
        # Selectors whose envelope is at least share/total values of the first 16 bits.
        least: int = -(-share * CODES // (total * rest))
        return max(1, least)

    selectors = [enough(codes * highs[n] - total * k) for n, k in zip(numbers, paid, strict=True)]
    selectors.append(enough(4 * TAIL_BLOCK * codes * highs[count]))
    selectors.append(CODES - sum(selectors))
    # The tail's blocks are proposed half as often each; its weights must fall as fast.
    fall = (2 * TAIL_BLOCK * count + TAIL_BLOCK**2) / grid.step
    if selectors[-1] < 0 or fall < Fraction(7, 10):
        raise ArithmeticError(f"16 bits do not hold the cells of {grid}")

    inner = np.array([*numbers, 0, 0], dtype=np.int64)
    sign = np.array([*[1] * count, *[-1] * (len(numbers) - count), 1, 1], dtype=np.int64)
    height, above, slack = [], [], []
    for n, k, share in zip(numbers, paid, selectors, strict=False):
        one = total * share * rest  # the envelope's, over CODES
        height.append(codes * highs[n] * CODES / one)
        above.append((codes * highs[n] - total * k) * CODES / one)
        steepest = 0.0 if points else (2 * n + 1) / float(grid.step)
        slack.append(2.0**-31 + height[-1] * steepest**5 / 120)
    cells: NDArray[Any] = np.where(sign > 0, inner, -inner if points else -inner - 1)
    if grid.place_bits is None:
        cells = ((2 * cells + 1) * 2.0**63).astype(np.float32)  # exact: 24 bits are enough
    else:
        cells = cells.astype(np.int16)
    by_code = np.zeros(CODES, dtype=cells.dtype)
    by_code[:taken] = np.repeat(cells[:-2], paid)
    return Table(
        grid,
        Fraction(codes << _PRECISION, total),
        taken,
        by_code,
        np.repeat(np.arange(len(inner), dtype=np.int16), selectors),
        cells,
        inner,
        sign,
        np.array([*paid, 0, 0], dtype=np.int64),
        np.array(selectors, dtype=np.int64),
        np.array([*height, 0, 0]),
        np.array([*above, 0, -2]),
        np.array([*slack, np.inf, 0]),
    )
