"""ONNX files as PyTorch modules."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from privacy.imports import needing
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_dense import (
    gemm,
    linear_model,
    normalisation,
    product,
    scaler,
)
from privacy.inference.importers.onnx_elementwise import (
    ACTIVATIONS,
    activation,
    added,
    divided,
    multiplied,
    negated,
    powered,
    subtracted,
    total,
)
from privacy.inference.importers.onnx_file import OnnxFile, read_onnx
from privacy.inference.importers.onnx_folding import FOLDED, fold
from privacy.inference.importers.onnx_graph import needed, only_input, output_name
from privacy.inference.importers.onnx_moves import (
    concatenated,
    flatten,
    padded,
    reduced,
    reshape,
    same,
    shape_of,
    squeeze,
    transpose,
    unsqueeze,
)
from privacy.inference.importers.onnx_selections import SELECTIONS, selected
from privacy.inference.importers.onnx_values import (
    MAX_ELEMENTS,
    Constant,
    Data,
    Node,
    Untaken,
    Value,
    constant,
)
from privacy.inference.importers.onnx_windows import (
    average,
    convolution,
    global_average,
    transposed_convolution,
)
from privacy.untrusted_text import quoted

OPERATORS: dict[str, Callable[[Node, Builder], Value | tuple[Data, ...]]] = {
    **dict.fromkeys(SELECTIONS, selected),
    **dict.fromkeys(ACTIVATIONS, activation),
    **dict.fromkeys(("Identity", "Dropout", "Cast"), same),
    **dict.fromkeys(("LinearRegressor", "LinearClassifier"), linear_model),
    "Add": added,
    "AveragePool": average,
    "BatchNormalization": normalisation,
    "Concat": concatenated,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Div": divided,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": global_average,
    "MatMul": product,
    "Mul": multiplied,
    "Neg": negated,
    "Pad": padded,
    "Pow": powered,
    **dict.fromkeys(("ReduceMean", "ReduceSum"), reduced),
    "Reshape": reshape,
    "Scaler": scaler,
    "Shape": shape_of,
    "Squeeze": squeeze,
    "Sub": subtracted,
    "Sum": total,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""Operators on values that depend on the model's input."""
_OUTPUTS = {"Dropout": 2, "LinearClassifier": 2}
"""How many an operator may have where it is not one: a mask that is not used, and a decision."""
_SCIKIT_LEARN = ("Scaler", "LinearRegressor", "LinearClassifier")
_AT_THE_END = (
    "has no polynomial form; at the end of a model it changes no decision: leave it out with "
    "output={}"
)
_DECISION = "decides or names classes, which the data owner does after decryption; "
_REMEDIES = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), _AT_THE_END),
    **dict.fromkeys(("ArgMax", "TopK", "ZipMap"), _DECISION + "leave it out with output={}"),
    "ArrayFeatureExtractor": _DECISION + "ask for the scores, with their name as output=",
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), "compares values; train with AveragePool"),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        "divides by what it computes of each input; train with BatchNormalization, which becomes "
        "constants after training",
    ),
    "Erf": "is part of a GELU; export with opset 20 or later, where Gelu is one operator that "
    "replace_activations knows",
    **dict.fromkeys(
        ("Loop", "If", "Scan", "Where", "Greater", "Less"),
        "decides by values, which a server that sees none cannot do",
    ),
}
_ANYTHING = (
    "is none of the operators that are taken: Gemm, MatMul, Conv, ConvTranspose, AveragePool, "
    "GlobalAveragePool, BatchNormalization, Add, Sub, Mul, Div and Pow, ReduceMean, ReduceSum, "
    "Pad, Concat, and those that move values (Flatten, Reshape, Transpose, Squeeze, Slice, Split, "
    "Gather, Resize to the nearest, ...)"
)


def from_onnx(
    path: "str | os.PathLike[str]",
    *,
    output: str | None = None,
    input_shape: Sequence[int] | int | None = None,
) -> nn.Module:
    """An ONNX file as a PyTorch module for :func:`compile_model`.

    Taken are files with one input, whose first axis is the batch, and operators that are
    affine or polynomial. Activations such as Relu are taken over as PyTorch's own, which
    ``compile_model`` refuses by name; replace them first. The module is an ``nn.Sequential``
    where the operators follow one another. It is in the precision of the file's input, in
    evaluation mode. Its attribute ``input_shape`` is the shape of one input.

    The file may be a stranger's: nothing in it is executed, and at most 512 MB are read, from its
    own folder. Whatever is not known exactly is refused: operators, attributes, other precisions.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file; weights may lie in other files of the same folder.
    output : str, optional
        The name of the value that is to be the module's output, where the file has several
        outputs, or ends in a softmax or a decision.
    input_shape : sequence of int, or int, optional
        The shape of one input, without the batch, where the file leaves it open.

    Raises
    ------
    MissingExtraError
        If the ``onnx`` package is missing (``pip install 'bloomseal[onnx]'``).
    FileNotFoundError
        If there is no such file.
    UnsupportedModelError
        If it is no ONNX file, too large, or has something that cannot be taken over; the message
        names the operator and, where there is one, an alternative.
    """
    file = read_onnx(path)
    graph = file.graph
    name = output_name(graph, output)
    nodes = needed(graph, name)
    source, shape, batch, kind = only_input(graph, nodes, name, input_shape)
    builder = Builder(kind, batch)
    values: dict[str, Value] = {source: Data(0, shape)}
    made = _Values(file, values).run(nodes, builder, name)
    if isinstance(made, Constant):
        raise UnsupportedModelError("the model's output does not depend on its input")
    module = builder.module(made).eval()
    module.input_shape = shape  # type: ignore[assignment]
    return module


