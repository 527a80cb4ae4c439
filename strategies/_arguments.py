"""Arguments of a strategy: paths that outlast the app, and names that are not taken any more."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from flwr.supercore.utils import get_flwr_home

from privacy.arguments import lasting_file

_P = ParamSpec("_P")


def refuse_old_names(
    old: Mapping[str, str],
) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Have a constructor answer arguments of other names with how they are given now.

    Parameters
    ----------
    old : mapping of str to str
        What to give instead, by the name that is not taken.
    """

    def decorate(init: Callable[_P, None]) -> Callable[_P, None]:
        @wraps(init)
        def checked(*args: _P.args, **given: _P.kwargs) -> None:
            if names := [name for name in given if name in old]:
                instead = "; ".join(dict.fromkeys(old[name] for name in names))
                raise TypeError(f"{', '.join(names)}: not an argument here; give {instead}")
            init(*args, **given)

        return checked

    return decorate


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
