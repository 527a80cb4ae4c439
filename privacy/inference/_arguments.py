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


def check_count(name: str, value: Any, remedy: str) -> None:
    """Refuse what is not a whole number of at least 1, with what to give.

    Raises
    ------
    TypeError, ValueError
    """
    if not _is_whole(value):
        raise TypeError(f"{name} is {value!r}; give {remedy}, a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}; give {remedy}")


def check_error(name: str, value: Any, remedy: str) -> None:
    """Refuse what is not a finite number above 0, with what to give.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give {remedy}, a number")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value}; give {remedy}")


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
    if not pair or any(isinstance(v, bool) or not isinstance(v, Real) for v in input_range):
        raise TypeError(
            f"input_range is {input_range!r}; give two numbers, the lowest and the highest value "
            "of an input's elements, such as (0.0, 1.0)"
        )
    low, high = (float(value) for value in input_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"input_range is {input_range}; give finite low < high")
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
    if np.ma.is_masked(values):
        raise TypeError(f"{name} has masked elements; give real numbers, {shape}")
    try:
        array = np.asarray(_untied(values))
    except Exception as error:  # ragged lists, sparse tensors, tensors without values
        raise TypeError(f"{name} makes no array of numbers ({error}); give {shape}") from error
    if array.dtype.kind not in "biuf":
        what = _named(values) if array.ndim == 0 else f"of {array.dtype}"
        raise TypeError(f"{name} is {what}; give real numbers, {shape}")
    return array


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


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _named(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"
