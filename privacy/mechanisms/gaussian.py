"""Gaussian noise from secure randomness: continuous, and rounded to integers exactly."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import number, whole
from privacy.mechanisms._exact_arithmetic import nearest
from privacy.mechanisms._proposal_table import CELLS
from privacy.mechanisms._rejection_sampling import CHUNK, Draws, Sampler, flattened
from privacy.mechanisms.randomness import Randomness

_LARGEST_SIGMA = 2.0**40
_LARGEST_DRAW = 6.1  # in standard deviations, of those that are not settled exactly


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

    sampler = Sampler(randomness, size=len(flat))
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        draws = sampler.draw(len(part))
        part += _scaled(draws, sigma, draws.words.view(np.float64))


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
    rounding = _Rounding(randomness, sigma, len(flat))
    for start in range(0, len(flat), CHUNK):
        rounding.add_to(flat[start : start + CHUNK])


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
    rounding = _Rounding(randomness, sigma, len(flat)) if sigma else None
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        fractions = (part & ((1 << bits) - 1)).astype(np.float64)
        fractions *= 2.0**-bits  # exact
        part >>= bits
        if rounding is None:
            part += np.floor(fractions + 0.5).astype(np.int64)
        else:
            rounding.add_to(part, fractions)


class _Rounding:
    """Gaussian noise of one deviation, rounded exactly, a chunk at a time."""

    def __init__(self, randomness: Randomness, sigma: float, size: int) -> None:
        size = min(size, CHUNK)
        self._sampler, self._sigma = Sampler(randomness, size=size), sigma
        self._reals, self._rounded = np.empty(size), np.empty(size)

    def add_to(self, part: NDArray[np.int64], fractions: NDArray[np.float64] | None = None) -> None:
        """Add ⌊N(0, σ²) + fraction⌉ to integers, at most a chunk; without fractions they are 0."""
        draws, sigma = self._sampler.draw(len(part)), self._sigma
        y = _scaled(draws, sigma, self._reals[: len(part)])
        if fractions is not None:
            y += fractions
        whole = self._rounded[: len(y)]
        np.rint(y, out=whole)
        y -= whole
        # Undecided: those as near to a half-integer as the rounding of y, or of the place.
        undecided = set(draws.settled)
        margin = 2.0**-50 * (_LARGEST_DRAW * sigma + 4)
        if y.max() > 0.5 - margin or y.min() < margin - 0.5:
            np.abs(y, out=y)
            near = np.flatnonzero(y > 0.5 - margin)
            margins = 2.0**-50 * (np.abs(whole[near]) + 2) + 2.0**-57 * sigma
            undecided.update(near[y[near] > 0.5 - margins].tolist())
        values = whole.view(np.int64)
        np.copyto(values, whole, casting="unsafe")
        width = Fraction(sigma) / CELLS
        for i in undecided:
            offset = 0 if fractions is None else float(fractions[i])
            values[i] = nearest(self._sampler.settle(draws, i), width, Fraction(offset))
        part += values


def _scaled(draws: Draws, sigma: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The draws of N(0, σ²) as doubles, in ``y``: it may be the memory of the draws' words."""
    # j + T is half of (2j + 1) + (2T − 1), both of which are here in units of 2⁻⁶³.
    np.copyto(y, draws.words.view(np.int64), casting="unsafe")
    y += draws.cells
    factor = sigma / CELLS * 2.0**-64
    if factor < 2.0**-1000:  # it may have lost bits
        y *= 2.0**-64 / CELLS
        factor = sigma
    y *= factor
    for i, draw in draws.settled.items():
        y[i] = draw.sign * float(draw.cell + draw.place.low) * (sigma / CELLS)
    return y
