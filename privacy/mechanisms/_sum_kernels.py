"""Kernels that scale an update and add it in one reading of memory, to the same bits as numpy.

Compiled by numba, where that is installed; ``_blockwise_updates`` loads this module late.
"""

import numpy as np
import numpy.typing as npt

from privacy.kernels import compiled

Single = npt.NDArray[np.float32]

_FAR = np.float32(1 << 21)  # twice the largest radius: no sum in which such a cell was is kept


@compiled
def shift_cells(
    update: Single,
    reference: Single,
    scale: np.float32,
    sign: np.int32,
    total: npt.NDArray[np.int32],
) -> np.int64:
    """Add ``sign`` times the cells of an update, rounded toward zero.

    Returns
    -------
    int64
        The sum of the cells' squares, exact for 2²¹ of them. A cell beyond ±2²¹, NaN too, counts
        and is added as one of these: no number outside 32 bits is converted.
    """
    squares = np.int64(0)
    for i in range(update.size):
        y = (update[i] - reference[i]) * scale
        if not y > -_FAR:
            y = -_FAR
        if y > _FAR:
            y = _FAR
        cell = np.int32(y)
        total[i] += sign * cell
        squares += np.int64(cell) * np.int64(cell)
    return squares


@compiled
def add_scaled(
    update: Single, reference: Single, factor: np.float32, total: npt.NDArray[np.float64]
) -> None:
    """Add ``factor`` times an update, each product rounded to single precision first."""
    for i in range(update.size):
        total[i] += np.float64((update[i] - reference[i]) * factor)
