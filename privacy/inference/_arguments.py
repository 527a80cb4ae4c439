"""What callers give: numbers and arrays of them, checked where they arrive and named if refused."""

import math
import sys
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray


def whole(name: str, value: object, least: int, most: int | None = None, *, of: str = "") -> int:
    """A whole number between two others, as a Python integer.

    Raises
    ------
    ValueError
        If it is none; ``of`` may say what is counted.
    """
    if not _is_whole(value) or value < least or (most is not None and value > most):
        upwards = "or more" if most is None else f"to {most}"
        raise ValueError(f"{name} is {value!r}; give a whole number, {least} {upwards}{of}")
    return int(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # of integers
        return False


def positive(name: str, value: Any, give: str) -> float:
    """A finite number above zero.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not (_is_real(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; give {give}")
    return float(value)


def rising(name: str, value: object) -> tuple[float, float]:
    """Two finite numbers, the lower one first.

    Raises
    ------
    ValueError
        If it is something else.
    """
    ends = _items(value)
    if len(ends) == 2 and all(map(_is_real, ends)):
        low, high = map(float, ends)
        if low < high:
            return low, high
    raise ValueError(f"{name} is {value!r}; give two numbers, finite low < high")


def sizes(name: str, value: object) -> tuple[int, ...]:
    """The shape of one input.

    Raises
    ------
    ValueError
        If it is something else than positive whole numbers.
    """
    items = _items(value)
    if not items or not all(_is_whole(item) and item >= 1 for item in items):
        raise ValueError(
            f"{name} is {value!r}; give the positive sizes of one input, such as (1, 28, 28)"
        )
    return tuple(map(int, items))


def _items(value: object) -> list[float]:
    """What is in a sequence or an array; nothing where it is none."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict | set):
        return []
    try:
        return list(value)
    except TypeError:  # arrays without a dimension
        return []


def of_kind(name: str, value: object, kind: Any, give: str) -> None:
    """Refuse an object of another class.

    Raises
    ------
    TypeError
        If it is one.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.200}; give {give}")


def doubles(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """As :func:`reals`, in double precision."""
    return reals(name, values).astype(np.float64, copy=False)


def reals(name: str, values: ArrayLike) -> NDArray[Any]:
    """Real numbers in an array, of an array, a tensor, or sequences of these.

    Raises
    ------
    ValueError
        If they are none: complex ones, texts, objects, sequences that do not fit together.
    """
    try:
        found = np.asarray(_untied(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} has masked elements; fill them with numbers")
    kind = found.dtype.kind
    if kind not in "biuf":  # truth values, whole numbers and floats
        held = f"is a {type(values).__name__}" if kind == "O" else f"holds {found.dtype}"
        raise ValueError(f"{name} {held}; give an array of real numbers")
    return found


def _untied(values: object) -> object:
    """Tensors as arrays, wherever they lie and whatever remembers them."""
    torch = sys.modules.get("torch")  # nothing is a tensor where it is not loaded
    if torch is not None and isinstance(values, torch.Tensor):
        plain = values.detach().resolve_conj().resolve_neg().cpu()
        if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32):
            plain = plain.double()  # NumPy knows no bfloat16
        return plain.numpy()
    if isinstance(values, list | tuple):
        return [_untied(value) for value in values]
    return values
