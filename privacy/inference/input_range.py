"""The range of a model's inputs: two numbers for every element, or two for each feature.

A range of features is written as short as it can be: tuples of floats, nested as the input's shape,
with one entry where all along an axis are alike, so that a range a channel is three numbers for a
picture of any size. Two ranges are equal if and only if they are written alike.

Ends are numbers of single precision, as data and models mostly are: 0.1 as the highest value is
written as 0.10000000149, the nearest one that is not below it. Data brought to an end of their
range are so inside it in either precision.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import double_array, interval

Bound = float | tuple[Any, ...]
"""A float, or floats in nested tuples that broadcast to the input's shape."""
InputRange = tuple[Bound, Bound]
"""Lowest and highest values."""
GIVE = (
    "finite low < high, the ends of the range of an input's elements, such as (0.0, 1.0), or two "
    "arrays that broadcast to the input's shape"
)


def input_range(name: str, value: Any, shape: tuple[int, ...]) -> InputRange:
    """A range as it is written, from two numbers or two arrays that broadcast to ``shape``.

    It holds the given one: an end that is no number of single precision is the nearest one outside.

    Raises
    ------
    TypeError, ValueError
        If it is none; a feature whose range is empty is named.
    """
    ends = _ends(value)
    if ends is None:
        least, most = in_single_precision(*map(np.array, interval(name, value, GIVE)))
        return float(least), float(most)
    given = [double_array(name, end, f"an array that broadcasts to {shape}") for end in ends]
    try:
        low, high = (np.broadcast_to(end, shape) for end in given)
    except ValueError as error:
        sizes = " and ".join(str(end.shape) for end in given)
        raise ValueError(
            f"{name} has arrays of shape {sizes}; give ones that broadcast to the input's, {shape}"
        ) from error
    wrong = np.argwhere(~(np.isfinite(low) & np.isfinite(high) & (low < high)))
    if len(wrong):
        feature = tuple(wrong[0].tolist())
        raise ValueError(
            f"{name} is [{low[feature]:g}, {high[feature]:g}] at feature {label(feature)}; give "
            "finite low < high for every feature (a feature that is always the same: leave it out, "
            "or widen its range)"
        )
    low, high = in_single_precision(low, high)
    for axis in range(len(shape)):
        first = (low.take([0], axis), high.take([0], axis))
        if bool((low == first[0]).all() and (high == first[1]).all()):
            low, high = first
    if low.size == 1:
        return float(low.item()), float(high.item())
    return _tuples(low.tolist()), _tuples(high.tolist())


def in_single_precision(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The narrowest range around ``low`` to ``high`` whose ends are numbers of single precision.

    Ends that no such number is beyond stay as they are.
    """
    with np.errstate(over="ignore", under="ignore"):
        least, most = low.astype(np.float32), high.astype(np.float32)
        least = np.where(least > low, np.nextafter(least, np.float32(-np.inf)), least)
        most = np.where(most < high, np.nextafter(most, np.float32(np.inf)), most)
    return np.where(np.isfinite(least), least, low), np.where(np.isfinite(most), most, high)


def inputs_of(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Inputs of shape (inputs, *shape), given so or as rows of their elements in that order.

    Raises
    ------
    TypeError, ValueError
        If they are none: axes in another order would be read as another picture.
    """
    array = double_array(name, values, f"shape (inputs, {', '.join(map(str, shape))})")
    if array.ndim < 2 or array.shape[1:] not in (shape, (math.prod(shape),)):
        raise ValueError(
            f"{name} has shape {array.shape}; give (inputs, {', '.join(map(str, shape))})"
        )
    return array.reshape(len(array), *shape)


def bounds(
    written: InputRange, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest value of each element, of the input's shape."""
    low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), shape) for end in written)
    return low, high


def by_feature(written: InputRange) -> bool:
    """Whether features have ranges of their own."""
    return isinstance(written[0], tuple)


def to_unit(
    written: InputRange, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and radius of each element, flat.

    Where features have ranges of their own, (x - centre)/radius is what is encrypted: of one size,
    so that each is as precise as the others. Elsewhere 0 and 1: the input itself is.
    """
    low, high = (end.ravel() for end in bounds(written, shape))
    if not by_feature(written):
        return np.zeros(len(low)), np.ones(len(low))
    return low / 2 + high / 2, high / 2 - low / 2


def shown(written: InputRange) -> str:
    """For people: a range of features by its ends."""
    low, high = (np.asarray(end) for end in written)
    if not by_feature(written):
        return f"[{low:g}, {high:g}]"
    return f"a range for each feature, from {low.min():g} to {high.max():g}"


def label(feature: tuple[int, ...]) -> str:
    """The place of a feature: a number in a vector, else one for each axis."""
    return str(feature[0] if len(feature) == 1 else feature)


def _ends(value: Any) -> tuple[Any, Any] | None:
    """The two ends, if one is an array or a list."""
    try:
        low, high = value
        several = any(np.ndim(end) > 0 for end in (low, high))
    except (TypeError, ValueError):
        # Ragged lists are no arrays; whatever else it is, the check of two numbers says.
        return None
    return (low, high) if several and not isinstance(value, str | dict) else None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
