"""From the traced operations of a model to its values: which function is lowered by what."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import fx

from privacy.inference.arithmetic.network import Vector
from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.compiler.lowering import arithmetic, modules, weights
from privacy.inference.compiler.lowering.elementwise import Elementwise
from privacy.inference.compiler.lowering.moves import moved
from privacy.inference.compiler.lowering.operation import Entry, Operation
from privacy.inference.compiler.lowering.tracing import check_batch, check_numbers, depends
from privacy.inference.compiler.lowering.values import Value
from privacy.inference.compiler.ranges import Interval
from privacy.inference.errors import UnsupportedLayerError

Lowering = Callable[[Operation], Entry]
"""What an operation becomes."""


def _by_name(table: dict[str, Lowering]) -> dict[str, Lowering]:
    """One entry for each of the names in a key."""
    return {name: lowering for names, lowering in table.items() for name in names.split()}


FUNCTIONS = _by_name(
    {
        "flatten ravel reshape view unflatten squeeze unsqueeze": moved,
        "permute transpose swapaxes swapdims movedim moveaxis getattr": moved,
        "cat concat concatenate stack hstack vstack dstack column_stack": moved,
        "chunk split tensor_split unbind getitem narrow select index_select diagonal": moved,
        "flip fliplr flipud roll rot90 repeat tile repeat_interleave unfold pad": moved,
        "expand expand_as view_as reshape_as broadcast_to": moved,
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle": moved,
        "contiguous clone detach to double cpu pos positive": moved,
        "avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d": weights.averaged,
        "interpolate upsample upsample_nearest upsample_bilinear": weights.averaged,
        "dropout dropout1d dropout2d dropout3d": weights.dropped,
        "alpha_dropout feature_alpha_dropout": weights.dropped,
        "mean sum": weights.reduced,
        "linear": weights.dense,
        "matmul mm": weights.multiplied,
        "conv1d conv2d conv_transpose1d conv_transpose2d": weights.convolved,
        "batch_norm": weights.normalised,
    }
)
ARITHMETIC = _by_name(
    {
        "add": arithmetic.added,
        "sub subtract": arithmetic.subtracted,
        "rsub": arithmetic.subtracted_from,
        "mul multiply": arithmetic.times,
        "div divide true_divide truediv": arithmetic.divided,
        "neg negative": arithmetic.negated,
        "square": arithmetic.squared,
        "pow": arithmetic.powered,
    }
)
_TRANSPOSES = ("T", "mT", "data")
"""Attributes of a tensor that are values of their own."""


def lowered(
    nodes: Sequence[fx.Node],
    low: Vector,
    high: Vector,
    further: Mapping[str, Lowering] = MappingProxyType({}),
) -> Value:
    """The output of a trace as a value; ``low`` and ``high`` bound the input's elements.

    ``further`` lowers layers and functions that CKKS does not evaluate, by their names.

    Raises
    ------
    UnsupportedLayerError
        If an operation cannot be evaluated under encryption.
    """
    entries: dict[fx.Node, Entry] = {}
    for node in nodes:
        if node.op == "output":
            made = entries.get(cast(fx.Node, node.args[0]))
            if isinstance(made, Elementwise):
                return made.value()
        elif depends(node):
            if node.op == "placeholder":
                points = node.meta["value"]
                flat, span = points.flatten(1).numpy().T, Interval(low, high)
                entries[node] = Elementwise(Value(tuple(points.shape[1:]), "", flat, span))
            else:
                entries[node] = _lowered(node, entries, further)
    raise UnsupportedLayerError(
        "the model's forward returns something else than one tensor that depends on its input; "
        "return the logits alone"
    )


def _lowered(
    node: fx.Node, entries: dict[fx.Node, Entry], further: Mapping[str, Lowering]
) -> Entry:
    first = entries.get(cast(fx.Node, node.args[0])) if node.args else None
    check_batch(node)
    if isinstance(first, tuple) and getattr(node.target, "__name__", "") == "getitem":
        return cast(Entry, first[cast(int, node.args[1])])
    operation = Operation(node, entries)
    name = operation.function
    if operation.layer is None and name in ARITHMETIC:
        made = ARITHMETIC[name](operation)
        check_numbers(node)
        return made
    check_numbers(node)
    if name in further:
        return further[name](operation)
    if operation.layer is not None:
        return _layer(operation)
    lowering = FUNCTIONS.get(name)
    if name == "getattr" and node.args[1] not in _TRANSPOSES:
        lowering = None
    if lowering is not None and "out" not in node.kwargs:
        return lowering(operation)
    if name.endswith("_") and name.rstrip("_") in {**FUNCTIONS, **ARITHMETIC}:
        raise operation.refused(
            f"changes a value in place; write x = x.{name.rstrip('_')}(...) instead"
        )
    raise operation.refused(
        f"cannot be evaluated under encryption; {modules.function_remedy(name)}"
    )


def _layer(operation: Operation) -> Entry:
    layer: Any = operation.layer
    given = operation.only()
    if isinstance(layer, modules.NOTHING):
        return given
    if isinstance(layer, Square):
        return Elementwise(given.value(), (0.0, 0.0, 1.0), operation.title)
    if isinstance(layer, Polynomial):
        coefficients = layer.coefficients.to(torch.float64).tolist()
        return Elementwise(given.value(), tuple(coefficients), operation.title)
    if isinstance(layer, modules.MOVES):
        return moved(operation)
    if isinstance(layer, modules.AVERAGES):
        return weights.averaged(operation)
    if isinstance(layer, modules.NORMS):
        return weights.normalised(operation)
    if isinstance(layer, torch.nn.Linear):
        return weights.dense(operation)
    if isinstance(layer, modules.WEIGHTED):
        return weights.convolved(operation)
    return weights.standardised(operation)
