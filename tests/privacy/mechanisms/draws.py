"""Noise by itself: what is added to zeros."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms import (
    Randomness,
    add_discrete_gaussian,
    add_gaussian,
    add_rounded_gaussian,
)


def gaussian(size: int, *, sigma: float, randomness: Randomness) -> NDArray[np.float64]:
    noise = np.zeros(size)
    add_gaussian(noise, sigma=sigma, randomness=randomness)
    return noise


def rounded_gaussian(size: int, *, sigma: float, randomness: Randomness) -> NDArray[np.int64]:
    noise = np.zeros(size, dtype=np.int64)
    add_rounded_gaussian(noise, sigma=sigma, randomness=randomness)
    return noise


def discrete_gaussian(
    size: int, *, variance: Fraction | float, randomness: Randomness
) -> NDArray[np.int64]:
    noise = np.zeros(size, dtype=np.int64)
    add_discrete_gaussian(noise, variance=variance, randomness=randomness)
    return noise
