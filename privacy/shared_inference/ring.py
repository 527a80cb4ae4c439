"""Integers modulo 2^64: matrix products and shares.

NumPy's unsigned 64-bit integers wrap as the ring does; its matrix products of them are slow, so
products are kernels of ours. A value has shape (elements, batch): the images of a batch lie side by
side, and one instruction works on eight of them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.kernels import compiled
from privacy.mechanisms.randomness import KeyStream

Ring = NDArray[np.uint64]
"""Elements of the ring."""
Buffer = bytes | memoryview
"""Bytes, maybe many: they are not copied."""
SEED_BYTES = 32
_STRIP = 512
"""Images that are multiplied together, so that what is read and written stays in the cache."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Where a matrix may have entries: everywhere, or at places that the architecture fixes.

    Attributes
    ----------
    rows, columns : int
    pointers, indices : ndarray of int32, optional
        As in a CSR matrix, shapes (rows + 1,) and (entries,); None for everywhere.
    """

    rows: int
    columns: int
    pointers: NDArray[np.int32] | None = None
    indices: NDArray[np.int32] | None = None

    @property
    def entries(self) -> int:
        """How many entries a matrix has."""
        return self.rows * self.columns if self.indices is None else len(self.indices)

    def multiply(self, data: Ring, values: Ring, total: Ring) -> None:
        """Add a matrix times ``values`` to ``total``.

        Parameters
        ----------
        data : ndarray of uint64, shape (entries,)
            The matrix, row by row.
        values, total : ndarray of uint64, shapes (columns, batch) and (rows, batch)
            Contiguous.
        """
        if self.pointers is None or self.indices is None:
            matrix = data.reshape(self.rows, self.columns)
            if values.shape[1] == 1:
                _dense_vector(matrix, values[:, 0], total[:, 0])
            else:
                _dense(matrix, values, total)
        elif values.shape[1] == 1:
            _sparse_vector(self.pointers, self.indices, data, values[:, 0], total[:, 0])
        else:
            _sparse(self.pointers, self.indices, data, values, total)


class Stream:
    """Elements that a seed of 32 bytes determines, to others as random ones: AES-256's key stream.

    Parameters
    ----------
    seed : bytes
    """

    def __init__(self, seed: bytes) -> None:
        self._stream = KeyStream(seed)

    def take(self, *shape: int) -> Ring:
        """The next elements."""
        drawn = np.frombuffer(self._stream.bytes(8 * math.prod(shape)), dtype="<u8")
        return drawn.astype(np.uint64, copy=False).reshape(shape)


def as_ring(values: NDArray[np.float64]) -> Ring:
    """Whole numbers in doubles, below 2^63 in magnitude, as elements of the ring."""
    return values.astype(np.int64).astype(np.uint64)


def quantised(inputs: NDArray[np.float64], bits: int) -> Ring:
    """Inputs (images, ...) in fixed point with ``bits`` after it: (elements, images)."""
    return np.ascontiguousarray(as_ring(np.rint(inputs.reshape(len(inputs), -1).T * 2.0**bits)))


def as_signed(values: Ring) -> NDArray[np.int64]:
    """Elements as integers from -2^63 to 2^63 - 1."""
    return values.astype(np.int64)


@compiled
def _dense_vector(matrix: Ring, values: Ring, total: Ring) -> None:
    for row in range(matrix.shape[0]):
        line = matrix[row]
        added = np.uint64(0)
        for column in range(len(values)):
            added += line[column] * values[column]
        total[row] += added


@compiled
def _dense(matrix: Ring, values: Ring, total: Ring) -> None:
    rows, columns = matrix.shape
    batch = values.shape[1]
    for start in range(0, batch, _STRIP):
        end = min(start + _STRIP, batch)
        whole = rows - rows % 4
        for row in range(0, whole, 4):
            # Four rows at once: a value is read once for four products.
            first, second = total[row, start:end], total[row + 1, start:end]
            third, fourth = total[row + 2, start:end], total[row + 3, start:end]
            for column in range(columns):
                line = values[column, start:end]
                a, b = matrix[row, column], matrix[row + 1, column]
                c, d = matrix[row + 2, column], matrix[row + 3, column]
                for image in range(end - start):
                    value = line[image]
                    first[image] += a * value
                    second[image] += b * value
                    third[image] += c * value
                    fourth[image] += d * value
        for row in range(whole, rows):
            first = total[row, start:end]
            for column in range(columns):
                line, a = values[column, start:end], matrix[row, column]
                for image in range(end - start):
                    first[image] += a * line[image]


@compiled
def _sparse_vector(
    pointers: NDArray[np.int32], indices: NDArray[np.int32], data: Ring, values: Ring, total: Ring
) -> None:
    for row in range(len(pointers) - 1):
        added = np.uint64(0)
        for entry in range(pointers[row], pointers[row + 1]):
            added += data[entry] * values[indices[entry]]
        total[row] += added


@compiled
def _sparse(
    pointers: NDArray[np.int32], indices: NDArray[np.int32], data: Ring, values: Ring, total: Ring
) -> None:
    batch = values.shape[1]
    for start in range(0, batch, _STRIP):
        end = min(start + _STRIP, batch)
        for row in range(len(pointers) - 1):
            sums = total[row, start:end]
            for entry in range(pointers[row], pointers[row + 1]):
                weight, line = data[entry], values[indices[entry], start:end]
                for image in range(end - start):
                    sums[image] += weight * line[image]
