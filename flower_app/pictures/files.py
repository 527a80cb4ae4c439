"""Images from a data owner's disk: pictures, arrays, tables, folders of them, or standard input."""

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError
from flower_app.pictures.arrays import ARRAYS, TABLES, read_array, read_table
from flower_app.pictures.decoding import PICTURES, NoPictureError, read_picture
from flower_app.pictures.digits import Fit, Grey, prepare

STDIN = Path("-")
_KNOWN = PICTURES + ARRAYS + TABLES
_MOST_BYTES = 1 << 28
_NPY, _ZIP, _HEIC = b"\x93NUMPY", b"PK\x03\x04", b"ftyp"
_KINDS = "a picture (PNG, JPEG, GIF, BMP, TIFF, WebP), an array (.npy, .npz) or a table (.csv)"


def find_images(path: Path, *, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The files at a path, in order of their names; standard input for ``-``.

    Parameters
    ----------
    path : Path
    say : callable
        Is given a line about files in a folder that are left out.

    Raises
    ------
    DataError
        If there is none.
    """
    if path == STDIN:
        return [path]
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
        inside = sorted(path.iterdir()) if folder else []
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; give {_KINDS}, a folder of them, or -") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not folder:
        return [path]
    shown = [file for file in inside if not file.name.startswith(".")]
    found = [file for file in shown if file.suffix.lower() in _KNOWN]
    if not found:
        raise DataError(f"{path} holds no images; they end in {', '.join(_KNOWN)}")
    if len(found) < len(shown):
        say(f"{path}: {len(shown) - len(found)} left out that end in none of {', '.join(_KNOWN)}")
    return found


def read_images(
    path: Path, *, fit: Fit = "digit", say: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, NDArray[np.uint8] | DataError]]:
    """The images in a file, each uint8 (28, 28) with a name, or why one is none.

    Parameters
    ----------
    path : Path
        ``-`` for standard input.
    fit : {"digit", "whole", "exact"}
        How pictures are made 28 by 28; see :func:`flower_app.pictures.digits.prepare`.
    say : callable
        Is given a line about each image that was changed; of several in one file that were changed
        alike, about the first.

    Raises
    ------
    DataError
        If the file cannot be read, or holds something else.
    """
    name = "standard input" if path == STDIN else path.name
    try:
        images, common = _decoded(path, _content(path))
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    told: set[tuple[str, ...]] = set()
    for index, grey in enumerate(images):
        each = f"{name}[{index}]" if len(images) > 1 else name
        try:
            pixels, notes = prepare(grey, fit)
        except DataError as error:
            yield each, DataError(f"{each} {error}")
            continue
        changes = (*dict.fromkeys([*common, *notes]),)
        if changes and changes not in told:
            told.add(changes)
            more = " (and others of this file alike)" if len(images) > 1 else ""
            say(f"{each}: {'; '.join(changes)}{more}")
        yield each, pixels


def _content(path: Path) -> bytes:
    try:
        if path == STDIN:
            if sys.stdin.isatty():
                raise DataError("is a terminal; pipe an image into it, or name a file")
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise DataError("is empty")
    if len(content) > _MOST_BYTES:
        raise DataError(f"has more than {_MOST_BYTES >> 20} MB; give it in parts")
    return content


def _decoded(path: Path, content: bytes) -> tuple[list[Grey], list[str]]:
    """What the bytes hold, by what they begin with rather than by the file's name."""
    if content.startswith((_NPY, _ZIP)):
        return read_array(content)
    try:
        grey, notes = read_picture(content)
    except NoPictureError as error:
        if content[4:8] == _HEIC:
            raise DataError("is HEIC or AVIF, which is not read here; save it as JPEG") from error
        suffix = path.suffix.lower()
        if suffix in PICTURES + ARRAYS:
            raise DataError(f"cannot be read: it is damaged, or no {suffix[1:]} file") from error
        text = _text(content)
        if text is None or text.lstrip().startswith("<"):
            raise DataError(f"is not {_KINDS}") from error
        return read_table(text)
    return [grey], notes


def _text(content: bytes) -> str | None:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
