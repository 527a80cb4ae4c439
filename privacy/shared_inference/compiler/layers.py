"""Layers that shares evaluate beyond those of CKKS: rectifiers, maxima over windows, curves.

Whatever is made of straight lines is sums of ReLUs: max(a, b) = b + ReLU(a - b), and LeakyReLU,
PReLU, ReLU6, Hardtanh, Hardsigmoid and the like by one or two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privacy.inference.compiler.lowering import (
    Elementwise,
    Interval,
    Lowering,
    Operation,
    Value,
    is_source,
    linear_of,
    scaled,
    total,
)
from privacy.shared_inference.compiler.curves import CURVES

_TURNING = 1e-4
"""By which a curve's minimum may be lower than at the points where it is looked for."""
_SLACK = 1e-9
"""By which an operation's values on points may differ from the operation's, of the largest."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rectified(Value):
    """max(x, 0) of each element of another value."""

    before: Value

    @property
    def parents(self) -> tuple[Value, ...]:
        """The one value that it is computed from."""
        return (self.before,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximum(Value):
    """The largest element of each window on another value.

    Attributes
    ----------
    windows : ndarray of int, shape (elements, size)
        Places in ``before``; one may stand twice in a window.
    """

    before: Value
    windows: NDArray[np.int64]

    @property
    def parents(self) -> tuple[Value, ...]:
        """The one value that it is computed from."""
        return (self.before,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Curved(Value):
    """A function of each element of another value, one of :data:`.curves.CURVES`."""

    before: Value
    curve: str

    @property
    def parents(self) -> tuple[Value, ...]:
        """The one value that it is computed from."""
        return (self.before,)


def _rectified(given: Elementwise, name: str) -> Elementwise:
    before = given.value()
    span = Interval(np.maximum(before.span.low, 0.0), np.maximum(before.span.high, 0.0))
    points = np.maximum(before.points, 0.0)
    return Elementwise(Rectified(before.shape, name, points, span, before=before))


def _agreed(operation: Operation, made: Elementwise) -> Elementwise:
    """What was made, compared with the operation on points of the range."""
    expected = operation.outputs[0].flatten(1).numpy().T
    points = made.value().points
    room = _SLACK * np.abs(expected).max(initial=0.0)
    if points.shape != expected.shape or not bool((np.abs(points - expected) <= room).all()):
        raise operation.refused("does something else than its type; leave it as PyTorch makes it")
    return made


def _relu(operation: Operation) -> Elementwise:
    return _agreed(operation, _rectified(operation.only(), operation.title))


def _leaky(operation: Operation, slope: float) -> Elementwise:
    given, name = operation.only(), operation.title
    positive = linear_of(_rectified(given, name), 1.0 - slope, 0.0, name)
    return _agreed(operation, total(linear_of(given, slope, 0.0, name), positive, 1.0, name))


def _leaky_relu(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    given = operation.argument(1, "negative_slope", 0.01) if layer is None else layer.negative_slope
    return _leaky(operation, float(given))


def _prelu(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    weight = operation.argument(1, "weight") if layer is None else layer.weight
    if is_source(weight):
        raise operation.refused("takes slopes that depend on the model's input; give constant ones")
    given, name = operation.only(), operation.title
    slopes = weight.detach().double().numpy()
    each = np.broadcast_to(slopes.reshape(-1, *[1] * (len(given.shape) - 1)), given.shape).ravel()
    positive = scaled(_rectified(given, name), 1.0 - each, name)
    return _agreed(operation, total(scaled(given, each, name), positive, 1.0, name))


def _clamped(given: Elementwise, low: float | None, high: float | None, name: str) -> Elementwise:
    """max(x, low), then min of it and high."""
    if low is not None:
        raised = _rectified(linear_of(given, 1.0, -low, name), name)
        given = linear_of(raised, 1.0, low, name)
    if high is not None:
        lowered = _rectified(linear_of(given, -1.0, high, name), name)
        given = linear_of(lowered, -1.0, high, name)
    return given


def _between(operation: Operation, low: Any, high: Any) -> Elementwise:
    lowest, highest = (None if end is None else float(end) for end in (low, high))
    clamped = _clamped(operation.only(), lowest, highest, operation.title)
    return _agreed(operation, clamped)


def _hardtanh(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    if layer is not None:
        return _between(operation, layer.min_val, layer.max_val)
    low = operation.argument(1, "min_val", -1.0)
    return _between(operation, low, operation.argument(2, "max_val", 1.0))


def _relu6(operation: Operation) -> Elementwise:
    return _between(operation, 0.0, 6.0)


def _clamp(operation: Operation) -> Elementwise:
    ends = [operation.argument(1, "min"), operation.argument(2, "max")]
    if any(is_source(end) or (isinstance(end, Tensor) and end.numel() != 1) for end in ends):
        raise operation.refused("takes limits that are no numbers; give numbers")
    return _between(operation, *ends)


def _hardsigmoid(operation: Operation) -> Elementwise:
    name = operation.title
    moved = linear_of(operation.only(), 1.0, 3.0, name)
    clamped = _clamped(moved, 0.0, 6.0, name)
    return _agreed(operation, linear_of(clamped, 1 / 6, 0.0, name))


def _absolute(operation: Operation) -> Elementwise:
    given, name = operation.only(), operation.title
    twice = linear_of(_rectified(given, name), 2.0, 0.0, name)
    return _agreed(operation, total(twice, given, -1.0, name))


def _curved(operation: Operation, curve: str) -> Elementwise:
    before, function = operation.only().value(), CURVES[curve]
    # None of the functions turns more than once, and that at a minimum between -2 and 0.
    inside = np.linspace(-2.0, 0.0, 201)
    lowest = inside[function(inside).argmin()]
    ends = [function(before.span.low), function(before.span.high)]
    turning = np.clip(lowest, before.span.low, before.span.high)
    low = np.minimum(np.minimum(*ends), function(turning)) - _TURNING
    span = Interval(low, np.maximum(*ends))
    points = function(before.points)
    made = Curved(before.shape, operation.title, points, span, before=before, curve=curve)
    return _agreed(operation, Elementwise(made))


def _gelu(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    kind = operation.argument(1, "approximate", "none") if layer is None else layer.approximate
    return _curved(operation, "gelu by tanh" if kind == "tanh" else "gelu")


def _larger(operation: Operation) -> Elementwise:
    return _of_two(operation, 1.0)


def _smaller(operation: Operation) -> Elementwise:
    return _of_two(operation, -1.0)


def _of_two(operation: Operation, sign: float) -> Elementwise:
    """The larger of two values, or the smaller where the sign is -1."""
    if len(operation.given) != 2 or len({given.shape for given in operation.given}) != 1:
        raise operation.refused("takes something else than two values of one shape; give those")
    one, other = operation.given
    name = operation.title
    difference = total(linear_of(one, sign, 0.0, name), other, -sign, name)
    return _agreed(operation, total(other, _rectified(difference, name), sign, name))


def _max_pool(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    given = operation.arguments(names) if layer is None else vars(layer)
    if given.get("return_indices"):
        raise operation.refused("returns indices too; leave return_indices out")
    value, axes = operation.only(), int(operation.function[-2])
    kernel = _each(given["kernel_size"], axes)
    stride = _each(given.get("stride") or kernel, axes)
    padding, dilation = (_each(given.get(n, d), axes) for n, d in (("padding", 0), ("dilation", 1)))
    along = []
    for axis, size in enumerate(value.shape[-axes:]):
        starts = range(operation.shape[len(operation.shape) - axes + axis])
        places = [
            [s * stride[axis] - padding[axis] + t * dilation[axis] for t in range(kernel[axis])]
            for s in starts
        ]
        along.append([[place for place in window if 0 <= place < size] for window in places])
    return _pooled(operation, along)


def _adaptive_max_pool(operation: Operation) -> Elementwise:
    layer: Any = operation.layer
    indices = operation.argument(2, "return_indices") if layer is None else layer.return_indices
    if indices:
        raise operation.refused("returns indices too; leave return_indices out")
    axes = int(operation.function[-2])
    sizes = zip(operation.only().shape[-axes:], operation.shape[-axes:], strict=True)
    along = [
        [list(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out)]
        for size, out in sizes
    ]
    return _pooled(operation, along)


def _pooled(operation: Operation, along: Sequence[list[list[int]]]) -> Elementwise:
    """Maxima over windows that are products of places along the last axes."""
    given, name = operation.only(), operation.title
    before = given.value()
    # Rectifying and taking the largest commute, and fewer values are rectified afterwards.
    rectified = isinstance(before, Rectified)
    before = before.before if isinstance(before, Rectified) else before
    outside = before.shape[: len(before.shape) - len(along)]
    numbers = np.arange(before.size).reshape(math.prod(outside), *before.shape[len(outside) :])
    everywhere = list(range(len(numbers)))
    grid = [numbers[np.ix_(everywhere, *windows)] for windows in product(*along)]
    widest = max(2, *(math.prod(part.shape[1:]) for part in grid))
    # A window at the border is as long as the others: its first place stands several times.
    flat = [part.reshape(len(part), -1) for part in grid]
    filled = [
        np.hstack([part, np.repeat(part[:, :1], widest - part.shape[1], axis=1)]) for part in flat
    ]
    windows = np.stack(filled, axis=1).reshape(-1, widest)
    span = Interval(before.span.low[windows].max(axis=1), before.span.high[windows].max(axis=1))
    points = before.points[windows].max(axis=1)
    shape = operation.shape
    made = Elementwise(Maximum(shape, name, points, span, before=before, windows=windows))
    return _agreed(operation, _rectified(made, name) if rectified else made)


def _each(given: Any, axes: int) -> tuple[int, ...]:
    return (given,) * axes if isinstance(given, int) else tuple(given)


LAYERS: dict[str, Lowering] = {
    "ReLU": _relu,
    "relu": _relu,
    "LeakyReLU": _leaky_relu,
    "leaky_relu": _leaky_relu,
    "PReLU": _prelu,
    "prelu": _prelu,
    "ReLU6": _relu6,
    "relu6": _relu6,
    "Hardtanh": _hardtanh,
    "hardtanh": _hardtanh,
    "Hardsigmoid": _hardsigmoid,
    "hardsigmoid": _hardsigmoid,
    "clamp": _clamp,
    "clip": _clamp,
    **{name: partial(_curved, curve="sigmoid") for name in ("Sigmoid", "sigmoid")},
    **{name: partial(_curved, curve="tanh") for name in ("Tanh", "tanh")},
    **{name: partial(_curved, curve="silu") for name in ("SiLU", "silu")},
    "GELU": _gelu,
    "gelu": _gelu,
    "abs": _absolute,
    "absolute": _absolute,
    "maximum": _larger,
    "minimum": _smaller,
    **{f"{name}{axes}d": _max_pool for name in ("MaxPool", "max_pool") for axes in (1, 2)},
    **{
        f"{name}{axes}d": _adaptive_max_pool
        for name in ("AdaptiveMaxPool", "adaptive_max_pool")
        for axes in (1, 2)
    },
}
"""By the names of layers and functions."""
