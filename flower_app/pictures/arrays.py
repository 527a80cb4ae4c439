"""Pictures as numbers: NumPy's files, and tables of comma-separated values.

Messages of errors continue the file's name.
"""

import io

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError
from flower_app.pictures.decoding import Grey, from_16_bits, on_visible_ground
from flower_app.pictures.digits import SIDE

ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".tsv")
_PIXELS = SIDE * SIDE
_SHAPES = f"({SIDE}, {SIDE}), (n, {SIDE}, {SIDE}), (n, {_PIXELS}), or one picture (height, width)"
_COLOURS = (3, 4)  # without and with transparency
_CHANNELS = (1, *_COLOURS)
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's
_NOT_PIXELS = ("label", "class", "target", "digit", "y", "id", "index", "unnamed: 0", "")
"""Names of columns that hold no pixels."""
_ROUNDING = 1e-3
"""Of white: how far arithmetic may have taken pixels past their range."""
_NEARLY_BLACK = 32.0
"""Of 255: a drawing is not meant to stay below."""


def read_array(content: bytes) -> tuple[list[Grey], list[str]]:
    """The pictures in a NumPy file, and notes of changes.

    Raises
    ------
    DataError
        If it is damaged, or holds something else.
    """
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            names = array.files
            if "images" not in names and len(names) != 1:
                raise DataError(
                    f"holds {', '.join(names) or 'no array'}; save the pictures alone, or as images"
                )
            array = array["images" if "images" in names else names[0]]
    except DataError:
        raise
    except Exception as error:  # archives and headers fail in many ways
        raise DataError(f"cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError("holds no array")
    values, notes = _in_255(array)
    return _pictures(values, notes), notes


def _in_255(array: NDArray[np.generic]) -> tuple[Grey, list[str]]:
    """Numbers from 0 to 255, from any of the known ranges."""
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    if not (whole or np.issubdtype(array.dtype, np.floating)):
        raise DataError(f"holds {array.dtype}; give numbers from 0 to 255, or from 0 to 1")
    if array.size == 0:
        raise DataError(f"holds no picture: its shape is {array.shape}")
    values = array.astype(np.float64)
    notes: list[str] = []
    if not np.isfinite(values).all():
        raise DataError("holds numbers that are not finite; give 0 to 255, or 0 to 1")
    if not whole:
        values, notes = _clipped(values)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535 or (high > 255 and not whole):
        raise DataError(
            f"holds numbers from {low:g} to {high:g}; give 0 to 255, or 0 to 1 (undo a "
            "normalisation)"
        )
    if high > 255:
        grey, note = from_16_bits(values)
        return grey, [note]
    if 0 < high <= 1:
        return values * 255, [*notes, "its numbers from 0 to 1 read as black to white"]
    fractions = bool((values != np.rint(values)).any())
    if fractions and (high < _NEARLY_BLACK or _mostly_within_1(values)):
        raise DataError(
            f"holds fractions, and numbers up to {high:g}, which are neither 0 to 1 nor 0 to 255 "
            "(of which they would be nearly black); scale or clip them to one of these"
        )
    if 0 < high < _NEARLY_BLACK:
        notes.append(f"its numbers from {low:g} to {high:g} taken of 255, which is nearly black")
    return values, notes


def _clipped(values: Grey) -> tuple[Grey, list[str]]:
    """Fractions that rounding has taken past 0, 1 or 255, clipped."""
    low, high = float(values.min()), float(values.max())
    white = next((top for top in (1.0, 255.0) if high <= top * (1 + _ROUNDING)), None)
    if white is None or low < -white * _ROUNDING or (low >= 0 and high <= white):
        return values, []
    note = f"its numbers from {low:.9g} to {high:.9g} clipped to 0 to {white:g}"
    return values.clip(0.0, white), [note]


def _mostly_within_1(values: Grey) -> bool:
    """Whether hardly any of the drawn pixels is above 1."""
    drawn = values[values > 0.01]
    return float((drawn > 1).mean()) < 0.05


def _pictures(values: Grey, notes: list[str]) -> list[Grey]:
    """One picture or several, by the array's shape."""
    shape = values.shape
    _refuse_other_orders(shape)
    if shape == (_PIXELS,) or (len(shape) == 2 and shape[1] == _PIXELS):
        return list(values.reshape(-1, SIDE, SIDE))
    if len(shape) == 2:
        return [values]
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return [_one_colour(values, notes)]
    if len(shape) == 3:
        if shape[0] in _COLOURS:
            notes.append(
                f"its shape {shape} read as {shape[0]} grey pictures, not as one in colour"
            )
        return list(values)
    if len(shape) == 4 and shape[1] in _CHANNELS and shape[3] not in _CHANNELS:
        values = np.moveaxis(values, 1, 3)
    if len(shape) == 4 and values.shape[3] in _CHANNELS:
        return [_one_colour(picture, notes) for picture in values]
    raise DataError(f"holds an array of shape {shape}; give {_SHAPES}")


def _refuse_other_orders(shape: tuple[int, ...]) -> None:
    """Refuse an order of axes that would be taken for another one."""
    remedy = None
    if len(shape) == 2 and shape[0] == _PIXELS != shape[1]:
        remedy = (
            f"transpose it to (n, {_PIXELS}), or, if it is one picture, give (1, height, width)"
        )
    elif len(shape) == 3 and shape[2] not in _CHANNELS:
        if shape[0] in _COLOURS and shape[1:] != (SIDE, SIDE):
            remedy = (
                "give (height, width, colours) for one picture in colour, or (n, height, width, 1) "
                "for grey ones"
            )
        elif shape[0] == shape[1] != shape[2]:
            remedy = "give (n, height, width), the number of pictures first"
    if remedy is not None:
        raise DataError(f"holds an array of shape {shape}, whose axes are not clear; {remedy}")


def _one_colour(picture: Grey, notes: list[str]) -> Grey:
    """Grey, from a picture (height, width, channels)."""
    channels = picture.shape[2]
    grey = picture[..., 0] if channels == 1 else picture[..., :3] @ _LUMINANCE
    if channels == 4 and picture[..., 3].min() < 255:
        grey, note = on_visible_ground(grey, picture[..., 3])
        notes.append(note)
    return grey


def read_table(text: str) -> tuple[list[Grey], list[str]]:
    """The pictures in comma-separated values, one a line or one of 28 lines, and notes of changes.

    A header is left out, and so is a column of labels, first or last.

    Raises
    ------
    DataError
        If it is something else.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError("is empty")
    mark = next((mark for mark in (",", ";", "\t") if mark in lines[0][1]), None)
    table = [
        (number, [cell.strip().strip('"') for cell in line.split(mark)]) for number, line in lines
    ]
    header = None
    if not all(_is_number(cell) for cell in table[0][1]):
        header = [cell.lower() for cell in table.pop(0)[1]]
        if not table:
            raise DataError("holds a line of names and no numbers")
    rows, columns = [], len(table[0][1])
    for number, cells in table:
        if len(cells) != columns:
            raise DataError(
                f"has {len(cells)} columns in line {number} and {columns} before; "
                f"give {_PIXELS} ({SIDE} by {SIDE} pixels) in every line"
            )
        try:
            rows.append(np.array(cells, dtype=np.float64))
        except ValueError as error:
            wrong = next(cell for cell in cells if not _is_number(cell))
            raise DataError(f"holds {wrong[:40]!r} in line {number}, which is no number") from error
    values = np.stack(rows)
    notes: list[str] = []
    if columns == _PIXELS + 1:
        values = _without_labels(values, header, notes)
    if values.shape[1] != _PIXELS and values.shape != (SIDE, SIDE):
        raise DataError(
            f"has {columns} columns; give {_PIXELS} ({SIDE} by {SIDE} pixels) in every "
            f"line, or {SIDE} lines of {SIDE}"
        )
    if np.isfinite(values).all() and bool((values == np.rint(values)).all()):
        values = values.astype(np.int64)
    scaled, more = _in_255(values)
    return _pictures(scaled, notes), notes + more


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _without_labels(values: Grey, header: list[str] | None, notes: list[str]) -> Grey:
    """The columns of pixels: all but the first or the last."""
    if header is not None and header[-1] in _NOT_PIXELS and header[0] not in _NOT_PIXELS:
        notes.append("its last column left out, which holds no pixels")
        return values[:, :-1]
    first, last = values[:, 0], values[:, -1]
    digits = bool(np.isin(first, range(10)).all()) and not last.any()
    if (header is not None and header[0] in _NOT_PIXELS) or (header is None and digits):
        notes.append("its first column left out, which holds no pixels")
        return values[:, 1:]
    raise DataError(
        f"has {_PIXELS + 1} columns, and it is not clear which one holds no pixels; leave it out, "
        "or name it label in a header"
    )
