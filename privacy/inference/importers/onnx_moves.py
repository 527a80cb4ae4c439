"""Operations of ONNX that move values without computing any; the batch stays the first axis."""

import math
from typing import cast

import numpy as np
import torch
from torch import nn

from privacy.imports import needing
from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_layers import (
    Joined,
    Mean,
    Padded,
    Permuted,
    Reshaped,
    Scaled,
)
from privacy.inference.importers.onnx_selections import chosen_by
from privacy.inference.importers.onnx_values import Constant, Data, Node, Value, resolved_shape

_REACH: dict[str, int | None] = {"edge": None, "reflect": 1, "wrap": 0}
"""By how much less than its length an axis can be padded with its own values, if that counts."""
_MIXED = "mixes the inputs of a batch, whose number is the first axis"


def reshaped(node: Node, graph: Builder, data: Data, shape: tuple[int, ...]) -> Data:
    """Another shape of each input."""
    if shape == data.shape:
        return data
    flat = len(shape) == 1
    return graph.add(node, nn.Flatten() if flat else Reshaped(shape), [data], shape)


def flatten(node: Node, graph: Builder) -> Data:
    """Flatten, to (batch, features)."""
    data, axis = node.data(), node.attribute("axis", 1)
    axis = axis + data.rank if axis < 0 else axis
    # Axes before it other than the batch's are of one element, or they would join the batch's.
    if not 0 <= axis <= data.rank:
        raise node.refused(f"names axis {axis} of {data.rank}")
    if axis == 0:
        if graph.batch != 1:
            raise node.refused(_MIXED)
    elif math.prod(data.shape[: axis - 1]) != 1:
        raise node.refused(_MIXED)
    return reshaped(node, graph, data, (math.prod(data.shape),))


def reshape(node: Node, graph: Builder) -> Data:
    """Reshape, of each input."""
    data, target = node.data(), node.value(1)
    if isinstance(target, Data):
        raise node.refused("takes a shape that depends on the values of the model's input")
    shapes = set()
    for batch, array in ((graph.batch, target.array), (graph.other_batch, target.other)):
        made = resolved_shape(node, array.reshape(-1).tolist(), (batch, *data.shape))
        if not made or made[0] != batch:
            raise node.refused(_MIXED)
        shapes.add(tuple(made[1:]))
    if len(shapes) != 1:
        raise node.refused(_MIXED)
    return reshaped(node, graph, data, shapes.pop())


def transpose(node: Node, graph: Builder) -> Data:
    """Transpose, of all axes but the batch's."""
    data = node.data()
    order = node.attribute("perm", []) or [*range(data.rank)][::-1]
    if sorted(order) != [*range(data.rank)]:
        raise node.refused(f"has perm {order} for {data.rank} axes")
    if order[0] != 0:
        raise node.refused(_MIXED)
    if order == sorted(order):
        return data
    shape = [data.shape[axis - 1] for axis in order[1:]]
    return graph.add(node, Permuted(order), [data], shape)


def unsqueeze(node: Node, graph: Builder) -> Data:
    """Unsqueeze: new axes of one element."""
    data = node.data()
    number = _axes_given(node)
    rank = data.rank + number
    axes = set(node.axes(1, rank, 13) or [])
    if 0 in axes:
        raise node.refused(_MIXED)
    if not axes or len(axes) != number:
        raise node.refused("has no axes, or one of them twice")
    sizes = iter(data.shape)
    shape = tuple(1 if axis in axes else next(sizes) for axis in range(1, rank))
    return reshaped(node, graph, data, shape)


def _axes_given(node: Node) -> int:
    if node.opset < 13:
        return len(node.attribute("axes", []))
    return int(node.array(1, "axes").size)


def squeeze(node: Node, graph: Builder) -> Data:
    """Squeeze: axes of one element that go."""
    data = node.data()
    axes = node.axes(1, data.rank, 13)
    if axes is None:
        if graph.batch == 1:
            raise node.refused("names no axes, and the batch's may be one of them; name the axes")
        axes = [place for place, size in enumerate(data.shape, start=1) if size == 1]
    if 0 in axes:
        raise node.refused(_MIXED)
    if any(data.shape[axis - 1] != 1 for axis in axes):
        raise node.refused(f"removes axes {axes} of inputs of shape {data.shape}")
    shape = [size for place, size in enumerate(data.shape, start=1) if place not in axes]
    return reshaped(node, graph, data, tuple(shape))


