"""Operations that weigh one value: linear layers, convolutions, averages, normalisations."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from privacy.inference.compiler.lowering import convolutions
from privacy.inference.compiler.lowering.elementwise import Elementwise
from privacy.inference.compiler.lowering.matrices import (
    Matrices,
    linear,
    normalisation,
    on_rows,
    reduction,
    scaling,
    separable,
)
from privacy.inference.compiler.lowering.operation import Operation, is_source


def dense(operation: Operation) -> Elementwise:
    """``nn.Linear`` and ``F.linear``."""
    layer: Any = operation.layer
    weight = operation.argument(1, "weight") if layer is None else layer.weight
    _check_constant(operation, weight)
    return operation.affine(lambda shape: linear(weight, shape), _entries(operation, weight[0]))


def convolved(operation: Operation) -> Elementwise:
    """Convolutions and transposed ones."""
    layer: Any = operation.layer
    name = operation.function.lower()
    given: dict[str, Any] = (
        operation.arguments(convolutions.ARGUMENTS[name])
        if layer is None
        else convolutions.settings(layer)
    )
    weight = given["weight"]
    _check_constant(operation, weight)
    outputs = operation.shape
    if "transpose" in name:
        # One entry for each input and each weight of its channel.
        inputs = math.prod(operation.only().shape)
        return operation.affine(
            lambda shape: convolutions.transposed(given, shape, outputs), inputs * weight[0].numel()
        )
    return operation.affine(
        lambda shape: convolutions.direct(given, shape), _entries(operation, weight[0])
    )


def multiplied(operation: Operation) -> Elementwise:
    """A product with a constant matrix, from either side."""
    one, other = operation.argument(0, "input"), operation.argument(1, "other")
    if is_source(one) and is_source(other):
        raise operation.refused(
            "multiplies two values that depend on the model's input; give a constant matrix, or "
            "multiply element by element"
        )
    weight = one if is_source(other) else other
    if weight.ndim != 2 and not (weight.ndim == 1 and is_source(one)):
        raise operation.refused(
            f"multiplies with shape {tuple(weight.shape)}; give a matrix of two axes"
        )
    if is_source(other):
        return operation.affine(
            lambda shape: on_rows(weight, shape), _entries(operation, weight[0])
        )
    columns = weight.reshape(len(weight), -1).T
    return operation.affine(lambda shape: linear(columns, shape), _entries(operation, columns[0]))


def averaged(operation: Operation) -> Elementwise:
    """Averages over windows, and upsampling: of each channel, one axis at a time."""
    name = operation.function.lower()
    axes = {"1d": 1, "2d": 2}.get(name[-2:], len(operation.shape) - 1)
    if axes not in (1, 2):
        raise operation.refused(f"works along {axes} axes; use one of 1 or 2 axes")
    return operation.affine(lambda shape: separable(operation.run_on, shape, axes))


def reduced(operation: Operation) -> Elementwise:
    """Sums and means along axes."""
    ndim = len(operation.only().shape) + 1
    given = operation.argument(1, "dim")
    dims = [given] if isinstance(given, int) else list(given or range(ndim))
    dims = sorted({dim % ndim for dim in dims})
    if 0 in dims:
        raise operation.refused(
            "mixes the images of a batch, whose number comes first in every shape; name the axes, "
            "as in x.mean(dim=(2, 3))"
        )

    def make(shape: tuple[int, ...]) -> Matrices:
        size, terms = math.prod(shape), math.prod(shape[dim - 1] for dim in dims)
        numbers = np.arange(size).reshape(1, *shape)
        last = np.moveaxis(numbers, dims, range(-len(dims), 0)).reshape(-1, terms)
        return reduction(last, size, 1 / terms if operation.function == "mean" else 1.0)

    return operation.affine(make)


def normalised(operation: Operation) -> Elementwise:
    """``nn.BatchNorm1d/2d`` and ``F.batch_norm`` with running statistics."""
    layer = operation.layer
    if layer is not None:
        given = {name: getattr(layer, name) for name in ("running_var", "weight", "eps")}
        allowed: tuple[int, ...] = (3,) if isinstance(layer, nn.BatchNorm2d) else (1, 2)
    else:
        names = "input running_mean running_var weight bias training momentum eps"
        given, allowed = operation.arguments(names), (1, 2, 3)
        if given.get("training") or given.get("running_var") is None:
            raise operation.refused(
                "mixes the images of a batch; give it running statistics and training=self.training"
            )

    def make(shape: tuple[int, ...]) -> Matrices:
        if len(shape) not in allowed:
            raise ValueError(f"inputs of shape {shape} have another number of dimensions")
        variance, weight = given["running_var"], given.get("weight")
        return normalisation(variance, weight, given.get("eps", 1e-5), shape)

    return operation.affine(make)


def standardised(operation: Operation) -> Elementwise:
    """``Normalize`` of torchvision."""
    layer: Any = operation.layer
    deviations = torch.as_tensor(layer.std, dtype=torch.float64, device="cpu").reshape(-1, 1, 1)
    return operation.affine(
        lambda shape: scaling(1 / torch.broadcast_to(deviations, shape).flatten().numpy())
    )


def dropped(operation: Operation) -> Elementwise:
    """Dropout functions, which do nothing in evaluation mode."""
    (before,) = operation.sources
    if not torch.equal(operation.outputs[0], before.meta["value"]):
        raise operation.refused(
            "drops values in evaluation mode too; call it with training=self.training"
        )
    return operation.only()


def _check_constant(operation: Operation, weight: Any) -> None:
    if is_source(weight):
        raise operation.refused(
            "takes weights that depend on the model's input; give constant ones, or multiply "
            "element by element"
        )


def _entries(operation: Operation, row: torch.Tensor) -> int:
    return math.prod(operation.shape) * row.numel()
