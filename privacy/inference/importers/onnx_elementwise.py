"""Arithmetic and activations of ONNX, element by element."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from privacy.inference.compiler import Polynomial, Square
from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_dense import fused_bias
from privacy.inference.importers.onnx_layers import Difference, Product, Scaled, Shifted, Sum
from privacy.inference.importers.onnx_values import Array, Constant, Data, Node

_LARGEST_POWER = 7
_LARGEST = float(np.finfo(np.float32).max)
_GATED = {nn.Sigmoid: nn.SiLU, nn.Hardsigmoid: nn.Hardswish}
"""What x times an activation of x is called."""


def _broadcast(node: Node, data: Data, array: Array) -> tuple[int, ...]:
    """The shape of an input with a constant beside it, in which the batch stays the first axis."""
    own = array.shape[1:] if array.ndim == data.rank else array.shape
    if array.ndim > data.rank or (array.ndim == data.rank and array.shape[0] != 1):
        raise node.refused(
            f"joins inputs of shape {data.shape} with a constant of shape {array.shape}, which has "
            "something else for each input of a batch"
        )
    try:
        return np.broadcast_shapes(data.shape, own)
    except ValueError as error:
        raise node.refused(f"joins shapes that do not broadcast: {error}") from error


def scaled(node: Node, graph: Builder, data: Data, factor: Array) -> Data:
    """A value times a constant."""
    shape = _broadcast(node, data, factor)
    return graph.add(node, Scaled(torch.from_numpy(np.array(factor)).to(graph.kind)), [data], shape)


def _shifted(node: Node, graph: Builder, data: Data, offset: Array) -> Data:
    shape = _broadcast(node, data, offset)
    fused = fused_bias(node, graph, data, offset) if shape == data.shape else None
    if fused is not None:
        return fused
    layer = Shifted(torch.from_numpy(np.array(offset)).to(graph.kind))
    return graph.add(node, layer, [data], shape)


def _both(node: Node, graph: Builder, layer: nn.Module) -> Data:
    """An operation on two values that depend on the input."""
    first, second = node.data(0), node.data(1)
    if first.rank != second.rank:
        raise node.refused(
            f"joins inputs of shapes {first.shape} and {second.shape}, so that the batch of one "
            "meets another axis of the other"
        )
    try:
        shape = np.broadcast_shapes(first.shape, second.shape)
    except ValueError as error:
        raise node.refused(f"joins shapes that do not broadcast: {error}") from error
    return graph.add(node, layer, [first, second], shape)


def added(node: Node, graph: Builder) -> Data:
    """Add."""
    first, second = node.value(0), node.value(1)
    if isinstance(first, Data) and isinstance(second, Data):
        return _both(node, graph, Sum())
    place = 0 if isinstance(first, Constant) else 1
    return _shifted(node, graph, node.data(1 - place), node.weights(place, "constants"))


def total(node: Node, graph: Builder) -> Data:
    """Sum, of any number of values."""
    inputs, made = node.inputs, node.value(0)
    for value in inputs[1:]:
        node.inputs = [made, value]
        made = added(node, graph)
    if isinstance(made, Constant):
        raise node.refused("adds up constants alone")
    return made


def subtracted(node: Node, graph: Builder) -> Data:
    """Sub."""
    first, second = node.value(0), node.value(1)
    if isinstance(second, Constant):
        return _shifted(node, graph, node.data(0), np.negative(node.weights(1, "constants")))
    if isinstance(first, Constant):
        negative = negated(node, graph, node.data(1))
        return _shifted(node, graph, negative, node.weights(0, "constants"))
    return _both(node, graph, Difference())


def negated(node: Node, graph: Builder, data: Data | None = None) -> Data:
    """Neg."""
    return scaled(node, graph, node.data(0) if data is None else data, np.array(-1.0))


def multiplied(node: Node, graph: Builder) -> Data:
    """Mul: with a constant, or of two values; of a value with itself it is a square."""
    first, second = node.value(0), node.value(1)
    if isinstance(first, Constant) or isinstance(second, Constant):
        place = 0 if isinstance(first, Constant) else 1
        return scaled(node, graph, node.data(1 - place), node.weights(place, "constants"))
    if first.index == second.index:
        return graph.add(node, Square(), [first], first.shape)
    for one, other in ((first, second), (second, first)):
        gate = _GATED.get(type(graph.layer(one)))
        if gate is not None and graph.sources(one) == (other.index,):
            return graph.add(node, gate(), [other], other.shape)
    return _both(node, graph, Product())


def divided(node: Node, graph: Builder) -> Data:
    """Div by a constant."""
    if isinstance(node.value(1), Data):
        raise node.refused(
            "divides by a value that depends on the model's input, which is no polynomial; divide "
            "by a constant, or before encryption"
        )
    divisor = node.weights(1, "divisors")
    if not bool((divisor != 0).all()):
        raise node.refused("divides by zero")
    return scaled(node, graph, node.data(0), 1 / divisor)


def powered(node: Node, graph: Builder) -> Data:
    """Pow with a whole exponent from 1 to 7."""
    data, given = node.data(0), node.weights(1, "exponents")
    if _broadcast(node, data, given) != data.shape:
        raise node.refused(
            f"takes inputs of shape {data.shape} to powers of shape {given.shape}; give one number"
        )
    exponents = np.unique(given)
    if len(exponents) != 1 or float(exponents[0]) not in range(1, _LARGEST_POWER + 1):
        raise node.refused(
            f"has exponents {exponents[:5].tolist()}; one whole number from 1 to {_LARGEST_POWER} "
            "is taken"
        )
    exponent = int(exponents[0])
    if exponent == 1:
        return data
    layer = Square() if exponent == 2 else Polynomial([0.0] * exponent + [1.0])
    return graph.add(node, layer.to(graph.kind), [data], data.shape)


def _clipped(node: Node) -> nn.Module:
    low, high = (_bound(node, place, name) for place, name in ((1, "min"), (2, "max")))
    if (low, high) == (0.0, 6.0):
        return nn.ReLU6()
    if (low, high) == (0.0, _LARGEST):
        return nn.ReLU()
    if not low < high or (low, high) == (-_LARGEST, _LARGEST):
        raise node.refused(f"keeps values between {low:g} and {high:g}; give a bound, or leave it")
    return nn.Hardtanh(low, high)


def _bound(node: Node, place: int, name: str) -> float:
    """A bound; where it is left out or infinite, what ONNX took for it before it could be."""
    given: float | None = None
    if node.opset < 11:
        given = node.attribute(name, None)
    elif node.given(place) is not None:
        array = node.array(place, "bounds")
        if array.size != 1:
            raise node.refused(f"has bounds of shape {array.shape}; give one number")
        given = array.item()
    least = -_LARGEST if name == "min" else _LARGEST
    bound = least if given is None else float(given)
    if math.isnan(bound):
        raise node.refused("has a bound that is no number")
    return max(-_LARGEST, min(bound, _LARGEST))


def _hard_sigmoid(node: Node) -> nn.Module:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
        raise node.refused(f"has alpha {alpha:g} and beta {beta:g}; PyTorch has 1/6 and 1/2 alone")
    return nn.Hardsigmoid()


def _gelu(node: Node) -> nn.Module:
    return nn.GELU(approximate=node.attribute("approximate", "none"))


ACTIVATIONS: dict[str, Callable[[Node], nn.Module]] = {
    "Relu": lambda _: nn.ReLU(),
    "Tanh": lambda _: nn.Tanh(),
    "Sigmoid": lambda _: nn.Sigmoid(),
    "Softplus": lambda _: nn.Softplus(),
    "Mish": lambda _: nn.Mish(),
    "HardSwish": lambda _: nn.Hardswish(),
    "Selu": lambda _: nn.SELU(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.attribute("alpha", 0.01)),
    "Elu": lambda node: nn.ELU(node.attribute("alpha", 1.0)),
    "Celu": lambda node: nn.CELU(node.attribute("alpha", 1.0)),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clipped,
}
"""Taken over as they are: CKKS cannot evaluate them, and they can be replaced in PyTorch."""


def activation(node: Node, graph: Builder) -> Data:
    """An activation, for whoever replaces it."""
    data = node.data(0)
    return graph.add(node, ACTIVATIONS[node.operator](node), [data], data.shape)
