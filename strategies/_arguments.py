"""Arguments of the wrong kind, told by name where they are given."""

import inspect
import math
import numbers
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.supercore.utils import get_flwr_home

from privacy.accounting import Budget
from privacy.lasting_paths import lasting_file


def number(name: str, value: Any) -> float:
    """A finite real number as a float; numpy's are numbers too, text and True are not.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {_shown(value)}; it must be a number")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise ValueError(f"{name} is {_shown(value)}; it must be finite")
    return real


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least ``least`` as an int; numpy's are taken, 1.0 and True are not.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is less.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {_shown(value)}; it must be a whole number")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return operator.index(value)


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


def one_of(name: str, value: Any, kinds: tuple[type, ...], give: str) -> None:
    """Check that a value is of one of some kinds.

    Raises
    ------
    TypeError
        If it is not, saying what to ``give``.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is {_shown(value)}; give {give}")


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
        raise TypeError(f"{name} is {_shown(value)}; give {give}") from None


def has(name: str, value: Any, members: Iterable[str], give: str) -> None:
    """Check that a value is an object with what a protocol asks for, and not its class.

    Raises
    ------
    TypeError
        If it is not, saying what to ``give``.
    """
    if isinstance(value, type) or not all(hasattr(value, member) for member in members):
        raise TypeError(f"{name} is {_shown(value)}; give {give}")


def text(name: str, value: Any) -> str:
    """A text that is not empty.

    Raises
    ------
    TypeError
        If it is no text.
    ValueError
        If it is empty.
    """
    one_of(name, value, (str,), "text")
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


def _shown(value: Any) -> str:
    """A value as an error shows it: itself if it is short, else its kind."""
    told = repr(value)
    return told if len(told) <= 60 and "\n" not in told else f"of type {type(value).__qualname__}"
