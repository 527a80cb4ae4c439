"""Images of a data owner: pictures, arrays, tables, folders of them, or standard input."""

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError
from flower_app.pictures.arrays import ARRAYS, TABLES, read_array, read_table
from flower_app.pictures.decoding import Grey, NoPictureError, read_picture
from flower_app.pictures.digits import Fit, prepare
from flower_app.pictures.endings import PICTURES

STDIN = Path("-")
_KNOWN = PICTURES + ARRAYS + TABLES
_MOST_BYTES = 1 << 28
_NPY, _ZIP, _HEIC = b"\x93NUMPY", b"PK\x03\x04", b"ftyp"
_KINDS = "a picture (PNG, JPEG, GIF, BMP, TIFF, WebP), an array (.npy, .npz) or a table (.csv)"


def find_images(path: Path, *, notify: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The files at a path, in order of their names; standard input for ``-``.

    Parameters
    ----------
    path : Path
    notify : callable
        Receives a line about files in a folder that are left out.

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
    visible = [file for file in inside if not file.name.startswith(".")]
    images = [file for file in visible if file.suffix.lower() in _KNOWN]
    endings = ", ".join(_KNOWN)
    if not images:
        raise DataError(f"{path} holds no images; they end in {endings}")
    if len(images) < len(visible):
        notify(f"{path}: {len(visible) - len(images)} left out that end in none of {endings}")
    return images


def read_images(
    path: Path, *, fit: Fit = "digit", notify: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, NDArray[np.uint8] | DataError]]:
    """The images in a file, each a name and uint8 (28, 28), or the reason why it is none.

    Parameters
    ----------
    path : Path
        ``-`` for standard input.
    fit : {"digit", "whole", "exact"}
        See :func:`flower_app.pictures.digits.prepare`.
    notify : callable
        Receives a line about each changed image; of several that were changed alike, about the
        first.

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
    several = len(images) > 1
    notified: set[tuple[str, ...]] = set()
    for index, grey in enumerate(images):
        label = f"{name}[{index}]" if several else name
        try:
            pixels, notes = prepare(grey, fit)
        except DataError as error:
            yield label, DataError(f"{label} {error}")
            continue
        changes = (*dict.fromkeys([*common, *notes]),)
        if changes and changes not in notified:
            notified.add(changes)
            more = " (and others of this file alike)" if several else ""
            notify(f"{label}: {'; '.join(changes)}{more}")
        yield label, pixels


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
    """The images in the bytes, by how they begin rather than by the file's name."""
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
