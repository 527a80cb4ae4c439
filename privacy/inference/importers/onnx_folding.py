"""Operators of ONNX on constants, computed when the file is read."""

import math
from collections.abc import Callable

import numpy as np

from privacy.imports import needing
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.onnx_values import (
    MAX_ELEMENTS,
    Array,
    Constant,
    Node,
    resolved_shape,
)
from privacy.untrusted_text import quoted


def _cast(node: Node, array: Array) -> Array:
    with needing("from_onnx", extra="onnx"):
        import onnx

    try:
        kind = onnx.helper.tensor_dtype_to_np_dtype(node.attribute("to", 1))
    except KeyError as error:
        raise node.refused("casts to an unknown kind") from error
    node.attribute("saturate", 1)
    node.attribute("round_mode", "up")
    return array.astype(kind)


def _divided(_: Node, one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return one / other
    return np.trunc(one / other).astype(one.dtype)  # towards zero


def _remainder(node: Node, one: Array, other: Array) -> Array:
    return np.fmod(one, other) if node.attribute("fmod", 0) else np.mod(one, other)


def _concatenated(node: Node, *arrays: Array) -> Array:
    return np.concatenate(arrays, axis=node.attribute("axis", 0))


def _gathered(node: Node, array: Array, indices: Array) -> Array:
    axis = node.axis(node.attribute("axis", 0), max(array.ndim, 1))
    rest = array.size // max(array.shape[axis], 1)
    if indices.size * rest > MAX_ELEMENTS:
        raise node.refused("makes a constant that is too large")
    return np.take(array, indices, axis=axis)


def _sliced(node: Node, array: Array, *inputs: Array | None) -> Array:
    if node.opset < 10:
        starts, ends, axes = (node.attribute(key, None) for key in ("starts", "ends", "axes"))
        steps = None
    else:
        lists = [None if each is None else each.reshape(-1).tolist() for each in inputs]
        starts, ends, axes, steps = (*lists, None, None, None, None)[:4]
    if starts is None or ends is None:
        raise node.refused("has no starts or ends")
    chosen = [slice(None)] * array.ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = node.axis(place if axes is None else axes[place], array.ndim)
        step = 1 if steps is None else steps[place]
        # Backwards, an end far below zero means before the first.
        end = None if step < 0 and end < -array.shape[axis] else end
        chosen[axis] = slice(start, end, step)
    return array[tuple(chosen)]


def _unsqueezed(node: Node, array: Array, *_: Array | None) -> Array:
    given = node.axes(1, 64, 13) or []
    rank = array.ndim + len(given)
    return np.expand_dims(array, tuple(a if a < rank else a - 64 + rank for a in given))


def _squeezed(node: Node, array: Array, *_: Array | None) -> Array:
    given = node.axes(1, array.ndim, 13)
    return np.squeeze(array, None if given is None else tuple(given))


def _reshaped(node: Node, array: Array, target: Array) -> Array:
    return array.reshape(resolved_shape(node, target.reshape(-1).tolist(), array.shape))


def _transposed(node: Node, array: Array) -> Array:
    return np.transpose(array, node.attribute("perm", None))


def _filled(node: Node, shape: Array) -> Array:
    value = node.attribute("value", None)
    sizes = shape.reshape(-1).tolist()
    if min(sizes, default=0) < 0 or math.prod(sizes) > MAX_ELEMENTS:
        raise node.refused(f"makes a constant of shape {quoted(sizes)}")
    return np.full(sizes, np.float32(0) if value is None else value.reshape(-1)[0])


FOLDED: dict[str, Callable[..., Array]] = {
    "Add": lambda _, one, other: one + other,
    "Sub": lambda _, one, other: one - other,
    "Mul": lambda _, one, other: one * other,
    "Div": _divided,
    "Mod": _remainder,
    "Neg": lambda _, array: -array,
    "Sqrt": lambda _, array: np.sqrt(array),
    "Identity": lambda _, array: array,
    "Cast": _cast,
    "Concat": _concatenated,
    "Gather": _gathered,
    "Slice": _sliced,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "ConstantOfShape": _filled,
}
"""Operators on constants, which are computed when the file is read."""


def fold(node: Node) -> Constant:
    """The output of an operator on constants.

    Raises
    ------
    UnsupportedModelError
        If it cannot be computed.
    """
    given = [value for value in node.inputs if isinstance(value, Constant)]
    sizes = [value.array.shape for value in given]
    try:
        if node.operator in ("Add", "Sub", "Mul", "Div", "Mod"):
            size = math.prod(np.broadcast_shapes(*sizes))
        else:
            size = sum(map(math.prod, sizes)) if node.operator == "Concat" else 0
        if size > MAX_ELEMENTS:
            raise node.refused("makes a constant that is too large")
        with np.errstate(all="ignore"):
            made = _folded(node, "array")
            alike = all(value.array is value.other for value in given)
            return Constant(made, made if alike else _folded(node, "other"))
    except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise node.refused(f"does not go with its constants: {error}") from error


def _folded(node: Node, size: str) -> Array:
    """The output for one of the two sizes of a batch."""
    arrays = [None if value is None else getattr(value, size) for value in node.inputs]
    return np.asarray(FOLDED[node.operator](node, *arrays))
