"""Per layer: the norms of the examples' gradients, and their clipped sum, from one backward pass.

A layer hands over what went in and the loss's gradient at what came out. Where both norms and
clipped sum follow from these two factors, the examples' gradients are never built (Goodfellow
2015, arXiv:1510.01799; Bu et al. 2023, "book-keeping", arXiv:2210.00038). Elsewhere they are
built by the function that Opacus has registered for the layer, or by torch.func.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from torch import Tensor, nn

Gradients = dict[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """One use of a layer in the forward pass.

    ``inputs`` and ``backprops`` have the examples on their first axis; ``backprops`` is the
    gradient of the summed loss at the layer's output.
    """

    inputs: Tensor
    backprops: Tensor


class LayerGradients(Protocol):
    """The gradients of n examples for one layer's parameters."""

    method: str

    def squared_norms(self) -> Tensor:
        """Squared L2 norm of each example's gradient, shape (n,)."""

    def weighted_sum(self, factors: Tensor) -> Gradients:
        """The examples' gradients summed with ``factors`` (n,), by parameter."""

    def only(self, rows: Tensor) -> "LayerGradients":
        """The gradients of the examples that the mask ``rows`` (n,) keeps."""


class TwoFactors:
    """A linear layer on vectors: an example's gradient is the outer product b aᵀ.

    Its norm is ‖b‖·‖a‖, which has no cancellation, and the clipped sum is one matrix product.
    """

    method = "two factors"

    def __init__(self, layer: nn.Linear, call: Call) -> None:
        self._layer, self._call = layer, call

    def squared_norms(self) -> Tensor:
        layer, a, b = self._layer, self._call.inputs, self._call.backprops
        inner = torch.zeros(len(a), dtype=b.dtype, device=b.device)
        if layer.weight.requires_grad:
            inner = torch.linalg.vecdot(a, a)
        if layer.bias is not None and layer.bias.requires_grad:
            inner = inner + 1
        squared: Tensor = torch.linalg.vecdot(b, b) * inner
        return squared

    def weighted_sum(self, factors: Tensor) -> Gradients:
        layer, b = self._layer, self._call.backprops * factors[:, None]
        found: Gradients = {}
        if layer.weight.requires_grad:
            found[layer.weight] = b.T @ self._call.inputs
        if layer.bias is not None and layer.bias.requires_grad:
            found[layer.bias] = b.sum(0)
        return found

    def only(self, rows: Tensor) -> LayerGradients:
        call = self._call
        return TwoFactors(self._layer, Call(call.inputs[rows], call.backprops[rows]))


class Built:
    """Any layer: every example's gradient is built."""

    def __init__(self, gradients: Gradients, method: str) -> None:
        self._gradients, self.method = gradients, method

    def squared_norms(self) -> Tensor:
        flat = (gradient.flatten(1) for gradient in self._gradients.values())
        return torch.stack([torch.linalg.vecdot(g, g) for g in flat]).sum(0)

    def weighted_sum(self, factors: Tensor) -> Gradients:
        return {
            parameter: (factors @ gradient.flatten(1)).view(parameter.shape)
            for parameter, gradient in self._gradients.items()
        }

    def only(self, rows: Tensor) -> LayerGradients:
        return Built({p: gradient[rows] for p, gradient in self._gradients.items()}, self.method)


def registered(layer: nn.Module) -> bool:
    """Whether Opacus has a function for this layer's gradients; torch.func serves the others."""
    return type(layer) in GradSampleModule.GRAD_SAMPLERS


def _built(layer: nn.Module, calls: Sequence[Call]) -> Built:
    sampler = GradSampleModule.GRAD_SAMPLERS.get(type(layer), ft_compute_per_sample_gradient)
    method = "Opacus" if registered(layer) else "torch.func"
    total: Gradients = {}
    for call in calls:
        for parameter, gradient in sampler(layer, [call.inputs], call.backprops).items():
            if parameter.requires_grad:
                total[parameter] = total[parameter] + gradient if parameter in total else gradient
    return Built(total, method)


def layer_gradients(layer: nn.Module, calls: Sequence[Call]) -> LayerGradients:
    """Pick the way for ``layer``: by its type and by how it was used."""
    if type(layer) is nn.Linear and len(calls) == 1 and calls[0].backprops.dim() == 2:
        return TwoFactors(layer, calls[0])
    return _built(layer, calls)
