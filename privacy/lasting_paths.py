"""Paths of files that the next process has to find again."""

import os
from pathlib import Path
from typing import Any


def lasting_file(name: str, value: Any) -> Path:
    """The path of a file that lasts, absolute; ``~`` stands for the user's home.

    A relative path would be taken from where the process was started, under Flower by a SuperLink
    or a SuperNode, or where it went since: another folder as often as not, in which what the file
    held is forgotten, or is another project's.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If it is empty, relative, a folder, or nothing that a file can be called.
    """
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        shown = f"{value!r:.60}"
        raise TypeError(f"{name} is {shown}; give the path of a file")
    given = os.fsdecode(value)
    if not given:
        raise ValueError(f"{name} is empty; give the path of a file")
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # "~" and a name of nobody
        raise ValueError(f"{name} is {given!r}; give the path of a file: {error}") from error
    if not path.is_absolute():
        raise ValueError(
            f"{name} is {given!r}, a relative path; it would lie where the process was started, "
            "under Flower by its SuperLink or SuperNode, and may be another project's file, or a "
            f"new one the next time. Give an absolute path, as '~/{path}' or '{path.absolute()}'"
        )
    try:
        if b"\0" in os.fsencode(given):
            raise ValueError("it has a null byte")
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name} is {given!r:.80}; give the path of a file: {reason}") from error
    if is_folder:
        raise ValueError(f"{name} is {str(path)!r}, a folder; give the path of a file")
    return path
