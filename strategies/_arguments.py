"""Arguments of the wrong kind, told by name where they are given."""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.supercore.utils import get_flwr_home

from privacy import arguments
from privacy.accounting import Budget
from privacy.arguments import lasting_file, number, of_kind, shown


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


def delta(name: str, value: Any) -> float:
    """A δ that can be accounted, as ``privacy.accounting`` judges it.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is out of range.
    """
    value = number(name, value)
    try:
        return Budget(1.0, value).delta
    except ValueError as error:
        raise ValueError(f"{name} is out of range: {error}") from None


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
