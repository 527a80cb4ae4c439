"""Errors and short keys of encryption under ring-LWE: centred binomial and ternary."""

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import whole
from privacy.mechanisms.randomness import Randomness

_HALF = 21
"""Bits of each of the two sums of a centred binomial draw, as in SEAL: variance 21/2."""
_MASK = np.uint64((1 << _HALF) - 1)
_SPARE = 64


def centred_binomial(size: int, randomness: Randomness) -> NDArray[np.float64]:
    """Whole numbers between -21 and 21 with variance 21/2 (standard deviation 3.24), shape (size,).

    The difference of two sums of 21 fair bits: SEAL's error distribution, and for 2 and 3 bits
    that of ML-KEM (FIPS 203, section 4.2.2).

    Notes
    -----
    **Guarantee.** Exact draws of that distribution from uniform bits. Every draw takes the same
    steps: no branch and no address depends on its value.

    **Assumptions.** ``randomness`` gives independent uniform bits, for encryption from
    :class:`SystemRandomness`. Ring-LWE with errors of this width is as hard as the Homomorphic
    Encryption Standard (2018) estimates for a Gaussian of standard deviation 8/sqrt(2π) = 3.19.

    **Not covered.** Draws that numpy leaves in memory it has freed, and processors on which an
    addition or a count of bits takes longer for some numbers than for others.
    """
    draws = randomness.uint64(whole("size", size, least=0))
    ones, others = (np.bitwise_count(half & _MASK) for half in (draws, draws >> np.uint64(_HALF)))
    return np.asarray(ones.astype(np.float64) - others.astype(np.float64))


def ternary(size: int, randomness: Randomness) -> NDArray[np.float64]:
    """Independent numbers from -1, 0 and 1, each with probability 1/3, shape (size,).

    Notes
    -----
    **Guarantee.** Exact draws: of 256 values of a byte, 255 are shared equally and one is drawn
    anew, which tells nothing of the numbers that are used. No branch and no address depends on
    those.

    **Assumptions** and **Not covered**: as :func:`centred_binomial`.
    """
    size = whole("size", size, least=0)
    result = np.empty(0)
    while len(result) < size:
        draws = np.frombuffer(randomness.bytes(size - len(result) + _SPARE), dtype=np.uint8)
        fitting = draws[draws < 255].astype(np.uint16)
        # A division by three that takes the same time for every byte.
        values = fitting - 3 * (fitting * np.uint16(171) >> np.uint16(9))
        result = np.concatenate([result, values.astype(np.float64) - 1.0])
    return result[:size]
