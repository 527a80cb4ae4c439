"""Files and folders that people name, which may be anything and may be locked."""

from pathlib import Path

from flower_app.errors import DataError


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no file system takes is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def listed(folder: Path) -> list[Path]:
    """What a folder holds, in the order of names.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
