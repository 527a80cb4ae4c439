"""Operands with other rows than each other are refused: kernels do not look where arrays end."""

from collections.abc import Callable

import numpy as np
import pytest

from privacy.inference.ckks import Ciphertext, Extended, Ring
from privacy.inference.ckks._elementwise import ONE
from privacy.inference.ckks.ciphertexts import Weights

RING = Ring(4096, (36, 36, 37))


def zeros(level: int) -> Ciphertext:
    return Ciphertext(np.zeros((2, level, 4096)), 1.0)


def extended(level: int) -> Extended:
    return Extended(np.zeros((2, level + 1, 4096)), 1.0)


REFUSED: dict[str, Callable[[], object]] = {
    "add": lambda: RING.add(zeros(1), zeros(2)),
    "add fewer": lambda: RING.add(zeros(2), zeros(1)),
    "add_plain": lambda: RING.add_plain(zeros(1), RING.encode(1.0, 2.0**20, 2)),
    "multiply": lambda: RING.multiply(zeros(2), zeros(1)),
    "sum_of_products": lambda: RING.sum_of_products(zeros(1).alone(), zeros(2).alone(), ONE),
    "weighted_sum": lambda: RING.weighted_sum(
        zeros(2).alone(), Weights(ONE, np.zeros((1, 1, 4096)), 1.0)
    ),
    "add_extended": lambda: RING.add_extended(extended(1), extended(2)),
    "rescale": lambda: RING.rescale(zeros(1)),
    "at_level above": lambda: RING.at_level(zeros(1), 2),
    "at_level 0": lambda: RING.at_level(zeros(1), 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_are_not_there_are_not_read(name: str) -> None:
    with pytest.raises(ValueError, match=r"rows|prime left|cannot be brought"):
        REFUSED[name]()
