"""Files that survive a crash: at every instant the old or the new one is there, whole."""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NEW = ".new"
_RANDOM_BYTES = 4  # in a new version's name, in hexadecimal


@contextmanager
def replacement(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends, synchronised to disk.

    Where the block raises, ``path`` is as it was. ``mode`` (less the umask) says who may read the
    file: by default only its owner.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(_RANDOM_BYTES)}{_NEW}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put ``content`` at ``path``, whole or not at all; see :func:`replacement`.

    Raises
    ------
    OSError
        If it cannot be written; ``path`` is as it was.
    """
    with replacement(path, mode=mode) as file:
        file.write(content)


def remove_leftovers(path: Path) -> None:
    """Remove the files of killed writers of ``path``; nobody may be writing it now.

    Those of a file whose name only begins like it, ``NAME.ahead``, stay.
    """
    random = "[0-9a-f]" * (2 * _RANDOM_BYTES)
    for left in path.parent.glob(f"{glob.escape(path.name)}.{random}{_NEW}"):
        left.unlink(missing_ok=True)
