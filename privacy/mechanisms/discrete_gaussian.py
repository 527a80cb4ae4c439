"""Discrete Gaussian noise, sampled exactly: a client's share of distributed noise."""

from fractions import Fraction
from numbers import Rational

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import number, unboxed
from privacy.mechanisms._proposal_table import CELLS, Grid
from privacy.mechanisms._rejection_sampling import CHUNK, Sampler, flattened
from privacy.mechanisms.randomness import Randomness

_SMALLEST_VARIANCE, _LARGEST_VARIANCE = Fraction(1, 4), Fraction(1 << 80)
_GIVE_VARIANCE = "0 or a number in [1/4, 2^80]; use a finer lattice if it is too small"


def add_discrete_gaussian(
    out: NDArray[np.int64], *, variance: Fraction | float, randomness: Randomness
) -> None:
    """Add exactly the discrete Gaussian N_Z(0, σ²), P(k) ∝ exp(−k²/2σ²), to an array.

    Parameters
    ----------
    out : array of int64, C-contiguous, any shape
        The noise is added in place, with little memory beside it. Sums wrap around beyond 2⁶³, as
        int64 does; keep them below.
    variance : Fraction or float
        σ², taken exactly: 0, or in [1/4, 2⁸⁰]. (The variance itself is a little below σ², by less
        than 10⁻⁶ of it where σ ≥ 1.)
    randomness : Randomness
        :class:`SystemRandomness` wherever privacy matters.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    Notes
    -----
    **Guarantee.** Independent draws with exactly these probabilities: no tail is cut and no
    probability is rounded (``docs/explanation/proofs/noise.md``, "Discrete Gaussian"; the
    distribution is that of Canonne, Kamath and Steinke 2020, definition 1).

    **Assumptions.** The randomness is uniform and unknown to the adversary; doubles are IEEE 754.
    Nothing is assumed of the mathematical library.

    **Not covered.** The time a call takes depends on the values drawn.
    """
    double, given = number("variance", variance, least=0, give=_GIVE_VARIANCE), unboxed(variance)
    exact = Fraction(given if isinstance(given, Rational) else double)
    if not (exact == 0 or _SMALLEST_VARIANCE <= exact <= _LARGEST_VARIANCE):
        raise ValueError(f"variance is {float(exact)!r}; give {_GIVE_VARIANCE}")
    flat = flattened(out, np.int64)
    if exact == 0:
        return
    # Cells of 2^p integers, the largest power of two that is at most σ/64.
    bits = max(0, (int(exact / CELLS**2).bit_length() - 1) // 2)
    sampler = Sampler(randomness, Grid(2 * exact / 4**bits, bits), size=len(flat))
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        draws = sampler.draw(len(part))
        values = draws.cells.astype(np.int64)
        if bits:
            values <<= bits
            draws.words[:] >>= np.uint64(64 - bits)
            values += draws.words.view(np.int64)
        for i, draw in draws.settled.items():
            values[i] = draw.sign * int((draw.cell + draw.place.low) * 2**bits)
        part += values
