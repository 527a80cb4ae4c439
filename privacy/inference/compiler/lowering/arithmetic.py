"""Sums, differences, products, quotients and powers, as a model's forward writes them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from privacy.inference.compiler.lowering import elementwise as element
from privacy.inference.compiler.lowering.elementwise import Elementwise
from privacy.inference.compiler.lowering.matrices import as_array
from privacy.inference.compiler.lowering.moves import broadcast
from privacy.inference.compiler.lowering.operation import Operation, constant, is_source
from privacy.inference.compiler.lowering.tracing import POINTS


def negated(operation: Operation) -> Elementwise:
    """A value times -1."""
    return element.linear_of(operation.only(), -1.0, 0.0, operation.title)


def squared(operation: Operation) -> Elementwise:
    """``torch.square``."""
    return element.power(operation.only(), 2, operation.title)


def powered(operation: Operation) -> Elementwise:
    """A value to a constant whole power."""
    exponent = operation.argument(1, "exponent")
    if not is_source(operation.argument(0, "input")) or is_source(exponent):
        raise operation.refused("takes a power that depends on the model's input; give a number")
    if isinstance(exponent, Tensor) and exponent.numel() != 1:
        raise operation.refused("takes powers that differ; give one whole number from 1 to 7")
    return element.power(operation.only(), float(exponent), operation.title)


def added(operation: Operation) -> Elementwise:
    """The first plus alpha times the other."""
    return _total(operation, 1.0, _alpha(operation))


def subtracted(operation: Operation) -> Elementwise:
    """The first less alpha times the other."""
    return _total(operation, 1.0, -_alpha(operation))


def subtracted_from(operation: Operation) -> Elementwise:
    """The other less alpha times the first."""
    return _total(operation, -_alpha(operation), 1.0)


def times(operation: Operation) -> Elementwise:
    """Element by element."""
    one, other = _operands(operation)
    if isinstance(one, Elementwise) and isinstance(other, Elementwise):
        return element.product(one, other, operation.title)
    value, factor = (one, other) if isinstance(one, Elementwise) else (other, one)
    return _scaled(operation, value, factor)


def divided(operation: Operation) -> Elementwise:
    """By a constant."""
    one, other = _operands(operation)
    if isinstance(other, Elementwise):
        raise operation.refused(
            "divides by a value that depends on the model's input, which cannot be evaluated under "
            "encryption; divide by a constant"
        )
    if operation.node.kwargs.get("rounding_mode") is not None:
        raise operation.refused("rounds, which is no polynomial; leave rounding_mode out")
    if not np.all(other):
        raise operation.refused("divides by zero; give another divisor")
    return _scaled(operation, one, 1 / other)


def _alpha(operation: Operation) -> float:
    return float(operation.argument(2, "alpha", 1.0))


def _operands(operation: Operation) -> tuple[Any, Any]:
    """Both operands in the shape of the output: values, numbers, or a constant an element."""
    both: list[Any] = []
    for index, name in enumerate(("input", "other")):
        operand = operation.argument(index, name)
        if is_source(operand):
            given = operation.given[operation.sources.index(operand)]
            both.append(broadcast(operation, given, operand.meta["value"].ndim))
            continue
        operand = constant(operand)
        if isinstance(operand, Tensor) and operand.numel() != 1:
            full = torch.broadcast_to(operand, (POINTS, *operation.shape)).reshape(POINTS, -1)
            if not torch.equal(full, full[:1].expand_as(full)):
                raise operation.refused(
                    "treats the images of a batch differently; give a constant without the batch's "
                    "axis"
                )
            both.append(as_array(full[0]))
        else:
            both.append(float(operand))
    return both[0], both[1]


def _scaled(operation: Operation, value: Elementwise, factor: Any) -> Elementwise:
    if isinstance(factor, float):
        return element.linear_of(value, factor, 0.0, operation.title)
    return element.scaled(value, factor, operation.title)


def _total(operation: Operation, first: float, second: float) -> Elementwise:
    """A sum of both operands, each times a number."""
    one, other = _operands(operation)
    title = operation.title
    if isinstance(one, Elementwise) and isinstance(other, Elementwise):
        if first != 1.0:
            one = element.linear_of(one, first, 0.0, title)
        return element.total(one, other, second, title)
    value, factor, added, weight = (
        (one, first, other, second) if isinstance(one, Elementwise) else (other, second, one, first)
    )
    if isinstance(added, float):
        return element.linear_of(value, factor, weight * added, title)
    if factor != 1.0:
        value = element.linear_of(value, factor, 0.0, title)
    return element.shifted(value, weight * added, title)
