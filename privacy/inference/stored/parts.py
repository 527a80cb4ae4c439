"""Values and arrays of a file, each taken with the kind and shape that it must have.

Errors are ``ValueError`` and name what is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_BITS = 1000.0
"""Of a scale: its power of two is a double."""


class Parts:
    """Arrays by name, each of which is taken once.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._left = dict(arrays)

    def take(self, name: str, *shape: int | None, kind: type = np.float64) -> NDArray[Any]:
        """An array of this kind and shape, None for a size that it may have; finite numbers."""
        array = self._left.pop(name, None)
        if array is None:
            raise ValueError(f"{name} is missing")
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
        )
        if array.dtype != kind or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}; {np.dtype(kind)} of shape "
                f"({sizes}) belongs there"
            )
        if kind is np.float64 and not bool(np.isfinite(array).all()):
            raise ValueError(f"{name} holds numbers that are not finite")
        return array

    def take_complex(self, name: str, *shape: int | None) -> NDArray[np.complex128]:
        """Complex numbers, from real and imaginary parts along a last axis of two."""
        halves = self.take(name, *shape, 2)
        return np.asarray(halves[..., 0] + 1j * halves[..., 1])

    def end(self) -> None:
        """Refuse arrays that nobody took."""
        if self._left:
            raise ValueError(f"{min(self._left)} is unknown")


def entries(name: str, value: Any, *keys: str) -> list[Any]:
    """The values of an object with exactly these keys, in this order."""
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"{name} is no object of {', '.join(keys)}")
    return [value[key] for key in keys]


def items(name: str, value: Any) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def wholes(name: str, value: Any, low: int, high: int) -> tuple[int, ...]:
    """A list of whole numbers from ``low`` to ``high``."""
    given = items(name, value)
    if not all(type(each) is int and low <= each <= high for each in given):
        raise ValueError(f"{name} holds other things than whole numbers from {low} to {high}")
    return tuple(given)


def reals(name: str, value: Any, most: float = math.inf) -> tuple[float, ...]:
    """A list of finite numbers, none larger than ``most`` in absolute value."""
    given = items(name, value)
    if not all(type(each) is float and math.isfinite(each) and abs(each) <= most for each in given):
        raise ValueError(f"{name} holds other things than finite numbers, or too large ones")
    return tuple(given)


def bits(name: str, value: Any) -> tuple[float, ...]:
    """A list of scales, in bits."""
    return reals(name, value, _MAX_BITS)
