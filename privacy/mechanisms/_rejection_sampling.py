"""Proposals for Gaussian draws, a batch at a time: continuous ones and integer ones.

Doubles decide most; :mod:`privacy.mechanisms._exact_arithmetic` decides the rest, from the same
bits. ``docs/explanation/proofs/noise.md``, "Rounded Gaussian" and "Discrete Gaussian", has the
algorithm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms._exact_arithmetic import (
    STEP,
    KnownPlace,
    LazyUniform,
    cumulative_bounds,
    propose,
)
from privacy.mechanisms.randomness import Randomness

CHUNK = 1 << 12  # elements; their proposals take about 100 bytes each


@dataclass(frozen=True)
class Grid:
    """How the half line is cut into cells [wj, w(j+1)), in standard deviations.

    Parameters
    ----------
    step : Fraction
        2/w², at least 512 or, where ``place_bits`` is 0, whatever it is.
    place_bits : int, optional
        A place T in a cell is a multiple of 2^-place_bits, at most 36. By default it is real.
    """

    step: Fraction
    place_bits: int | None = None


REAL = Grid(STEP)


@dataclass(frozen=True, eq=False)
class Proposals:
    """Proposals sign·w·(cell + place) for a standard normal, and which were accepted."""

    sign: NDArray[np.int64]
    cell: NDArray[np.uint8]
    place: NDArray[np.float64]
    raw_place: NDArray[np.uint64]
    accepted: NDArray[np.bool_]
    settled: dict[int, tuple[int, LazyUniform | KnownPlace]]
    """Those that doubles could not decide and that were accepted: cell and place."""


def propose_batch(count: int, randomness: Randomness, grid: Grid = REAL) -> Proposals:
    """Make ``count`` proposals.

    A proposal is x = w(j + T) where cell j has probability ∝ exp(−w²j²/2) and T is uniform;
    accepted with probability exp(−w²T(2j + T)/2), x has a density, or on a lattice a
    probability, ∝ exp(−x²/2).
    """
    raw = randomness.bytes(16 * count)
    raw_place = np.frombuffer(raw, dtype=np.uint64, count=count)
    accept_bits = np.frombuffer(raw, dtype=np.uint32, count=count, offset=8 * count)
    cell_top = np.frombuffer(raw, dtype=np.uint16, count=count, offset=12 * count)
    cell_rest = np.frombuffer(raw, dtype=np.uint16, count=count, offset=14 * count)
    guide, thresholds = cell_guide(grid.step)

    cell = guide[cell_top]
    crossed = np.flatnonzero(cell == CROSSED)
    bits = (cell_top[crossed].astype(np.int64) << 15) | (cell_rest[crossed] >> 1)
    above = np.searchsorted(thresholds, bits, side="right")
    cell[crossed] = len(thresholds) - above
    undecided = crossed[thresholds[np.maximum(above, 1) - 1] == bits]

    place_bits = 53 if grid.place_bits is None else grid.place_bits
    # In two shifts, as one by 64 is no shift at all.
    place = (raw_place >> np.uint64(63 - place_bits) >> np.uint64(1)).astype(np.float64)
    place *= 2.0**-place_bits
    exponent = place + cell
    exponent += cell
    exponent *= place
    exponent *= float(1 / grid.step)
    u = accept_bits * 2.0**-32
    # exp(−e) ≥ 1 − e settles most; the rest get further terms on either side.
    accepted = u < (1 - 2.0**-31) - exponent
    hard = np.flatnonzero(~accepted)
    e = exponent[hard]
    upper = 1 - e * (1 - e / 2 * (1 - e / 3 * (1 - e / 4)))
    accepted[hard] = u[hard] < upper - e**5 / 120 - 2.0**-31
    undecided = np.union1d(undecided, hard[~accepted[hard] & (u[hard] < upper + 2.0**-31)])

    settled: dict[int, tuple[int, LazyUniform | KnownPlace]] = {}
    for i in undecided:
        if grid.place_bits is None:
            known: LazyUniform | KnownPlace = LazyUniform(int(raw_place[i]), 64, randomness)
        else:
            known = KnownPlace(Fraction(float(place[i])))
        j = propose(
            LazyUniform(int(cell_top[i]) << 15 | int(cell_rest[i]) >> 1, 31, randomness),
            LazyUniform(int(accept_bits[i]), 32, randomness),
            known,
            grid.step,
        )
        accepted[i] = j is not None
        if j is not None:
            settled[int(i)] = j, known
    sign = 1 - 2 * (cell_rest & np.uint16(1)).astype(np.int64)
    return Proposals(sign, cell, place, raw_place, accepted, settled)


CROSSED = 255


@lru_cache(maxsize=16)
def cell_guide(step: Fraction = STEP) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The cell for each value of the first 16 bits, and ⌊2³¹·C(j)⌋ in ascending order.

    Where a threshold falls inside a value of 16 bits the guide says ``CROSSED``.
    """
    precision = 128
    floors = []
    for low, high in cumulative_bounds(precision, step)[1:]:
        floor = low >> (precision - 31)
        if floor == 0:
            break
        if floor != high >> (precision - 31):
            raise ArithmeticError("128 bits do not decide a threshold of 31 bits")
        floors.append(floor)
    # The first bits 0…0 are shared by infinitely many cells: a threshold of 0 marks them.
    thresholds = np.array([0, *reversed(floors)], dtype=np.int64)
    tops = np.arange(1 << 16, dtype=np.int64) << 15
    first = np.searchsorted(thresholds, tops, side="left")
    last = np.searchsorted(thresholds, tops + (1 << 15) - 1, side="right")
    guide: NDArray[np.uint8] = np.where(first == last, len(thresholds) - last, CROSSED).astype(
        np.uint8
    )
    return guide, thresholds


def add_accepted(flat: NDArray[Any], draws: Callable[[int], NDArray[Any]]) -> None:
    """Add the accepted of ``draws(proposals)``, in their order, one to every element."""
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        while len(part):
            # About 2.4 % of the proposals are rejected.
            drawn = draws(len(part) + len(part) // 32 + 16)[: len(part)]
            part[: len(drawn)] += drawn
            part = part[len(drawn) :]


def flattened(out: NDArray[Any], *dtypes: type) -> NDArray[Any]:
    """A flat view of an array of one of the types, to which noise can be added in place."""
    if out.dtype not in dtypes:
        names = " or ".join(dtype.__name__ for dtype in dtypes)
        raise TypeError(f"out has dtype {out.dtype}; it must be {names}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writeable, C-contiguous array; copy it first")
    return out.reshape(-1)
