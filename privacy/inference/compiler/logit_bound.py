"""A bound of the logits that training can lower.

Headroom and precision share the bits of a plan: every bit by which a logit might be larger over
the declared range is a bit less for its precision. Add ``weight * relu(logit_bound(...).log2() -
bits)`` to the loss: below ``bits`` it is zero, so that the model does not shrink to nothing.
"""

import math
from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from privacy.arguments import of_kind, sizes
from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.compiler.lowering.modules import AVERAGES, MOVES, NORMS, NOTHING, WEIGHTED
from privacy.inference.input_range import bounds
from privacy.inference.input_range import input_range as written_range

SHAPE = (
    "the positive sizes of one input without the batch, such as (1, 28, 28), or a number alone "
    "for a vector"
)
_NOT_NEGATIVE = (*MOVES, *AVERAGES)
"""Layers without negative weights, but for upsampling that is bicubic."""


def logit_bound(
    model: nn.Sequential,
    *,
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
) -> Tensor:
    """A bound of every |logit| over all inputs in a range, differentiable in the weights.

    Interval bound propagation (Gowal et al. 2018, section 3) in two forward passes of one input.
    It reads no data, so that private training pays nothing for it. A plan proves this bound or a
    lower one, up to rounding.

    Parameters
    ----------
    model : nn.Sequential
        Of layers that can be compiled, BatchNorm in evaluation mode only.
    input_shape, input_range
        As for :func:`compile_model`.

    Returns
    -------
    Tensor
        A scalar.
    """
    of_kind("model", model, nn.Module, "an nn.Sequential")
    shape = sizes("input_shape", input_shape, SHAPE)
    low, high = bounds(written_range("input_range", input_range, shape), shape)
    like = next(model.parameters())
    centre = torch.tensor((low + high) / 2, dtype=like.dtype, device=like.device)[None]
    radius = torch.tensor((high - low) / 2, dtype=like.dtype, device=like.device)[None]
    centre, radius = _through(model, centre, radius)
    return (centre.abs() + radius).max()


def _through(layer: nn.Module, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and radius of each value after a layer."""
    # A subclass may run something else.
    kind = type(layer)
    if isinstance(layer, nn.Sequential) and kind is nn.Sequential:
        for inner in layer:
            centre, radius = _through(inner, centre, radius)
        return centre, radius
    if kind in WEIGHTED:
        # Zeros that pad an input are known exactly, and so have no radius.
        sizes = {name: value.abs() for name, value in layer.named_parameters()}
        if "bias" in sizes:
            sizes["bias"] = torch.zeros_like(sizes["bias"])
        return layer(centre), torch.func.functional_call(layer, sizes, radius)
    bicubic = isinstance(layer, nn.Upsample) and layer.mode == "bicubic"
    if kind in _NOT_NEGATIVE and not bicubic:
        return layer(centre), layer(radius) - layer(torch.zeros_like(radius))
    if kind in NORMS and not layer.training:
        return layer(centre), (layer(radius) - layer(torch.zeros_like(radius))).abs()
    if kind in NOTHING:
        return centre, radius
    if isinstance(layer, Square) and kind is Square:
        return centre**2 + radius**2 / 2, 2 * centre.abs() * radius + radius**2 / 2
    if isinstance(layer, Polynomial) and kind is Polynomial:
        return _polynomial(layer.coefficients, centre, radius)
    raise TypeError(
        f"logit_bound has no interval arithmetic for {kind.__name__}"
        f"{' in training mode' if kind in NORMS else ''}; use an nn.Sequential of layers that can "
        "be compiled: linear ones, convolutions, average pooling, padding, Flatten, BatchNorm in "
        "evaluation mode, Dropout, Square or Polynomial"
    )


def _polynomial(coefficients: Tensor, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The Taylor series around the centre: exact there, and every other term at its largest."""
    terms = list(coefficients.unbind())
    around = []
    for order in range(len(terms)):
        value = sum(
            (
                math.comb(power, order) * terms[power] * centre ** (power - order)
                for power in range(order, len(terms))
            ),
            start=torch.zeros_like(centre),
        )
        around.append(value)
    spread = sum(
        (around[order].abs() * radius**order for order in range(1, len(around))),
        start=torch.zeros_like(centre),
    )
    return around[0], spread
