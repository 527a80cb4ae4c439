"""Arguments of the wrong kind, refused by name where they are given."""

import functools
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def renamed(**new_names: str) -> Callable[[type[T]], type[T]]:
    """Make a class refuse old names of its arguments (``TypeError``) by naming the new ones."""

    def decorate(kind: type[T]) -> type[T]:
        original = kind.__init__

        @functools.wraps(original)
        def checked(self: T, *args: Any, **given: Any) -> None:
            for old in new_names.keys() & given.keys():
                raise TypeError(f"{kind.__name__}: the argument {old} is now {new_names[old]}")
            original(self, *args, **given)

        setattr(kind, "__init__", checked)  # noqa: B010 (mypy refuses the assignment)
        return kind

    return decorate


def number(name: str, value: Any) -> float:
    """A finite real number as a float; numpy's are taken, text and True are not.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {shown(value)}; it must be a number")
    try:
        real = float(value)
    except OverflowError:  # an integer beyond all doubles
        real = math.inf
    if not math.isfinite(real):
        raise ValueError(f"{name} is {shown(value)}; it must be finite")
    return real


def whole(name: str, value: Any) -> int:
    """A whole number as an int; numpy's are taken, 40.0 and True are not.

    Raises
    ------
    TypeError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {shown(value)}; it must be a whole number")
    return operator.index(value)


def of_kind(name: str, value: Any, kind: type | tuple[type, ...], give: str) -> None:
    """Check that a value is of a kind, or of one of some.

    Raises
    ------
    TypeError
        If it is not, saying what to ``give``.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; give {give}")


def shown(value: Any) -> str:
    """A value as an error shows it: itself if it is short, else its kind."""
    if isinstance(value, bytes):  # it may be a secret
        return f"{len(value)} bytes"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    told = repr(value)
    return told if len(told) <= 60 and "\n" not in told else f"of type {type(value).__qualname__}"
