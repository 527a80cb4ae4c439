"""Noise by itself: what is added to zeros."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms import (
    Randomness,
    SeededRandomness,
    add_discrete_gaussian,
    add_gaussian,
    add_rounded_gaussian,
)
from privacy.mechanisms._proposal_table import table_for


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


class FarOut(SeededRandomness):
    """A seed whose proposals all lie beyond the cells of the table, and are accepted."""

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Codes 1…1, which no cell takes."""
        super().fill(out)
        out[-(len(out) // 10) * 2 :] = 255

    def bytes(self, count: int) -> bytes:
        """For questions: 32 zeros against which to accept, and the selector of the tail."""
        if count < 16:
            return super().bytes(count)
        asked = count // 6
        table = table_for()
        tail = int(np.flatnonzero(table.by_selector == table.tail)[0])
        return bytes(4 * asked) + np.full(asked, tail, dtype=np.uint16).tobytes()
