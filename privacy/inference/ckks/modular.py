"""Integer matrices times residues, as exact products of doubles.

A scalar product of a whole batch is the same small integer combination in every coefficient of
every polynomial, so that a layer is one matrix product over the ciphertexts' residues. Residues
are cut into limbs short enough that every sum stays below 2^53, where doubles are exact.
"""

from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._elementwise import product, reduced
from privacy.inference.ckks.transforms import Values
from privacy.kernels import compiled

Residues = NDArray[np.uint64]

_EXACT_BITS = 53
_BLOCK = 512


def matrix_product(
    weights: NDArray[np.float64], values: Residues, prime: int, threads: Executor | None = None
) -> Residues:
    """``weights`` @ ``values`` modulo ``prime``.

    Of integer ``weights`` (outputs, inputs) and residues (inputs, columns) below ``prime``, which
    has at most 50 bits. Columns are dealt to ``threads``.

    Raises
    ------
    ValueError
        If the weights are so large that a limb of one bit would not be exact.
    """
    bits = prime.bit_length()
    largest = int(np.abs(weights).sum(axis=1).max(initial=0.0))
    limb = min(bits, _EXACT_BITS - largest.bit_length())
    if limb < 1:
        raise ValueError(f"weights sum to {largest} in a row; 2^{_EXACT_BITS - 1} is the most")
    limbs = -(-bits // limb)
    factors = np.array([pow(2, limb * index, prime) for index in range(limbs)], dtype=np.float64)
    factors -= np.where(factors > prime // 2, float(prime), 0.0)
    result = np.empty((len(weights), values.shape[1]), dtype=np.uint64)
    given = values.view()
    given.flags.writeable = False  # as those of a message are: kernels are compiled once for both

    def work(start: int) -> None:
        stop = min(start + _BLOCK, values.shape[1])
        parts = np.empty((limbs, values.shape[0], stop - start))
        _cut(parts, given, start, 2.0**limb)
        _join(result, start, np.matmul(weights, parts), factors, float(prime))

    # A block of columns stays in the processor's cache.
    starts = range(0, values.shape[1], _BLOCK)
    for _ in map(work, starts) if threads is None else threads.map(work, starts):
        pass
    return result


@compiled
def _cut(parts: Values, values: Residues, start: int, size: float) -> None:
    """Limbs (limbs, inputs, columns) of residues from a column on, the lowest first."""
    for index in range(parts.shape[0]):
        unit = 1.0 / size**index
        for row in range(parts.shape[1]):
            for n in range(parts.shape[2]):
                # Powers of two divide doubles exactly.
                shifted = np.floor(float(values[row, start + n]) * unit)
                parts[index, row, n] = shifted - np.floor(shifted / size) * size


@compiled
def _join(result: Residues, start: int, products: Values, factors: Values, prime: float) -> None:
    """The sum of each limb's products, below 2^53 in size, times its factor, modulo the prime.

    Factors are centred; a product is at most 2q in size (``transforms``), and so is a sum of two.
    """
    inverse = 1.0 / prime
    limbs, rows, columns = products.shape
    sums = np.empty(columns)
    for row in range(rows):
        for n in range(columns):
            sums[n] = reduced(products[0, row, n], prime, inverse)
        for index in range(1, limbs):
            factor = factors[index]
            for n in range(columns):
                term = product(products[index, row, n], factor, prime, inverse)
                sums[n] = reduced(sums[n] + term, prime, inverse)
        for n in range(columns):
            result[row, start + n] = np.uint64(sums[n])
