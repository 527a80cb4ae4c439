"""Operators of ONNX that choose, repeat or reorder values of each input.

Numbers run through the operator in place of values and say where each came from, so that one layer
does for all of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_folding import FOLDED
from privacy.inference.importers.onnx_layers import Selected
from privacy.inference.importers.onnx_values import Array, Data, Node

_MOST = 1 << 22
"""Of the values of one input that are numbered, and of those that are chosen."""
_OPEN_BATCH = 2
_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""How ``Resize`` chooses a place between two."""


def selected(node: Node, graph: Builder) -> Data | tuple[Data, ...]:
    """The operator's outputs, as selections of its input's values."""
    others = [
        None if value is None else _for_batch(node, graph, place)
        for place, value in enumerate(node.inputs[1:], start=1)
    ]
    return chosen_by(node, graph, lambda given: _SELECTIONS[node.operator](node, given, *others))


def _batch(graph: Builder) -> int:
    """How many inputs are numbered: as many as the file is made for, or two."""
    return graph.batch if graph.batch == graph.other_batch else _OPEN_BATCH


def _for_batch(node: Node, graph: Builder, place: int) -> Array:
    """A constant, with the number of inputs that are numbered where it has that of a batch."""
    value = node.value(place)
    if isinstance(value, Data) or value.array.shape != value.other.shape:
        return node.array(place, "numbers")  # which refuses it
    own = (value.array == graph.batch) & (value.other == graph.other_batch)
    if not bool((own | (value.array == value.other)).all()):
        return node.array(place, "numbers")
    return np.where(own & value.depends_on_batch, _batch(graph), value.array)


def chosen_by(
    node: Node, graph: Builder, choose: Callable[[Array], Array | list[Array]]
) -> Data | tuple[Data, ...]:
    """Selections of the input's values, as ``choose`` makes them of an array of their numbers."""
    data = node.data()
    batch = _batch(graph)
    size = math.prod(data.shape)
    if batch * size > _MOST:
        raise node.refused(f"works on inputs of shape {data.shape}, larger than are taken")
    numbers = np.arange(batch * size).reshape(batch, *data.shape)
    try:
        made = choose(numbers)
    except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise node.refused(f"does not go with its inputs: {error}") from error
    several = made if isinstance(made, list) else [made]
    chosen = tuple(_one(node, graph, data, np.asarray(each), batch) for each in several)
    return chosen if isinstance(made, list) else chosen[0]


def _one(node: Node, graph: Builder, data: Data, chosen: Array, batch: int) -> Data:
    size = math.prod(data.shape)
    sources = chosen[0] if chosen.ndim > 0 and len(chosen) == batch else None
    firsts = size * np.arange(batch).reshape(-1, *[1] * (chosen.ndim - 1))
    if sources is None or not bool((chosen == sources + firsts).all()):
        raise node.refused("mixes the inputs of a batch, whose number is the first axis")
    if not bool(((sources >= 0) & (sources < size)).all()):
        raise node.refused("takes values of other inputs of a batch")
    if sources.shape == data.shape and bool((sources.ravel() == np.arange(size)).all()):
        return data
    return graph.add(node, Selected(sources.ravel(), sources.shape), [data], sources.shape)


