"""Paths that outlast the app."""

from pathlib import Path
from typing import Any

from flwr.supercore.utils import get_flwr_home

from privacy.arguments import lasting_file


def file_path(name: str, value: Any) -> Path:
    """The path of a file that lasts, as ``lasting_file``, and outside of the unpacked app.

    A path inside an app as Flower unpacked it is another one after the next change to the app.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If it is empty, relative, a folder, or inside an unpacked app.
    """
    path = lasting_file(name, value)
    apps = get_flwr_home() / "apps"
    if apps.resolve() in path.resolve().parents:
        raise ValueError(
            f"{name} is {str(path)!r}, inside the app as Flower unpacked it, where nothing lasts "
            f"longer than this version of the app; give another path, as '~/{path.name}'"
        )
    return path
