"""Arguments of the wrong kind, refused by name where they are given."""

import math
import numbers
import operator
from typing import Any

KEY_BYTES = 32


def whole(name: str, value: Any) -> int:
    """A whole number as an int; numpy's are taken, 40.0 and True are not.

    Raises
    ------
    TypeError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {_shown(value)}; it must be a whole number")
    return operator.index(value)


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
        raise TypeError(f"{name} is {_shown(value)}; it must be a number")
    try:
        real = float(value)
    except OverflowError:  # an integer beyond all doubles
        real = math.inf
    if not math.isfinite(real):
        raise ValueError(f"{name} is {_shown(value)}; it must be finite")
    return real


def share(name: str, value: Any, below: float, of: str) -> float:
    """A number in [0, below).

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If it is out of range.
    """
    part = number(name, value)
    if not 0 <= part < below:
        raise ValueError(f"{name} is {value}; a share of {of} in [0, {below:g})")
    return part


def of_kind(name: str, value: Any, kind: type | tuple[type, ...], give: str) -> None:
    """Check that a value is of a kind.

    Raises
    ------
    TypeError
        If it is not, saying what to ``give``.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_shown(value)}; give {give}")


def exact_bytes(name: str, value: Any, size: int) -> None:
    """Check that a value is bytes, and how many.

    Raises
    ------
    TypeError
        If it is anything else.
    ValueError
        If they are more or fewer.
    """
    of_kind(name, value, bytes, f"{size} bytes")
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} bytes; it must have {size}")


def public_keys(name: str, keys: Any) -> frozenset[bytes]:
    """Ed25519 public keys, from an iterable of them.

    Raises
    ------
    TypeError
        If it is none, or text or bytes, whose letters are no keys.
    ValueError
        If one has another size than a key.
    """
    give = f"a list of Ed25519 public keys, each {KEY_BYTES} bytes"
    if isinstance(keys, str | bytes | bytearray):
        raise TypeError(f"{name} is {_shown(keys)}; give {give}")
    try:
        listed = list(keys)
    except TypeError:
        raise TypeError(f"{name} is {_shown(keys)}; give {give}") from None
    for key in listed:
        of_kind(f"one of {name}", key, bytes, give)
        exact_bytes(f"one of {name}", key, KEY_BYTES)
    return frozenset(listed)


def _shown(value: Any) -> str:
    """A value as an error shows it: itself if it is short, else its kind."""
    if isinstance(value, bytes):  # it may be a secret
        return f"{len(value)} bytes"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    told = repr(value)
    return told if len(told) <= 60 and "\n" not in told else f"of type {type(value).__qualname__}"
