"""Gaussian noise from secure randomness: continuous, and rounded to integers exactly."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ._exact import CELLS, LazyUniform, cumulative_bounds, draw
from .randomness import Randomness

_CHUNK = 1 << 15
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
    *Guarantee.* Independent draws of N(0, σ²) up to the rounding of doubles, with 2⁵³ values of
    each of the two uniforms behind a pair (Box and Muller 1958); |x| ≤ 8.6·σ.

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
    for part in _chunks(_flat(out)):
        pairs = (len(part) + 1) // 2
        radius = randomness.uniform(pairs)
        angle = randomness.uniform(pairs)
        # From [0, 1) to (0, 1]: the logarithm never sees a zero.
        np.subtract(1.0, radius, out=radius)
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        radius *= sigma
        angle *= 2 * math.pi
        part[:pairs] += np.cos(angle) * radius
        np.sin(angle, out=angle)
        angle *= radius
        part[pairs:] += angle[: len(part) - pairs]


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
    for part in _chunks(_flat(out)):
        filled = 0
        while filled < len(part):
            drawn = _proposals(_enough(len(part) - filled), float(sigma), randomness)
            drawn = drawn[: len(part) - filled]
            part[filled : filled + len(drawn)] += drawn
            filled += len(drawn)


def _proposals(count: int, sigma: float, randomness: Randomness) -> NDArray[np.int64]:
    """Of ``count`` proposals those that were accepted, in the order in which they were made.

    The half line is cut into cells [j, j+1)/16. A proposal is x = (j + t)/16 where cell j has
    probability ∝ exp(−j²/512) and t is uniform; accepted with probability
    exp(−t(2j + t)/512), |x| has the density of |N(0, 1)|. Whatever doubles leave undecided is
    decided by :func:`privacy.mechanisms._exact.draw` from the same bits.
    """
    raw = randomness.bytes(16 * count)
    place_bits = np.frombuffer(raw, dtype=np.uint64, count=count)
    accept_bits = np.frombuffer(raw, dtype=np.uint32, count=count, offset=8 * count)
    cell_top = np.frombuffer(raw, dtype=np.uint16, count=count, offset=12 * count)
    cell_rest = np.frombuffer(raw, dtype=np.uint16, count=count, offset=14 * count)
    guide, thresholds = _cell_guide()

    cell = guide[cell_top]
    crossed = np.flatnonzero(cell == _CROSSED)
    undecided: list[NDArray[np.intp]] = []
    if len(crossed):
        bits = (cell_top[crossed].astype(np.int64) << 15) | (cell_rest[crossed] >> 1)
        above = np.searchsorted(thresholds, bits, side="right")
        cell[crossed] = len(thresholds) - above
        undecided.append(crossed[thresholds[np.maximum(above, 1) - 1] == bits])

    t = (place_bits >> np.uint64(11)) * 2.0**-53
    s = t + cell
    exponent = (s + cell) * t
    exponent *= 1 / 512
    u = accept_bits * 2.0**-32
    # exp(−e) ≥ 1 − e settles most; the rest get two more terms on either side.
    accepted = u < (1 - 2.0**-31) - exponent
    hard = np.flatnonzero(~accepted)
    e = exponent[hard]
    upper = 1 - e * (1 - e / 2 * (1 - e / 3 * (1 - e / 4)))
    lower = upper - e**5 / 120
    accepted[hard] = u[hard] < lower - 2.0**-31
    undecided.append(hard[~accepted[hard] & (u[hard] < upper + 2.0**-40)])

    y = s
    y *= sigma / CELLS
    y += 0.5
    k = np.floor(y)
    margin = y - k
    margin -= 0.5
    np.abs(margin, out=margin)
    y *= 2.0**-50
    y += sigma * 2.0**-56
    margin += y
    undecided.append(np.flatnonzero(margin >= 0.5))

    signs = 1 - 2 * (cell_rest & 1).astype(np.int64)
    values = k.astype(np.int64)
    if any(map(len, undecided)):
        scale = Fraction(sigma)
        for i in np.unique(np.concatenate(undecided)):
            value = draw(
                LazyUniform(int(cell_top[i]) << 15 | int(cell_rest[i]) >> 1, 31, randomness),
                LazyUniform(int(accept_bits[i]), 32, randomness),
                LazyUniform(int(place_bits[i]), 64, randomness),
                scale,
            )
            accepted[i] = value is not None
            values[i] = 0 if value is None else value
    values *= signs
    return values[accepted]


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
    guide = np.where(first == last, len(thresholds) - last, _CROSSED).astype(np.uint8)
    return guide, thresholds


def _enough(count: int) -> int:
    return count + count // 32 + 16


def _check_sigma(sigma: float, largest: float) -> None:
    if not (math.isfinite(sigma) and 0 <= sigma <= largest):
        raise ValueError(
            f"sigma is {sigma!r}; it must be finite, at least 0"
            + ("" if largest == math.inf else f" and at most {largest:g}: use a coarser lattice")
        )


def _flat(out: NDArray[np.generic]) -> NDArray[np.generic]:
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writeable, C-contiguous array; copy it first")
    return out.reshape(-1)


def _chunks(flat: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]
