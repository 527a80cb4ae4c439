"""Arguments of another kind are named where they are given, before anything is made of them."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_kind(name: str, value: object, kind: type, remedy: str) -> None:
    """Refuse a value that is not a ``kind``, with what to give.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_named(value)}; give {remedy}")


def check_callable(name: str, value: Callable[..., object], remedy: str) -> None:
    """Refuse what cannot be called, with what to give.

    Raises
    ------
    TypeError
    """
    if not callable(value):
        raise TypeError(f"{name} is {_named(value)}; give {remedy}")


def check_count(name: str, value: Any, remedy: str) -> int:
    """A whole number of at least 1, as an int; what is none is refused, with what to give.

    Raises
    ------
    TypeError, ValueError
    """
    value = _unboxed(value)
    if not _is_whole(value):
        raise TypeError(f"{name} is {_shown(value)}; give {remedy}, a whole number")
    if value < 1:
        raise ValueError(f"{name} is {_shown(value)}; give {remedy}")
    return int(value)


def check_error(name: str, value: Any, remedy: str) -> float:
    """A finite number above 0, as a float; what is none is refused, with what to give.

    Raises
    ------
    TypeError, ValueError
    """
    value = _unboxed(value)
    if not _is_real(value):
        raise TypeError(f"{name} is {_shown(value)}; give {remedy}, a number")
    error = _as_float(value)
    if not 0 < error < math.inf:
        raise ValueError(f"{name} is {_shown(value)}; give {remedy}")
    return error


def sizes_of(input_shape: Any) -> tuple[int, ...]:
    """The shape of one input; a number alone is that of a vector.

    Raises
    ------
    TypeError
        If it is not of whole numbers.
    ValueError
        If one is below 1, or there is none.
    """
    if hasattr(input_shape, "tolist"):  # an array
        input_shape = input_shape.tolist()
    sizes = (input_shape,) if isinstance(input_shape, Integral) else input_shape
    if isinstance(sizes, list | tuple):
        sizes = [_unboxed(size) for size in sizes]
    if not isinstance(sizes, Sequence) or not all(map(_is_whole, sizes)):
        raise TypeError(
            f"input_shape is {input_shape!r}; give the sizes of one input without the batch, whole "
            "numbers such as (1, 28, 28), or a number alone for a vector"
        )
    if not sizes or min(sizes) < 1:
        raise ValueError(f"input_shape is {input_shape!r}; give the positive sizes of one input")
    return tuple(int(size) for size in sizes)


def limits_of(input_range: Any) -> tuple[float, float]:
    """The lowest and the highest value of an input's elements.

    Raises
    ------
    TypeError
        If it is not two numbers.
    ValueError
        If they are not finite, or the first is not below the second.
    """
    if hasattr(input_range, "tolist"):  # an array or a tensor
        input_range = input_range.tolist()
    pair = isinstance(input_range, tuple | list) and len(input_range) == 2
    limits = [_unboxed(limit) for limit in input_range] if pair else []
    if not pair or not all(map(_is_real, limits)):
        raise TypeError(
            f"input_range is {_shown(input_range)}; give two numbers, the lowest and the highest "
            "value of an input's elements, such as (0.0, 1.0)"
        )
    low, high = map(_as_float, limits)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"input_range is {_shown(input_range)}; give finite low < high")
    return low, high


def numbers_of(name: str, values: Any, shape: str) -> NDArray[np.float64]:
    """Real numbers in double precision, of NumPy, torch or plain lists.

    Raises
    ------
    TypeError
        If they are none.
    """
    return reals_of(name, values, shape).astype(np.float64, copy=False)


def reals_of(name: str, values: Any, shape: str) -> NDArray[Any]:
    """As :func:`numbers_of`, in the precision that they have.

    Raises
    ------
    TypeError
        If they are none.
    """
    if _has_masked(values):
        raise TypeError(f"{name} has masked elements; give real numbers, {shape}")
    try:
        array = np.asarray(_untied(values))
    except Exception as error:  # ragged lists, sparse tensors, tensors without values
        raise TypeError(f"{name} makes no array of numbers ({error}); give {shape}") from error
    if array.dtype.kind not in "biuf":
        what = _named(values) if array.ndim == 0 else f"of {array.dtype}"
        raise TypeError(f"{name} is {what}; give real numbers, {shape}")
    return array


def _has_masked(values: Any) -> bool:
    """Whether elements are masked, in lists too: as plain numbers they would be what lies below."""
    if isinstance(values, list | tuple):
        return any(map(_has_masked, values))
    return bool(np.ma.is_masked(values))


def _untied(values: Any) -> Any:
    """Tensors as arrays, wherever they lie and whatever remembers them, in lists too."""
    if isinstance(values, list | tuple):
        return [_untied(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    plain = values.detach().resolve_conj().resolve_neg().cpu()
    if plain.is_floating_point() and plain.element_size() not in (4, 8):
        plain = plain.float()  # NumPy knows no bfloat16
    return plain.numpy()


def _unboxed(value: Any) -> Any:
    """The number in an array or tensor without dimensions, such as ``x.max()``; else the value."""
    if getattr(value, "shape", None) != () or np.ma.is_masked(value):
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError):  # a tensor without values
        return value


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    """As a double; an integer beyond them is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _shown(value: object) -> str:
    """A value as an error shows it: itself if it is short, else what it is."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, tuple | list) and len(value) == 2:
        return f"({', '.join(map(_shown, value))})"
    told = repr(value)
    return told if len(told) <= 120 else _named(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _named(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"
