"""Per-example gradients of one layer, and their clipped sum over all layers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Gradients = dict[Tensor, Tensor]  # by parameter

_CACHED = 1 << 16  # numbers

# A clipped example stays below S by this share, the room for its coordinates' rounding.
MARGIN = 1e-6


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass over n examples."""

    inputs: Tensor  # (n, ...)
    backprops: Tensor  # (n, ...), the gradient of the summed losses at the layer's output


class LayerGradients(Protocol):
    """The gradients of n examples for one layer's parameters; ``method`` computes their norms."""

    method: str

    @property
    def dtype(self) -> torch.dtype:
        """The sum's precision: single, or double where the model's is."""

    def norms(self) -> Iterable[Tensor]:
        """Parts (n,), double, whose own norm is that of an example's gradient.

        A part beyond ``dtype`` is infinite.
        """

    def weighted_sum(self, factors: Tensor) -> Gradients:
        """The examples' gradients summed with ``factors`` (n,), double."""

    def select(self, rows: Tensor) -> "LayerGradients":
        """The gradients of the examples in the mask ``rows`` (n,)."""

    def of_each(self, out: Gradients) -> None:
        """Every example's gradient into ``out``, double, (n, *parameter.shape), by parameter."""


class BuiltGradients:
    """Every example's gradient is built: shape (n, *parameter.shape), by parameter."""

    def __init__(self, gradients: Gradients, method: str) -> None:
        self._gradients, self.method = gradients, method
        self.dtype = summing_dtype(*gradients.values())

    def norms(self) -> Iterable[Tensor]:
        return [row_norms(gradient) for gradient in self._gradients.values()]

    def weighted_sum(self, factors: Tensor) -> Gradients:
        factors = factors.to(self.dtype)
        return {
            parameter: (factors @ gradient.flatten(1)).view(parameter.shape)
            for parameter, gradient in self._gradients.items()
        }

    def select(self, rows: Tensor) -> LayerGradients:
        return BuiltGradients({p: g[rows] for p, g in self._gradients.items()}, self.method)

    def of_each(self, out: Gradients) -> None:
        copy_into(out, self._gradients)


def copy_into(out: Gradients, gradients: Gradients) -> None:
    """Copy ``gradients`` to the tensors of ``out``, in their precision and on their device."""
    for parameter, gradient in gradients.items():
        out[parameter].copy_(gradient)


@torch.no_grad()
def clipped_sum(layers: Sequence[LayerGradients], *, clipping_norm: float) -> Gradients:
    """Sum over the examples of min(1/S, 1/‖g‖)·g, g being one example's gradient.

    It is the clipped sum in units of S, so single precision holds it whatever S is. Norms and
    factors are in double precision, products and sums in single at least. An example whose norm is
    not finite (NaN, infinite or beyond single precision) adds zero: its influence is at most 1.

    ``layers`` are all of the model's; S is over all of them together.
    """
    if not layers:
        return {}
    parts = torch.stack([part for layer in layers for part in layer.norms()], dim=-1)
    single = all(layer.dtype == torch.float32 for layer in layers)
    norms = torch.linalg.vector_norm(parts, dim=-1) if single else vector_norms(parts)
    norm_sum = float(norms.sum())
    if not math.isfinite(norm_sum):
        finite = torch.isfinite(norms)
        layers = [layer.select(finite) for layer in layers]
        norms = norms[finite]
    factors = norms.mul(1 + MARGIN).reciprocal_().clamp_(max=1 / clipping_norm)
    # Below its smallest normal number a precision rounds by more than the margin.
    smallest = max(torch.finfo(layer.dtype).tiny for layer in layers)
    if not 2 * smallest * norm_sum < 1:
        factors = torch.where(factors < smallest, 0.0, factors)
    gradients: Gradients = {}
    with full_precision_products(factors.device):
        for layer in layers:
            gradients.update(layer.weighted_sum(factors))
    return gradients


@contextmanager
def full_precision_products(device: torch.device) -> Iterator[None]:
    """Matrix products in the operands' precision, under autocast and low matmul precision too."""
    before = torch.get_float32_matmul_precision()
    kind = device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if before == "highest" and not autocast:
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def summing_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision for sums of these: single at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def vector_norms(values: Tensor) -> Tensor:
    """L2 norms along the last axis, in double precision.

    Squares of single-precision numbers neither vanish nor overflow in double precision; those of
    doubles may, so these are scaled by each vector's largest magnitude.
    """
    norms: Tensor
    if values.dtype != torch.float64:
        norms = _norms_in_double(values)
    elif not values.shape[-1]:
        norms = values.new_zeros(values.shape[:-1])
    else:
        largest = one_for_zero(values.abs().amax(-1))
        norms = torch.linalg.vector_norm(values / largest[..., None], dim=-1) * largest
    return norms


def _norms_in_double(values: Tensor) -> Tensor:
    """In parts whose copies in double precision stay in a core's cache."""
    norm = partial(torch.linalg.vector_norm, dim=-1, dtype=torch.float64)
    if not values.is_cpu or values.numel() <= 2 * _CACHED:
        norms: Tensor = norm(values)
    else:
        width = values.shape[-1]
        parts = values.reshape(-1, width).split(max(1, _CACHED // width))
        norms = torch.cat([norm(part) for part in parts]).view(values.shape[:-1])
    return norms


def one_for_zero(divisors: Tensor) -> Tensor:
    """``divisors``, with one in place of zero."""
    return torch.where(divisors == 0, 1.0, divisors)


def row_norms(values: Tensor) -> Tensor:
    """L2 norm of each row of ``values`` (n, ...), shape (n,), in double precision."""
    return vector_norms(values.flatten(1))


def infinite_beyond(dtype: torch.dtype, norms: Tensor) -> Tensor:
    """``norms``, infinite where they are beyond ``dtype``."""
    return torch.where(norms > torch.finfo(dtype).max, math.inf, norms)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = result + tensor
    return result
