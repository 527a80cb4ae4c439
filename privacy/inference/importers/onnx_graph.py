"""What an ONNX graph takes, what it gives, and which operators lie between."""

from collections.abc import Sequence
from typing import Any

import torch

from privacy.arguments import sizes, text
from privacy.imports import needing
from privacy.inference.errors import UnsupportedModelError
from privacy.untrusted_text import quoted


def output_name(graph: Any, chosen: str | None) -> str:
    """The value that is to be the module's output: the chosen one, or the only output."""
    names = [str(entry.name) for entry in graph.output]
    if chosen is not None:
        chosen = text("output", chosen, "the name of a value in the file")
        made = {str(name) for node in graph.node for name in node.output}
        if chosen not in made:
            raise ValueError(
                f"output is {chosen!r}, and the file has no such value; its outputs are "
                f"{', '.join(map(quoted, names[:5]))}"
            )
        return chosen
    if len(names) != 1:
        raise UnsupportedModelError(
            f"the file has {len(names)} outputs, {', '.join(map(quoted, names[:5]))}; say which "
            "one is the logits, with output="
        )
    return names[0]


def needed(graph: Any, name: str) -> list[Any]:
    """The operators that an output needs, in the order of the file."""
    makers: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        for made in node.output:
            if made and makers.setdefault(made, place) != place:
                raise UnsupportedModelError(f"two operators make {quoted(made)}")
    chosen: set[int] = set()
    waiting = [name]
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker not in chosen:
            chosen.add(maker)
            waiting += graph.node[maker].input
    return [graph.node[place] for place in sorted(chosen)]


def only_input(
    graph: Any, nodes: Sequence[Any], name: str, given: Sequence[int] | int | None
) -> tuple[str, tuple[int, ...], int | None, torch.dtype]:
    """Name, shape of one, size of the batch if it is fixed, and precision of the only input."""
    with needing("from_onnx", extra="onnx"):
        import onnx

    weights = {tensor.name for tensor in graph.initializer}
    read = {used for node in nodes for used in node.input} | {name}
    inputs = [each for each in graph.input if each.name in read - weights]
    if not inputs:
        raise UnsupportedModelError(f"{quoted(name)} does not depend on any input of the model")
    if len(inputs) != 1:
        names = ", ".join(quoted(each.name) for each in inputs[:5])
        raise UnsupportedModelError(
            f"the model has {len(inputs)} inputs, {names}; one is taken "
            "(join several columns into one array, and export the model for that)"
        )
    (only,) = inputs
    label, tensor = quoted(only.name), only.type.tensor_type
    kinds = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64}
    kind = kinds.get(tensor.elem_type)
    if kind is None:
        raise UnsupportedModelError(
            f"input {label} is of another kind than float32 and float64; export the model for one "
            "of them"
        )
    dims = [entry.dim_value if entry.HasField("dim_value") else None for entry in tensor.shape.dim]
    batch, rest = (dims[0], dims[1:]) if dims else (None, [])
    if given is not None:
        asked = sizes("input_shape", given, "the shape of one input, without the batch")
        fits = len(asked) == len(rest) and all(
            size in (None, 0, ours) for size, ours in zip(rest, asked, strict=True)
        )
        if dims and not fits:
            raise ValueError(f"input_shape is {asked}; the file has {_shown(rest)}")
        return str(only.name), asked, batch or None, kind
    if not rest or not all(size is not None and size > 0 for size in rest):
        raise UnsupportedModelError(
            f"input {label} has shape {_shown(rest)} behind the batch's axis; give "
            "input_shape=, the shape of one input"
        )
    return str(only.name), tuple(size for size in rest if size is not None), batch or None, kind


def _shown(dims: Sequence[int | None]) -> str:
    return f"({', '.join('open' if not size else str(size) for size in dims)})"
