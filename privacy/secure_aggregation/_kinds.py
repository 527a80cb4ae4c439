"""Arguments of the protocol's own kinds, refused by name where they are given."""

from typing import Any

from privacy.arguments import number, of_kind, shown

KEY_BYTES = 32


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
        raise TypeError(f"{name} is {shown(keys)}; give {give}")
    try:
        listed = list(keys)
    except TypeError:
        raise TypeError(f"{name} is {shown(keys)}; give {give}") from None
    for key in listed:
        of_kind(f"one of {name}", key, bytes, give)
        exact_bytes(f"one of {name}", key, KEY_BYTES)
    return frozenset(listed)
