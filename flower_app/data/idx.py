"""IDX, the file format of MNIST: a magic number, the sizes (big-endian), then the bytes."""

import gzip
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError

_UNSIGNED_BYTES = 0x08


def read_plain(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in ``.gz``; ``DataError`` if it cannot be."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); replace it") from error


def plain_or_packed(places: Iterable[Path], name: str) -> Path | None:
    """The first file of this name, with or without ``.gz``, in one of the places."""
    paths = (place / (name + end) for place in places for end in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)


def from_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in a decompressed IDX file, read-only, without a copy.

    Raises
    ------
    DataError
        If ``content`` is not IDX, holds something else than unsigned bytes, or has another
        length than its header says. It calls the file ``name``.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{name} is not an IDX file: it starts with {content[:4]!r}; replace it")
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTES or not 1 <= dimensions <= 3:
        raise DataError(
            f"{name} holds IDX type 0x{kind:02x} in {dimensions} dimensions; "
            "unsigned bytes (0x08) in 1 to 3 dimensions are expected"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{name} ends within its header ({len(content)} bytes); replace it")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(
            f"{name} has {len(content):,} bytes where its header promises {expected:,}; replace it"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def to_idx(array: NDArray[np.uint8]) -> bytes:
    """Return an array of unsigned bytes as the content of an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _UNSIGNED_BYTES, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()
