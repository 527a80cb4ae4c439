"""Gaussian noise from secure randomness: continuous, and rounded to integers exactly."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import number, whole
from privacy.mechanisms._exact_arithmetic import CELLS, LazyUniform, floored, rounded
from privacy.mechanisms._rejection_sampling import (
    CHUNK,
    Proposals,
    add_accepted,
    flattened,
    propose_batch,
)
from privacy.mechanisms.randomness import Randomness

_LARGEST_SIGMA = 2.0**40


def add_gaussian(
    out: NDArray[np.float32] | NDArray[np.float64], *, sigma: float, randomness: Randomness
) -> None:
    """Add continuous Gaussian noise to an array, as near as doubles come to it.

    Parameters
    ----------
    out : array of float32 or float64, C-contiguous, any shape
        The noise is added in place, with little memory beside it.
    sigma : float
        The standard deviation, finite and at least 0.
    randomness : Randomness
        :class:`SystemRandomness` wherever privacy matters.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    Notes
    -----
    **Guarantee.** Independent draws of N(0, σ²), each an exact draw (no tail is cut) of which a
    double keeps 53 bits: off by at most 2⁻⁵¹ of itself and 2⁻⁵⁷·σ.

    **Assumptions.** Nobody sees the low bits of the sum.

    **Not covered.** Mironov 2012: which doubles can come out of a floating-point addition depends
    on the summands, and the low bits of a noisy sum can betray them. Use
    :func:`add_rounded_gaussian` on integers where that matters.
    """
    sigma = number("sigma", sigma, least=0)
    flat = flattened(out, np.float32, np.float64)
    if sigma == 0:
        return

    def draws(count: int) -> NDArray[np.float64]:
        batch = propose_batch(count, randomness)
        x = batch.cell + batch.place
        for i, (j, place) in batch.settled.items():
            x[i] = j + float(place.low)
        x *= batch.sign
        x *= sigma / CELLS
        return x[batch.accepted]

    add_accepted(flat, draws)


def add_rounded_gaussian(out: NDArray[np.int64], *, sigma: float, randomness: Randomness) -> None:
    """Add exactly round(N(0, σ²)), the Gaussian rounded to the nearest integer, to an array.

    Parameters
    ----------
    out : array of int64, C-contiguous, any shape
        The noise is added in place, with little memory beside it. Sums wrap around beyond 2⁶³, as
        int64 does; keep them below.
    sigma : float
        The standard deviation in lattice units, in [0, 2⁴⁰].
    randomness : Randomness
        :class:`SystemRandomness` wherever privacy matters.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    Notes
    -----
    **Guarantee.** Independent draws with P(k) = Φ((k+½)/σ) − Φ((k−½)/σ) for every integer k,
    exactly: no tail is cut and no probability is rounded. A sum of integers plus this noise is
    the rounding of the sum plus continuous Gaussian noise, hence post-processing of the Gaussian
    mechanism: its ε is proved for the noise that is sampled (``docs/explanation/proofs/noise.md``).

    **Assumptions.** The randomness is uniform and unknown to the adversary; doubles are IEEE 754.
    Nothing is assumed of the mathematical library.

    **Not covered.** The time a call takes depends on the values drawn.
    """
    give = "a number in [0, 2^40], from a coarser lattice if need be"
    sigma = number("sigma", sigma, least=0, most=_LARGEST_SIGMA, give=give)
    flat = flattened(out, np.int64)
    if sigma == 0:
        return
    scale = Fraction(sigma)

    def draws(count: int) -> NDArray[np.int64]:
        batch = propose_batch(count, randomness)
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
                place = LazyUniform(int(batch.raw_place[i]), 64, randomness)
                values[i] = rounded(int(batch.cell[i]), place, scale)
        for index, (j, settled) in batch.settled.items():
            values[index] = rounded(j, settled, scale)
        values *= batch.sign
        return values[batch.accepted]

    add_accepted(flat, draws)


def round_with_gaussian(
    numerators: NDArray[np.int64], *, bits: int, sigma: float, randomness: Randomness
) -> None:
    """Replace every n by ⌊n/2^bits + N(0, σ²)⌉, the nearest integer to a noisy fraction.

    For integers (``bits`` = 0) it is what :func:`add_rounded_gaussian` does.

    Parameters
    ----------
    numerators : array of int64, C-contiguous, any shape
        In units of 2^-bits; replaced in place by whole ones.
    bits : int
        In [0, 32].
    sigma : float
        The standard deviation in whole units, in [0, 2⁴⁰].
    randomness : Randomness
        :class:`SystemRandomness` or a secret key's wherever privacy matters.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    Notes
    -----
    **Guarantee.** Independent draws with P(k) = Φ((k+½−n/2^bits)/σ) − Φ((k−½−n/2^bits)/σ) for
    every integer k, exactly (``docs/explanation/proofs/noise.md``, "A Gaussian on a fraction").

    **Assumptions, Not covered.** Those of :func:`add_rounded_gaussian`.
    """
    give = "a number in [0, 2^40], from a coarser lattice if need be"
    sigma = number("sigma", sigma, least=0, most=_LARGEST_SIGMA, give=give)
    bits = whole("bits", bits, least=0, most=32)
    flat = flattened(numerators, np.int64)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        fractions: NDArray[np.float64] = (part & ((1 << bits) - 1)).astype(np.float64)
        offsets = fractions * 2.0**-bits + 0.5  # exact
        part >>= bits
        if sigma == 0:
            np.add(part, np.floor(offsets).astype(np.int64), out=part)
            continue
        while len(part):
            batch = propose_batch(len(part) + len(part) // 32 + 16, randomness)
            chosen = np.flatnonzero(batch.accepted)[: len(part)]
            count = len(chosen)
            drawn = _floors(batch, chosen, offsets[:count], sigma, randomness)
            np.add(part[:count], drawn, out=part[:count])
            part, offsets = part[count:], offsets[count:]


def _floors(
    batch: Proposals,
    chosen: NDArray[np.intp],
    offsets: NDArray[np.float64],
    sigma: float,
    randomness: Randomness,
) -> NDArray[np.int64]:
    """⌊σ·Z + offset⌋ of the chosen proposals; each offset a double in [½, 3/2)."""
    scale = Fraction(sigma)
    y = batch.cell[chosen] + batch.place[chosen]
    y *= sigma / CELLS
    margin = (y + 2) * 2.0**-50
    margin += sigma * 2.0**-56
    y *= batch.sign[chosen]
    y += offsets
    floors = np.floor(y)
    y -= floors
    # Undecided: those as near to an integer as the rounding of y, or of the place.
    near = (y <= margin) | (y >= 1 - margin)
    values = floors.astype(np.int64)
    if batch.settled:
        near |= np.isin(chosen, np.fromiter(batch.settled, np.intp, len(batch.settled)))
    for i in np.flatnonzero(near):
        index = int(chosen[i])
        if index in batch.settled:
            j, place = batch.settled[index]
        else:
            j = int(batch.cell[index])
            place = LazyUniform(int(batch.raw_place[index]), 64, randomness)
        values[i] = floored(j, place, scale, int(batch.sign[index]), Fraction(float(offsets[i])))
    return values
