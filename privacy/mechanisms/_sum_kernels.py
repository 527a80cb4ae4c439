"""Kernels that measure an update, and that scale it and add it, each in one reading of memory.

They compute in single precision as numpy does: what is added has the same bits, and squares are
summed in the same rows. Compiled by numba, where that is installed; ``_blockwise_updates`` loads
this module late.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from privacy.kernels import compiled
from privacy.mechanisms._blockwise_updates import ROW

Single = npt.NDArray[np.float32]

_FAR = np.float32(1 << 21)  # twice the largest radius: no sum in which such a cell was is kept


@compiled
def square(update: Single, reference: Single) -> np.float64:
    """The squared length of an update."""
    whole = update.size // ROW
    rows, rest = (whole, ROW), (1, update.size - whole * ROW)
    cut = whole * ROW
    return _square(update[:cut].reshape(rows), reference[:cut].reshape(rows)) + _square(
        update[cut:].reshape(rest), reference[cut:].reshape(rest)
    )


@partial(compiled, any_order=True)
def _square(update: Single, reference: Single) -> np.float64:
    """The same, of rows."""
    total = 0.0
    for k in range(update.shape[0]):
        row = np.float32(0)
        for i in range(update.shape[1]):
            difference = update[k, i] - reference[k, i]
            row += difference * difference
        total += np.float64(row)
    return np.float64(total)


@compiled
def add_cells(
    update: Single, reference: Single, scale: np.float32, total: npt.NDArray[np.int32]
) -> np.float64:
    """Add the cells of a scaled update, rounded toward zero.

    Returns
    -------
    float64
        The squared length of the scaled update. What lies beyond ±2²¹, or is NaN, counts here, but
        adds no cell: no number outside 32 bits is converted.
    """
    whole = update.size // ROW
    rows, rest = (whole, ROW), (1, update.size - whole * ROW)
    cut = whole * ROW
    return _add_cells(
        update[:cut].reshape(rows), reference[:cut].reshape(rows), scale, total[:cut].reshape(rows)
    ) + _add_cells(
        update[cut:].reshape(rest), reference[cut:].reshape(rest), scale, total[cut:].reshape(rest)
    )


@partial(compiled, any_order=True)
def _add_cells(
    update: Single, reference: Single, scale: np.float32, total: npt.NDArray[np.int32]
) -> np.float64:
    """The same, of rows."""
    square = 0.0
    for k in range(update.shape[0]):
        row = np.float32(0)
        for i in range(update.shape[1]):
            y = _scaled(update[k, i], reference[k, i], scale)
            row += y * y
            total[k, i] += np.int32(y if abs(y) <= _FAR else np.float32(0))
        square += np.float64(row)
    return np.float64(square)


@compiled
def add_scaled(
    update: Single, reference: Single, factor: np.float32, total: npt.NDArray[np.float64]
) -> None:
    """Add ``factor`` times an update, each product rounded to single precision first."""
    for i in range(update.size):
        total[i] += np.float64(_scaled(update[i], reference[i], factor))


@compiled
def in_units(integers: npt.NDArray[np.int64], cell: float, out: Single) -> None:
    """The integers in units of a cell, in double precision until they are kept."""
    for i in range(integers.size):
        out[i] = np.float32(np.float64(integers[i]) * cell)


@compiled
def _scaled(x: np.float32, reference: np.float32, factor: np.float32) -> np.float32:
    """In this order, whatever a kernel does with the terms of its sums."""
    return (x - reference) * factor
