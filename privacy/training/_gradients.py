"""What one layer knows of its examples' gradients, and the plain way of knowing it."""

from collections.abc import Sequence
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

    def squared_norms(self) -> Tensor:
        """Squared L2 norm of each example's gradient, shape (n,)."""

    def weighted_sum(self, factors: Tensor) -> Gradients:
        """The examples' gradients summed with ``factors`` (n,), by parameter."""

    def only(self, rows: Tensor) -> "LayerGradients":
        """The gradients of the examples that the mask ``rows`` (n,) keeps."""


def squares(values: Tensor) -> Tensor:
    """Squared L2 norm of each row of ``values`` (n, ...), shape (n,)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square_()


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


class Built:
    """Every example's gradient is built: shape (n, *parameter.shape), by parameter."""

    def __init__(self, gradients: Gradients, method: str) -> None:
        self._gradients, self.method = gradients, method

    def squared_norms(self) -> Tensor:
        return total([squares(gradient) for gradient in self._gradients.values()])

    def weighted_sum(self, factors: Tensor) -> Gradients:
        return {
            parameter: (factors @ gradient.flatten(1)).view(parameter.shape)
            for parameter, gradient in self._gradients.items()
        }

    def only(self, rows: Tensor) -> LayerGradients:
        return Built({p: gradient[rows] for p, gradient in self._gradients.items()}, self.method)
