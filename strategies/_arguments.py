"""Arguments of the wrong kind, told by name where they are given."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from flwr.supercore.utils import get_flwr_home

from privacy import arguments
from privacy.arguments import of_kind, shown
from privacy.lasting_paths import lasting_file


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least ``least`` as an int; numpy's are taken, 1.0 and True are not.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is less.
    """
    count = arguments.whole(name, value)
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return count


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


def called_with(name: str, value: Any, arguments: int, give: str) -> None:
    """Check that a value can be called with so many positional arguments.

    Raises
    ------
    TypeError
        If it cannot, saying what to ``give``.
    """
    try:
        inspect.signature(value).bind(*range(arguments))
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shown(value)}; give {give}") from None


def has(name: str, value: Any, members: Iterable[str], give: str) -> None:
    """Check that a value is an object with what a protocol asks for, and not its class.

    Raises
    ------
    TypeError
        If it is not, saying what to ``give``.
    """
    if isinstance(value, type) or not all(hasattr(value, member) for member in members):
        raise TypeError(f"{name} is {shown(value)}; give {give}")


def text(name: str, value: Any) -> str:
    """A text that is not empty.

    Raises
    ------
    TypeError
        If it is no text.
    ValueError
        If it is empty.
    """
    of_kind(name, value, (str,), "text")
    if not value:
        raise ValueError(f"{name} is empty; give a name")
    return str(value)


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
