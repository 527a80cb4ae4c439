"""What one layer knows of its examples' gradients, and the plain way of knowing it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Gradients = dict[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass over n examples.

    Parameters
    ----------
    inputs : Tensor, shape (n, ...)
        What went in.
    backprops : Tensor, shape (n, ...)
        The gradient of the examples' summed losses at what came out.
    """

    inputs: Tensor
    backprops: Tensor


class LayerGradients(Protocol):
    """The gradients of n examples for one layer's parameters.

    ``method`` names how their norms are had, ``dtype`` the precision they are summed in.
    """

    method: str

    @property
    def dtype(self) -> torch.dtype:
        """Single precision, or double where the model is."""

    def norms(self) -> Iterable[Tensor]:
        """Parts, shape (n,), double: the norm of an example's gradient is the norm of its parts.

        A part that ``dtype`` cannot hold is infinite.
        """

    def weighted_sum(self, factors: Tensor) -> Gradients:
        """The examples' gradients summed with ``factors`` (n,), double, by parameter."""

    def only(self, rows: Tensor) -> "LayerGradients":
        """The gradients of the examples that the mask ``rows`` (n,) keeps."""


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Matrix products in the operands' precision, whatever PyTorch was told for the model's.

    ``torch.autocast`` and ``torch.set_float32_matmul_precision`` would round to half precision.
    """
    before = torch.get_float32_matmul_precision()
    if before == "highest" and not torch.is_autocast_enabled(device.type):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def summing_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision that sums of these are made in: single at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def vector_norms(values: Tensor) -> Tensor:
    """L2 norms along the last axis, in double precision.

    Squares of what single precision holds neither vanish nor overflow in double precision; a
    double's own may, so doubles are scaled by each vector's largest magnitude.
    """
    norms: Tensor
    if values.dtype != torch.float64:
        norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
    elif not values.shape[-1]:
        norms = values.new_zeros(values.shape[:-1])
    else:
        largest = magnitudes(values.abs().amax(-1))
        norms = torch.linalg.vector_norm(values / largest[..., None], dim=-1) * largest
    return norms


def magnitudes(largest: Tensor) -> Tensor:
    """What to divide by so that ``largest`` becomes 1: one where it is zero."""
    return torch.where(largest == 0, 1.0, largest)


def row_norms(values: Tensor) -> Tensor:
    """L2 norm of each row of ``values`` (n, ...), shape (n,), in double precision."""
    return vector_norms(values.flatten(1))


def held_by(dtype: torch.dtype, norms: Tensor) -> Tensor:
    """``norms``, infinite where they are beyond ``dtype``."""
    return torch.where(norms > torch.finfo(dtype).max, math.inf, norms)


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


class Built:
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

    def only(self, rows: Tensor) -> LayerGradients:
        return Built({p: gradient[rows] for p, gradient in self._gradients.items()}, self.method)
