"""Fixed, public features of an image: 392 numbers that no data taught.

An image is straightened and moved to the middle, then described by histograms of oriented
gradients (Dalal and Triggs 2005, section 6): 7 × 7 cells of 4 × 4 pixels, 8 directions each, every
pixel's vote shared linearly between neighbouring directions and cells. The histograms of an image
are scaled to unit length together, their square roots taken (Arandjelović and Zisserman 2012,
section 3), and each cell's mean subtracted. At last the average of digits that were drawn by rule
is subtracted (``typical``): what all images share would take its part of every clipped update, and
of the noise, and tell nothing about which digit it is.

Nothing here depends on anybody's data, so computing it costs no privacy.
"""

import numpy as np
from numpy.typing import NDArray

from flower_app.data import typical

SIDE = 28
CELL = 4
CELLS = SIDE // CELL
DIRECTIONS = 8
FEATURES = CELLS * CELLS * DIRECTIONS

_LOW = -((DIRECTIONS - 1) ** 0.75) / DIRECTIONS
"""Before the average is subtracted: one direction is empty, the other 7 hold all the length."""

_HIGH = 1 - 1 / DIRECTIONS
"""One direction of one cell holds all the length."""

FEATURE_LOW = _LOW - max(typical.FEATURES) / 100
"""The least a feature can be."""

FEATURE_HIGH = _HIGH - min(typical.FEATURES) / 100
"""The most a feature can be."""

_MIDDLE = (SIDE - 1) / 2
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
# (7, 28): how much each pixel's row, or column, gives to each cell's; a triangle as wide as two
# cells around the cell's middle.
_CENTRES = (np.arange(CELLS) + 0.5) * CELL - 0.5
_SHARES = np.maximum(0, 1 - np.abs(np.arange(SIDE) - _CENTRES[:, None]) / CELL).astype(np.float32)


def upright(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shear images so that their ink's axis stands upright, and move the ink to the middle.

    Takes uint8 (n, 28, 28), returns float32 of that shape from 0 to 1. An image without ink stays
    empty.
    """
    straightened = np.zeros(images.shape, np.float32)
    for image, out in zip(images, straightened, strict=True):
        _straighten(image / 255.0, out)
    return np.clip(straightened, 0, 1)


def hog_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features, float32 (n, 392), of images, uint8 (n, 28, 28).

    Each is from ``FEATURE_LOW`` to ``FEATURE_HIGH``.
    """
    features = gradient_features(images)
    features -= np.array(typical.FEATURES, np.float32) / 100
    return features


def gradient_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return features before the average is subtracted, float32 (n, 392).

    The 8 of a cell sum to 0, and the length of a row is at most 392 ** 0.25 = 4.45. An image
    without ink gives zeros.
    """
    histograms = _histograms(upright(images))
    length = np.sqrt(np.square(histograms).sum(axis=1, keepdims=True))
    cells = np.sqrt(histograms / np.where(length > 0, length, 1)).reshape(-1, DIRECTIONS)
    cells -= cells.mean(axis=1, keepdims=True)
    np.clip(cells, _LOW, _HIGH, out=cells)
    return cells.reshape(len(images), FEATURES)


def _straighten(ink: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    total = ink.sum()
    if total == 0:
        return
    row, column = (ink * _ROWS).sum() / total, (ink * _COLUMNS).sum() / total
    down = _ROWS - row
    spread = (ink * down * down).sum()
    slant = (ink * down * (_COLUMNS - column)).sum() / spread if spread > 0 else 0.0
    # Where the ink of each pixel comes from; between four pixels, in proportion.
    rows = np.broadcast_to(_ROWS + (row - _MIDDLE), ink.shape)
    columns = _COLUMNS + (column - _MIDDLE) + slant * (_ROWS - _MIDDLE)
    inside = (rows >= 0) & (rows <= SIDE - 1) & (columns >= 0) & (columns <= SIDE - 1)
    rows, columns = rows[inside], columns[inside]
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    below, right = np.minimum(top + 1, SIDE - 1), np.minimum(left + 1, SIDE - 1)
    down, along = rows - top, columns - left
    upper = (1 - along) * ink[top, left] + along * ink[top, right]
    lower = (1 - along) * ink[below, left] + along * ink[below, right]
    out[inside] = (1 - down) * upper + down * lower


def _histograms(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the unscaled histograms, float32 (n, 392), of images, float32 (n, 28, 28)."""
    down = np.zeros_like(images)
    right = np.zeros_like(images)
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    right[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    strength = np.hypot(right, down)
    direction = np.arctan2(down, right) * np.float32(DIRECTIONS / (2 * np.pi)) % DIRECTIONS
    cells = np.empty((len(images), CELLS, CELLS, DIRECTIONS), np.float32)
    for k in range(DIRECTIONS):
        away = np.abs(direction - k)
        votes = np.maximum(0, 1 - np.minimum(away, DIRECTIONS - away)) * strength
        cells[..., k] = _SHARES @ votes @ _SHARES.T
    return cells.reshape(len(images), FEATURES)
