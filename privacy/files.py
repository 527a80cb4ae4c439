"""Files that survive a crash: at every instant the old or the new one is there, whole."""

import glob
import os
import tempfile
from pathlib import Path

_NEW = ".new"


def write_durably(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, synchronised to disk, whole or not at all.

    Only the owner can read the file.

    Raises
    ------
    OSError
        If it cannot be written; ``path`` is as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=_NEW)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of ``path`` left that were killed; nobody may be writing it now."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{_NEW}"):
        left.unlink(missing_ok=True)
