"""Draws from the operating system's randomness."""

import os

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri


def gaussian(size: int, *, sigma: float) -> NDArray[np.float64]:
    """Gaussian noise of standard deviation ``sigma``, shape (size,)."""
    words = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(11)
    drawn: NDArray[np.float64] = ndtri((words + 0.5) * 2.0**-53) * sigma
    return drawn


def poisson_rows(records: int, *, sampling_rate: float) -> NDArray[np.int64]:
    """The rows of a Poisson batch: each of ``records`` with chance ``sampling_rate``, ascending.

    The chance is rounded down to a multiple of 2^-64.
    """
    words = np.frombuffer(os.urandom(8 * records), dtype=np.uint64)
    return np.flatnonzero(words < np.uint64(int(sampling_rate * 2**64)))