class _Values:
    """Runs the operators of a file one after the other, constants and layers."""

    def __init__(self, file: OnnxFile, values: dict[str, Value]) -> None:
        self._file, self._values = file, values
        self._weights = {tensor.name: tensor for tensor in file.graph.initializer}
        self._decisions: dict[str, str] = {}
        self._room = 2 * MAX_ELEMENTS

    def run(self, nodes: Sequence[Any], graph: Builder, name: str) -> Value:
        for proto in nodes:
            node = Node(
                proto,
                [self._value(each) if each else None for each in proto.input],
                self._file.opset,
                self._attributes(proto),
            )
            made = self._made(node, proto, graph)
            values = made if isinstance(made, tuple) else (made,)
            node.check_attributes()
            node.check_outputs(max(len(values), _OUTPUTS.get(node.operator, 1)))
            outputs = list(proto.output)
            if node.operator == "LinearClassifier" and len(outputs) > 1:
                self._decisions[outputs.pop(0)] = outputs[0]
            self._values |= dict(zip(outputs, values, strict=False))
        return self._value(name)

    def _value(self, name: str) -> Value:
        if name in self._decisions:
            raise UnsupportedModelError(
                f"{quoted(name)} is a decision, which the data owner makes after decryption; ask "
                f"for the scores, output={quoted(self._decisions[name])}"
            )
        if name not in self._values:
            if name not in self._weights:
                raise UnsupportedModelError(
                    f"{quoted(name)} is used before anything makes it; save the operators in the "
                    "order in which they run"
                )
            self._values[name] = constant(self._file.array(self._weights[name]))
        return self._values[name]

    def _made(self, node: Node, proto: Any, graph: Builder) -> Value | tuple[Value, ...]:
        """The outputs of use: one, of a Split all, of a classifier the second, its scores."""
        operator = node.operator
        own = proto.domain in ("", "ai.onnx")
        if not own and not (proto.domain == "ai.onnx.ml" and operator in _SCIKIT_LEARN):
            raise node.refused(self._remedy(operator, proto))
        if own and operator == "Constant":
            return self._counted(node, constant(_constant(node)))
        depends = any(isinstance(value, Data) for value in node.inputs)
        if own and not depends and operator in FOLDED:
            return self._counted(node, fold(node))
        if operator not in OPERATORS or (not depends and operator != "Shape"):
            raise node.refused(self._remedy(operator, proto))
        return OPERATORS[operator](node, graph)

    def _counted(self, node: Node, made: Constant) -> Constant:
        self._room -= made.array.size
        if self._room < 0:
            raise node.refused("makes more constants than are taken; fold them before export")
        return made

    def _remedy(self, operator: str, proto: Any) -> str:
        remedy = _REMEDIES.get(operator, _ANYTHING)
        return remedy.format(quoted(proto.input[0])) if proto.input else remedy

    def _attributes(self, proto: Any) -> dict[str, Any]:
        with needing("from_onnx", extra="onnx"):
            import onnx

        kinds = onnx.AttributeProto
        made: dict[str, Any] = {}
        for entry in proto.attribute:
            if entry.type == kinds.TENSOR:
                made[entry.name] = self._file.array(entry.t)
            elif entry.type in (kinds.FLOAT, kinds.INT, kinds.STRING):
                made[entry.name] = onnx.helper.get_attribute_value(entry)
            elif entry.type in (kinds.FLOATS, kinds.INTS, kinds.STRINGS):
                made[entry.name] = list(onnx.helper.get_attribute_value(entry))
            else:
                made[entry.name] = Untaken(kinds.AttributeType.Name(entry.type).lower())
        return made


def _constant(node: Node) -> Any:
    for name, kind in (
        ("value", None),
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if node.has(name):
            return np.asarray(node.attribute(name, None), dtype=kind)
    raise node.refused("is of a kind that is not taken; numbers are")
