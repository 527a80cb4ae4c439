"""Gaussian noise from secure randomness: continuous, and rounded to integers exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._exact import CELLS, LazyUniform, cumulative_bounds, propose, rounded
from .randomness import Randomness

_CHUNK = 1 << 12  # elements; their proposals take about 100 bytes each
_LARGEST_SIGMA = 2.0**40


def gaussian(size: int, *, sigma: float, randomness: Randomness) -> NDArray[np.float64]:
    """Continuous Gaussian noise, as near as doubles come to it.

    Parameters
    ----------
    size : int
        How many.
    sigma : float
        The standard deviation, finite and at least 0.
    randomness : Randomness
        :class:`SystemRandomness` wherever privacy matters.

    Returns
    -------
    array of float64, shape ``(size,)``

    Raises
    ------
    ValueError
        If ``sigma`` is negative or not finite.

    Notes
    -----
    *Guarantee.* Independent draws of N(0, σ²), each an exact draw (no tail is cut) of which a
    double keeps 53 bits: off by at most 2⁻⁵¹ of itself and 2⁻⁵⁷·σ.

    *Assumptions.* Nobody sees the low bits of what it is added to.

    *Not covered.* Mironov 2012: which doubles can come out of a floating-point addition
    depends on the summands, and the low bits of a noisy sum can betray them. Use
    :func:`rounded_gaussian` on integers where that matters.
    """
    noise = np.zeros(size)
    add_gaussian(noise, sigma=sigma, randomness=randomness)
    return noise


def add_gaussian(
    out: NDArray[np.float32] | NDArray[np.float64], *, sigma: float, randomness: Randomness
) -> None:
    """Add :func:`gaussian` noise to an array in place, with little memory beside it.

    Parameters
    ----------
    out : array of float32 or float64, contiguous, any shape
    sigma : float
        The standard deviation, finite and at least 0.
    randomness : Randomness

    Raises
    ------
    TypeError
        If ``out`` has another dtype.
    ValueError
        If ``sigma`` is negative or not finite, or ``out`` is not contiguous.
    """
    _check_sigma(sigma, math.inf)
    if out.dtype not in (np.float32, np.float64):
        raise TypeError(f"out has dtype {out.dtype}; it must be float32 or float64")
    if sigma == 0:
        return

    def draws(count: int) -> NDArray[np.float64]:
        batch = _propose(count, randomness)
        x = batch.cell + batch.place
        for i, (j, place) in batch.settled.items():
            x[i] = j + float(place.low)
        x *= batch.sign
        x *= sigma / CELLS
        return x[batch.accepted]

    _add(_flat(out), draws)


def rounded_gaussian(size: int, *, sigma: float, randomness: Randomness) -> NDArray[np.int64]:
    """Exactly round(N(0, σ²)), the Gaussian rounded to the nearest integer.

    Parameters
    ----------
    size : int
        How many.
    sigma : float
        The standard deviation in lattice units, in [0, 2⁴⁰].
    randomness : Randomness
        :class:`SystemRandomness` wherever privacy matters.

    Returns
    -------
    array of int64, shape ``(size,)``

    Raises
    ------
    ValueError
        If ``sigma`` is not in [0, 2⁴⁰].

    Notes
    -----
    *Guarantee.* Independent draws with P(k) = Φ((k+½)/σ) − Φ((k−½)/σ) for every integer k,
    exactly: no tail is cut and no probability is rounded. A sum of integers plus this noise is
    the rounding of the sum plus continuous Gaussian noise, hence post-processing of the
    Gaussian mechanism: its ε is proved for what is sampled here (``docs/proofs.md``).

    *Assumptions.* The randomness is uniform and unknown to the adversary; doubles are
    IEEE 754. Nothing is assumed of the mathematical library.

    *Not covered.* The time a call takes depends on the values drawn.
    """
    noise = np.zeros(size, dtype=np.int64)
    add_rounded_gaussian(noise, sigma=sigma, randomness=randomness)
    return noise


def add_rounded_gaussian(out: NDArray[np.int64], *, sigma: float, randomness: Randomness) -> None:
    """Add :func:`rounded_gaussian` noise to an array in place, with little memory beside it.

    Parameters
    ----------
    out : array of int64, contiguous, any shape
        Sums wrap around beyond 2⁶³, as int64 does; keep them below.
    sigma : float
        The standard deviation in lattice units, in [0, 2⁴⁰].
    randomness : Randomness

    Raises
    ------
    TypeError
        If ``out`` has another dtype.
    ValueError
        If ``sigma`` is not in [0, 2⁴⁰], or ``out`` is not contiguous.
    """
    _check_sigma(sigma, _LARGEST_SIGMA)
    if out.dtype != np.int64:
        raise TypeError(f"out has dtype {out.dtype}; it must be int64")
    if sigma == 0:
        return

    scale = Fraction(float(sigma))

    def draws(count: int) -> NDArray[np.int64]:
        batch = _propose(count, randomness)
        y = batch.cell + batch.place
        y *= sigma / CELLS
        y += 0.5
        floors = np.floor(y)
        # Undecided: those as near to a half-integer as the rounding of y, or of the place.
        margin = y - floors
        margin -= 0.5
        np.abs(margin, out=margin)
        y *= 2.0**-50
        y += sigma * 2.0**-56
        margin += y
        values = floors.astype(np.int64)
        for i in np.flatnonzero(margin >= 0.5):
            if i not in batch.settled and batch.accepted[i]:
                place = LazyUniform(int(batch.place_bits[i]), 64, randomness)
                values[i] = rounded(int(batch.cell[i]), place, scale)
        for index, (j, place) in batch.settled.items():
            values[index] = rounded(j, place, scale)
        values *= batch.sign
        return values[batch.accepted]

    _add(_flat(out), draws)


@dataclass(frozen=True, eq=False)
class _Proposals:
    """Proposals sign·(cell + place)/16 for a standard normal, and which were accepted."""

    sign: NDArray[np.int64]
    cell: NDArray[np.uint8]
    place: NDArray[np.float64]
    place_bits: NDArray[np.uint64]
    accepted: NDArray[np.bool_]
    settled: dict[int, tuple[int, LazyUniform]]
    """Those that doubles could not decide and that were accepted: cell and place."""


def _propose(count: int, randomness: Randomness) -> _Proposals:
    """Make ``count`` proposals.

    The half line is cut into cells [j, j+1)/16. A proposal is x = (j + t)/16 where cell j has
    probability ∝ exp(−j²/512) and t is uniform; accepted with probability
    exp(−t(2j + t)/512), x has the density of |N(0, 1)|. Whatever doubles leave undecided is
    decided by :mod:`privacy.mechanisms._exact` from the same bits.
    """
    raw = randomness.bytes(16 * count)
    place_bits = np.frombuffer(raw, dtype=np.uint64, count=count)
    accept_bits = np.frombuffer(raw, dtype=np.uint32, count=count, offset=8 * count)
    cell_top = np.frombuffer(raw, dtype=np.uint16, count=count, offset=12 * count)
    cell_rest = np.frombuffer(raw, dtype=np.uint16, count=count, offset=14 * count)
    guide, thresholds = _cell_guide()

    cell = guide[cell_top]
    crossed = np.flatnonzero(cell == _CROSSED)
    bits = (cell_top[crossed].astype(np.int64) << 15) | (cell_rest[crossed] >> 1)
    above = np.searchsorted(thresholds, bits, side="right")
    cell[crossed] = len(thresholds) - above
    undecided = crossed[thresholds[np.maximum(above, 1) - 1] == bits]

    place = (place_bits >> np.uint64(11)).astype(np.float64)
    place *= 2.0**-53
    exponent = place + cell
    exponent += cell
    exponent *= place
    exponent *= 1 / 512
    u = accept_bits * 2.0**-32
    # exp(−e) ≥ 1 − e settles most; the rest get further terms on either side.
    accepted = u < (1 - 2.0**-31) - exponent
    hard = np.flatnonzero(~accepted)
    e = exponent[hard]
    upper = 1 - e * (1 - e / 2 * (1 - e / 3 * (1 - e / 4)))
    accepted[hard] = u[hard] < upper - e**5 / 120 - 2.0**-31
    undecided = np.union1d(undecided, hard[~accepted[hard] & (u[hard] < upper + 2.0**-31)])

    settled: dict[int, tuple[int, LazyUniform]] = {}
    for i in undecided:
        lazy_place = LazyUniform(int(place_bits[i]), 64, randomness)
        j = propose(
            LazyUniform(int(cell_top[i]) << 15 | int(cell_rest[i]) >> 1, 31, randomness),
            LazyUniform(int(accept_bits[i]), 32, randomness),
            lazy_place,
        )
        accepted[i] = j is not None
        if j is not None:
            settled[int(i)] = j, lazy_place
    sign = 1 - 2 * (cell_rest & np.uint16(1)).astype(np.int64)
    return _Proposals(sign, cell, place, place_bits, accepted, settled)


_CROSSED = 255


@lru_cache(maxsize=1)
def _cell_guide() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The cell for each value of the first 16 bits, and ⌊2³¹·C(j)⌋ in ascending order.

    Where a threshold falls inside a value of 16 bits the guide says ``_CROSSED``.
    """
    precision = 128
    floors = []
    for low, high in cumulative_bounds(precision)[1:]:
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
    guide: NDArray[np.uint8] = np.where(first == last, len(thresholds) - last, _CROSSED).astype(
        np.uint8
    )
    return guide, thresholds


def _add(flat: NDArray[Any], draws: Callable[[int], NDArray[Any]]) -> None:
    """Add what ``draws(proposals)`` accepts, in its order, until every element has its own."""
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        while len(part):
            # About 2.4 % of the proposals are rejected.
            drawn = draws(len(part) + len(part) // 32 + 16)[: len(part)]
            part[: len(drawn)] += drawn
            part = part[len(drawn) :]


def _check_sigma(sigma: float, largest: float) -> None:
    if not (math.isfinite(sigma) and 0 <= sigma <= largest):
        raise ValueError(
            f"sigma is {sigma!r}; it must be finite, at least 0"
            + ("" if largest == math.inf else f" and at most {largest:g}: use a coarser lattice")
        )


def _flat(out: NDArray[Any]) -> NDArray[Any]:
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writeable, C-contiguous array; copy it first")
    return out.reshape(-1)
