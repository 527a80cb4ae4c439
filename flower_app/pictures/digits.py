"""From a grey picture of any size to 28 by 28 pixels, light on dark, as MNIST's were made."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flower_app.errors import DataError
from flower_app.pictures.decoding import Grey

Fit = Literal["digit", "whole", "exact"]
FITS: tuple[Fit, ...] = get_args(Fit)

SIDE = 28
_BOX = 20  # the box of MNIST's digits, whose centre of mass is in the middle
_LEAST_SIDE = 8
_WORKING_SIDE = 256  # larger pictures are scaled down to it first, which removes noise
_LEAST_CONTRAST = 32.0
_CLEAN = 32.0  # a background so close to black or white stays as it is
_STROKE = 1.5  # least width of a stroke, in pixels of the result
_SPECK = 0.05  # of the largest stroke's area: smaller parts are dirt


def prepare(grey: Grey, fit: Fit) -> tuple[NDArray[np.uint8], list[str]]:
    """Make a picture like those that a model of digits was trained on.

    Parameters
    ----------
    grey : ndarray
    fit : {"digit", "whole", "exact"}
        Cut out the drawing and centre it, as MNIST's makers did; or scale the picture as a whole;
        or take pixels as they are. Pictures of 28 by 28 are not cut out. In the first two a dark
        drawing on a light ground is inverted.

    Returns
    -------
    pixels : ndarray of uint8, shape (28, 28)
    notes : list of str
        Of changes.

    Raises
    ------
    DataError
        If there is nothing to see, or too little; the message continues the picture's name.
    """
    height, width = grey.shape
    right_size = grey.shape == (SIDE, SIDE)
    if fit == "exact":
        if not right_size:
            raise DataError(f"has {width} by {height} pixels; --fit exact takes {SIDE} by {SIDE}")
        return _whole_numbers(grey), []
    if min(height, width) < _LEAST_SIDE:
        raise DataError(f"has {width} by {height} pixels, too few to show anything")
    notes: list[str] = []
    if not right_size:
        grey = _reduced(grey)
    low, high = float(grey.min()), float(grey.max())
    if low == high:
        raise DataError("is blank: all of its pixels are equally light")
    if high - low < _LEAST_CONTRAST:
        raise DataError(
            f"is blank, or too faint: its pixels lie between {low:.0f} and {high:.0f}, where 0 is "
            "black and 255 white; raise its contrast"
        )
    ring = _ring(grey)
    ground = float(np.median(ring))
    unrest = float(np.percentile(np.abs(ring - ground), 90))  # of most of the background
    drawn = grey - ground
    dark = _is_dark_on_light(grey, drawn)
    if dark:
        notes.append("dark on light, so inverted")
    if right_size and (255.0 - ground if dark else ground) <= _CLEAN:
        return _whole_numbers(255.0 - grey if dark else grey), notes
    level = _levels(-drawn if dark else drawn, unrest)
    if right_size:
        return _whole_numbers(255.0 * level), [*notes, "grey background taken out"]
    if fit == "whole":
        return _squared(level), [*notes, f"scaled from {width} by {height} pixels"]
    digit, thickened = _centred(level)
    notes.append(f"cut out of {width} by {height} pixels, scaled and centred")
    if thickened:
        notes.append("its thin strokes made wider")
    return digit, notes


def _whole_numbers(grey: Grey) -> NDArray[np.uint8]:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _resized(grey: Grey, height: int, width: int) -> Grey:
    """Scaled; where it shrinks, every pixel of the source counts."""
    picture = Image.fromarray(grey.astype(np.float32))
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float64)


def _reduced(grey: Grey) -> Grey:
    factor = _WORKING_SIDE / max(grey.shape)
    if factor >= 1:
        return grey
    height, width = (max(1, round(side * factor)) for side in grey.shape)
    return _resized(grey, height, width)


def _ring(grey: Grey) -> Grey:
    """The pixels at the edge."""
    width = max(1, min(grey.shape) // 16)
    inside = np.zeros(grey.shape, dtype=bool)
    inside[width:-width, width:-width] = True
    return grey[~inside]


def _is_dark_on_light(grey: Grey, drawn: Grey) -> bool:
    """Whether the drawing is darker than its ground.

    Ring and corners must agree on a light ground: a light garment may fill the ring.
    """
    middle = (grey.min() + grey.max()) / 2
    size = max(1, min(grey.shape) // 16)
    ends = (slice(None, size), slice(-size, None))
    corners = np.median([np.median(grey[rows, columns]) for rows in ends for columns in ends])
    darkest, lightest = -drawn.min(), drawn.max()
    if min(darkest, lightest) < _LEAST_CONTRAST / 2:  # there is one side only
        return bool(darkest > lightest)
    below, above = np.square(np.minimum(drawn, 0)).sum(), np.square(np.maximum(drawn, 0)).sum()
    return bool(below > above and corners > middle and np.median(_ring(grey)) > middle)


def _levels(drawn: Grey, unrest: float) -> Grey:
    """Levels from 0, the background with its shadows, to 1."""
    peak = float(drawn.max())
    low = min(2 * unrest, 0.4 * peak)
    return np.clip((drawn - low) / (peak - low), 0.0, 1.0)


def _squared(level: Grey) -> NDArray[np.uint8]:
    size = max(level.shape)
    square = np.zeros((size, size))
    top, left = ((size - side) // 2 for side in level.shape)
    square[top : top + level.shape[0], left : left + level.shape[1]] = level
    return _whole_numbers(255.0 * _resized(square, SIDE, SIDE))


def _centred(level: Grey) -> tuple[NDArray[np.uint8], bool]:
    """The drawing in MNIST's box, centred by its mass, and whether its strokes were widened."""
    from scipy import ndimage  # takes as long to load as an answer

    level = _without_specks(level)
    scale = _BOX / max(side.stop - side.start for side in _box(level))
    stroke = 2 * float(ndimage.distance_transform_edt(level > 0.5).max())
    wider = round(_STROKE / scale - stroke)
    if wider > 0:
        level = ndimage.maximum_filter(np.pad(level, wider), size=wider + 1)
    rows, columns = _box(level)
    drawing = level[rows, columns]
    scale = _BOX / max(drawing.shape)
    height, width = (max(1, round(side * scale)) for side in drawing.shape)
    small = _resized(drawing, height, width)
    small *= 255.0 / small.max()
    centre = ndimage.center_of_mass(small)
    top, left = (
        int(np.clip(round(SIDE / 2 - at), 0, SIDE - side))
        for at, side in zip(centre, small.shape, strict=True)
    )
    digit = np.zeros((SIDE, SIDE))
    digit[top : top + height, left : left + width] = small
    return _whole_numbers(digit), wider > 0


def _box(level: Grey) -> tuple[slice, slice]:
    """The rows and columns of the drawing."""
    rows, columns = (np.flatnonzero((level > 0.2).any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _without_specks(level: Grey) -> Grey:
    from scipy import ndimage

    parts, count = ndimage.label(level > 0.2, structure=np.ones((3, 3)))
    areas = ndimage.sum_labels(level, parts, np.arange(1, count + 1))
    specks = 1 + np.flatnonzero(areas < _SPECK * areas.max())
    return np.where(np.isin(parts, specks), 0.0, level)
