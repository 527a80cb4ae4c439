"""What one layer knows of its examples' gradients, and the plain way of knowing it."""

from collections.abc import Iterable, Sequence
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

    ``method`` names how their norms are had.
    """

    method: str

    def norms(self) -> Iterable[Tensor]:
        """Parts, shape (n,) each: the norm of an example's gradient is the norm of its parts."""

    def weighted_sum(self, factors: Tensor) -> Gradients:
        """The examples' gradients summed with ``factors`` (n,), by parameter."""

    def only(self, rows: Tensor) -> "LayerGradients":
        """The gradients of the examples that the mask ``rows`` (n,) keeps."""


def row_norms(values: Tensor) -> Tensor:
    """L2 norm of each row of ``values`` (n, ...), shape (n,)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms


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

    def norms(self) -> Iterable[Tensor]:
        return [row_norms(gradient) for gradient in self._gradients.values()]

    def weighted_sum(self, factors: Tensor) -> Gradients:
        return {
            parameter: (factors @ gradient.flatten(1)).view(parameter.shape)
            for parameter, gradient in self._gradients.items()
        }

    def only(self, rows: Tensor) -> LayerGradients:
        return Built({p: gradient[rows] for p, gradient in self._gradients.items()}, self.method)