def _split(node: Node, array: Array, sizes: Array | None = None) -> list[Array]:
    axis = node.axis(node.attribute("axis", 0), array.ndim)
    length, parts = array.shape[axis], len(node.outputs)
    given = node.attribute("split", None) if node.opset < 13 else sizes
    number = node.attribute("num_outputs", parts) if node.opset >= 18 else parts
    if given is None:
        most = -(-length // max(number, 1))
        lengths = [min(most, length - most * index) for index in range(number)]
    else:
        lengths = np.asarray(given).reshape(-1).tolist()
    if len(lengths) != parts or min(lengths) < 0 or sum(lengths) != length:
        raise node.refused(f"makes {parts} values of lengths {lengths} out of {length}")
    return np.split(array, np.cumsum(lengths)[:-1], axis=axis)


def _few(node: Node, shape: Sequence[int]) -> None:
    if min(shape, default=1) < 0 or math.prod(shape) > _OPEN_BATCH * _MOST:
        raise node.refused(f"makes shape {tuple(shape)}, larger than is taken")


def _tiled(node: Node, array: Array, repeats: Array) -> Array:
    times = repeats.reshape(-1).tolist()
    _few(node, [size * by for size, by in zip(array.shape, times, strict=True)])
    return np.tile(array, times)


def _expanded(node: Node, array: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(array.shape, tuple(shape.reshape(-1).tolist()))
    _few(node, wanted)
    return np.broadcast_to(array, wanted)


def _depth_to_space(node: Node, array: Array) -> Array:
    block, mode = node.attribute("blocksize", 1), node.attribute("mode", "DCR")
    count, channels, height, width = array.shape
    rest = channels // block**2
    if mode == "DCR":
        apart = array.reshape(count, block, block, rest, height, width)
        ordered = apart.transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        apart = array.reshape(count, rest, block, block, height, width)
        ordered = apart.transpose(0, 1, 4, 2, 5, 3)
    else:
        raise node.refused(f"has mode {mode!r:.40}")
    return ordered.reshape(count, rest, height * block, width * block)


def _space_to_depth(node: Node, array: Array) -> Array:
    block = node.attribute("blocksize", 1)
    count, channels, height, width = array.shape
    apart = array.reshape(count, channels, height // block, block, width // block, block)
    ordered = apart.transpose(0, 3, 5, 1, 2, 4)
    return ordered.reshape(count, channels * block**2, height // block, width // block)


def _resized(node: Node, array: Array, *given: Array | None) -> Array:
    """The nearest value to each place; what compares values around it is not taken."""
    if node.attribute("mode", "nearest") != "nearest":
        raise node.refused("interpolates; only mode nearest is taken")
    rule = node.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = node.attribute("nearest_mode", "round_prefer_floor")
    # Of other modes.
    node.attribute("cubic_coeff_a", -0.75)
    node.attribute("exclude_outside", 0)
    node.attribute("extrapolation_value", 0.0)
    if node.opset < 11 or node.operator == "Upsample":  # as later versions say it
        rule, nearest, given = "asymmetric", "floor", (None, *given)
    # Of opset 10 alone; onnxruntime looks upwards where it shrinks an axis.
    shrunk = "ceil" if node.operator == "Resize" and node.opset < 11 else nearest
    if node.operator == "Upsample" and node.opset < 9:
        given = (None, np.asarray(node.attribute("scales", [])))
    _, scales, sizes = (*given, None, None, None)[:3]
    if (
        rule not in _SCALED
        or nearest not in _NEAREST
        or node.attribute("antialias", 0)
        or node.has("axes")
    ):
        raise node.refused(f"chooses places by {rule!r:.40} and {nearest!r:.40}")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refused("keeps the aspect of its inputs; give sizes that do")
    if sizes is not None and sizes.size:
        lengths = sizes.reshape(-1).tolist()
        factors = [after / before for after, before in zip(lengths, array.shape, strict=True)]
    elif scales is not None and scales.size:
        factors = scales.reshape(-1).astype(float).tolist()
        lengths = [math.floor(size * by) for size, by in zip(array.shape, factors, strict=True)]
    else:
        raise node.refused("has neither scales nor sizes")
    _few(node, lengths)
    if node.operator == "Upsample" and min(factors) < 1:
        raise node.refused("shrinks its input, which Upsample does not; give scales of 1 or more")
    made = array
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if length != array.shape[axis] or factor != 1.0:
            mode = shrunk if factor < 1 else nearest
            at = _nearest(node, rule, mode, array.shape[axis], length, factor)
            made = np.take(made, at, axis=axis)
    if made.shape == array.shape and not bool((made == array).all()):
        # By the standard it moves values; onnxruntime gives its input as it is.
        raise node.refused("scales its input to the shape that it has, on which runtimes differ")
    return made


def _half_pixel(x: Array, before: int, after: int, by: Any) -> Array:
    half = x.dtype.type(0.5)
    return np.asarray((x + half) / by - half)


_SCALED: dict[str, Callable[[Array, int, int, Any], Array]] = {
    "half_pixel": _half_pixel,
    "asymmetric": lambda x, before, after, by: x / by,
    "pytorch_half_pixel": lambda x, before, after, by: (
        _half_pixel(x, before, after, by) if after > 1 else x * 0
    ),
    "align_corners": lambda x, before, after, by: (
        x * x.dtype.type((before - 1) / max(after - 1, 1))
    ),
}
"""Where in its input ``Resize`` looks for each place of its output."""


def _nearest(node: Node, rule: str, nearest: str, before: int, after: int, factor: float) -> Array:
    """Places in the input, where single and double precision agree on them."""
    made = []
    for kind in (np.float32, np.float64):
        places = _SCALED[rule](np.arange(after, dtype=kind), before, after, kind(factor))
        made.append(np.clip(_NEAREST[nearest](places), 0, before - 1).astype(np.int64))
    if not bool((made[0] == made[1]).all()):
        raise node.refused(
            f"makes {after} of {before} values, on which precisions differ; give whole factors"
        )
    return made[1]


_SELECTIONS: dict[str, Callable[..., Array | list[Array]]] = {
    "Slice": FOLDED["Slice"],
    "Gather": FOLDED["Gather"],
    "Split": _split,
    "Tile": _tiled,
    "Expand": _expanded,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resized,
    "Upsample": _resized,
}
SELECTIONS = tuple(_SELECTIONS)
"""The operators that are taken so."""
