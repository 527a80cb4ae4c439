"""Integer matrices times residues, as exact products of doubles.

A scalar product of a whole batch is the same small integer combination in every coefficient of
every polynomial, so that a layer is one matrix product over the ciphertexts' residues. Residues
are cut into limbs short enough that every sum stays below 2^53, where doubles are exact.
"""

from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]

_EXACT_BITS = 53
_BLOCK = 512


def matrix_product(
    weights: NDArray[np.float64], values: Residues, prime: int, threads: Executor | None = None
) -> Residues:
    """``weights`` @ ``values`` modulo ``prime``.

    Of integer ``weights`` (outputs, inputs) and residues (inputs, columns) below ``prime``, which
    has at most 60 bits. Columns are dealt to ``threads``.

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
    result = np.empty((len(weights), values.shape[1]), dtype=np.uint64)

    def work(start: int) -> None:
        part = slice(start, start + _BLOCK)
        result[:, part] = _block_product(weights, values[:, part], prime, limb)

    # A block of columns stays in the processor's cache.
    starts = range(0, values.shape[1], _BLOCK)
    for _ in map(work, starts) if threads is None else threads.map(work, starts):
        pass
    return result


def _block_product(
    weights: NDArray[np.float64], values: Residues, prime: int, limb: int
) -> Residues:
    mask = np.uint64((1 << limb) - 1)
    total = np.zeros((len(weights), values.shape[1]), dtype=np.uint64)
    for index in range(-(-prime.bit_length() // limb) - 1, -1, -1):
        part = (values >> np.uint64(limb * index)) & mask
        product = (weights @ part.astype(np.float64)).astype(np.int64)
        total = _shift(total, limb, prime) + (product % prime).astype(np.uint64)
        total -= np.where(total >= prime, np.uint64(prime), np.uint64(0))
    return total


def _shift(values: Residues, bits: int, prime: int) -> Residues:
    """``values``·2^bits modulo ``prime``: the quotient is guessed in doubles, then corrected."""
    for step in (*[32] * (bits // 32), bits % 32):
        guess = (values.astype(np.float64) * (2.0**step / prime)).astype(np.uint64)
        # Both products wrap around 2^64; their difference is small and therefore right.
        values = _corrected((values << np.uint64(step)) - guess * np.uint64(prime), prime)
    return values


def _corrected(difference: Residues, prime: int) -> Residues:
    """A residue that is at most one prime too small or too large, wrapped around 2^64."""
    rest = difference.view(np.int64)
    rest += np.where(rest < 0, prime, 0)
    rest -= np.where(rest >= prime, prime, 0)
    return rest.view(np.uint64)