def concatenated(node: Node, graph: Builder) -> Data:
    """Concat of values that all depend on the input."""
    parts = [node.data(place) for place in range(len(node.inputs))]
    rank = parts[0].rank
    axis = node.axis(node.attribute("axis", None), rank)
    if axis == 0:
        raise node.refused(_MIXED)
    others = {part.shape[: axis - 1] + part.shape[axis:] for part in parts}
    if len(others) != 1 or any(part.rank != rank for part in parts):
        raise node.refused(f"joins inputs of shapes {[part.shape for part in parts]}")
    shape = list(parts[0].shape)
    shape[axis - 1] = sum(part.shape[axis - 1] for part in parts)
    return graph.add(node, Joined(axis), parts, shape)


def padded(node: Node, graph: Builder) -> Data:
    """Pad, with a constant or by the values that are there."""
    data, mode = node.data(), node.attribute("mode", "constant")
    if mode not in ("constant", *_REACH):
        raise node.refused(f"pads by {mode!r:.40}; pad with a constant")
    axes = [*range(data.rank)]
    if node.opset < 11:
        pads, value = node.attribute("pads", []), node.attribute("value", 0.0)
    else:
        pads = node.array(1, "pads").reshape(-1).tolist()
        given = None if node.given(2) is None else node.weights(2, "a padding")
        value = 0.0 if given is None or not given.size else float(given.reshape(-1)[0])
        if node.given(3) is not None:
            axes = [
                node.axis(axis, data.rank) for axis in node.array(3, "axes").reshape(-1).tolist()
            ]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise node.refused(f"has {len(pads)} pads for {len(axes)} axes")
    ends = dict(zip(axes, zip(pads, pads[len(axes) :], strict=False), strict=True))
    if any(ends.pop(0, (0, 0))):
        raise node.refused(_MIXED)
    sides = [ends.get(axis, (0, 0)) for axis in range(1, data.rank)]
    if not any(map(any, sides)):
        return data
    if mode != "constant":
        most = _REACH[mode]
        for size, side in zip(data.shape, sides, strict=True):
            if min(side) < 0 or (most is not None and max(side) > size - most):
                raise node.refused(f"pads {size} values by {list(side)} as {mode!r}")
        around = [(0, 0), *sides]
        return cast(Data, chosen_by(node, graph, lambda given: np.pad(given, around, mode=mode)))
    shape = [size + begin + end for size, (begin, end) in zip(data.shape, sides, strict=True)]
    widths = [width for side in reversed(sides) for width in side]
    return graph.add(node, Padded(widths, value), [data], shape)


def reduced(node: Node, graph: Builder) -> Data:
    """ReduceMean and ReduceSum along other axes than the batch's."""
    data = node.data()
    keep = bool(node.attribute("keepdims", 1))
    axes = node.axes(1, data.rank, 18 if node.operator == "ReduceMean" else 13)
    if node.attribute("noop_with_empty_axes", 0) and not axes:
        return data
    if not axes or 0 in axes:
        raise node.refused(_MIXED)
    shape = [
        1 if place in axes else size
        for place, size in enumerate(data.shape, start=1)
        if keep or place not in axes
    ]
    made = graph.add(node, Mean(sorted(set(axes)), keep=keep), [data], shape)
    if node.operator == "ReduceMean":
        return made
    count = math.prod(data.shape[axis - 1] for axis in set(axes))
    return graph.add(node, Scaled(torch.tensor(float(count)).to(graph.kind)), [made], shape)


def same(node: Node, graph: Builder) -> Data:
    """Identity, Dropout, and a Cast between kinds of real numbers."""
    data = node.data()
    if node.operator == "Dropout":
        node.attribute("ratio", 0.5)
        node.attribute("seed", 0)
        training = node.given(2)
        if isinstance(training, Data) or (
            isinstance(training, Constant) and bool(training.array.any())
        ):
            raise node.refused("is in training mode; export the model after eval()")
    if node.operator == "Cast":
        with needing("from_onnx", extra="onnx"):
            import onnx

        kinds = onnx.TensorProto
        real = (kinds.FLOAT, kinds.DOUBLE)
        if node.attribute("to", kinds.FLOAT) not in real:
            raise node.refused("casts to other numbers than float32 and float64; leave it out")
        node.attribute("saturate", 1)
        node.attribute("round_mode", "up")
    return data


def shape_of(node: Node, graph: Builder) -> Value:
    """Shape: the sizes of a value, the batch's among them."""
    value = node.value(0)
    start, end = node.attribute("start", 0), node.attribute("end", None)
    return graph.sizes(value, slice(start, end))
