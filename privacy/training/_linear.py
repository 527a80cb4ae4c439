"""Linear layers: norms from what went in and what came back, without building gradients.

With one vector an example the gradient is the outer product b aᵀ (Goodfellow 2015,
arXiv:1510.01799). With T vectors an example it is a sum of T outer products, and
‖Σ bₜaₜᵀ‖² = Σₜₛ (bₜ·bₛ)(aₜ·aₛ) (Li et al. 2022, arXiv:2110.05679, section 4). In both cases the
clipped sum is one matrix product of the two factors (Bu et al. 2023, arXiv:2210.00038).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ._gradients import Built, Call, Gradients, LayerGradients, row_norms


class OneVector:
    """One vector an example: the norm is ‖b‖·‖a‖, in which nothing cancels."""

    method = "two factors"

    def __init__(self, layer: nn.Linear, inputs: Tensor, backprops: Tensor) -> None:
        self._layer, self._inputs, self._backprops = layer, inputs, backprops

    def norms(self) -> Iterable[Tensor]:
        back = row_norms(self._backprops)
        if self._layer.weight.requires_grad:
            yield row_norms(self._inputs).mul_(back)
        if self._layer.bias is not None and self._layer.bias.requires_grad:
            yield back

    def weighted_sum(self, factors: Tensor) -> Gradients:
        return _weighted_sum(self._layer, self._inputs, self._backprops * factors[:, None])

    def only(self, rows: Tensor) -> LayerGradients:
        return OneVector(self._layer, self._inputs[rows], self._backprops[rows])


class Sequences:
    """T vectors an example: norms by Gram matrices of T × T.

    The sum of T² products may cancel down to nothing, so it is made in double precision and its
    rounding error is added: an example is never scaled too little.
    """

    method = "Gram matrices"

    def __init__(self, layer: nn.Linear, inputs: Tensor, backprops: Tensor) -> None:
        self._layer, self._inputs, self._backprops = layer, inputs, backprops

    def norms(self) -> Iterable[Tensor]:
        layer, dtype = self._layer, self._backprops.dtype
        b = self._backprops.double()
        back = b @ b.mT
        lengths = back.diagonal(dim1=1, dim2=2)
        if layer.weight.requires_grad:
            a = self._inputs.double()
            inner = a @ a.mT
            products = lengths * inner.diagonal(dim1=1, dim2=2)
            yield _above(inner * back, products, a.shape[2] + b.shape[2]).to(dtype)
        if layer.bias is not None and layer.bias.requires_grad:
            yield _above(back, lengths, b.shape[2]).to(dtype)

    def weighted_sum(self, factors: Tensor) -> Gradients:
        weighted = self._backprops * factors[:, None, None]
        return _weighted_sum(self._layer, self._inputs.flatten(0, 1), weighted.flatten(0, 1))

    def only(self, rows: Tensor) -> LayerGradients:
        return Sequences(self._layer, self._inputs[rows], self._backprops[rows])


def _above(products: Tensor, diagonal: Tensor, width: int) -> Tensor:
    """Roots of the sums of ``products`` (n, T, T), raised by their rounding errors' bound, (n,)."""
    terms = products.shape[1] ** 2 + 2 * width
    largest = diagonal.clamp(min=0).sqrt().sum(1).square()
    sums = products.sum((1, 2)).clamp(min=0) + terms * torch.finfo(products.dtype).eps * largest
    return sums.sqrt()


def _weighted_sum(layer: nn.Linear, inputs: Tensor, weighted: Tensor) -> Gradients:
    found: Gradients = {}
    if layer.weight.requires_grad:
        found[layer.weight] = weighted.T @ inputs
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = weighted.sum(0)
    return found


def _vectors(values: Tensor) -> Tensor:
    """Shape (n, ..., width) as (n, T, width)."""
    return values.reshape(len(values), -1, values.shape[-1])


def linear_gradients(layer: nn.Linear, calls: Sequence[Call]) -> LayerGradients:
    """The gradients of a linear layer that was called once or, in a recurrent one, T times."""
    if len(calls) == 1 and calls[0].inputs.dim() == 2:
        return OneVector(layer, calls[0].inputs, calls[0].backprops)
    a = torch.cat([_vectors(call.inputs) for call in calls], 1)
    b = torch.cat([_vectors(call.backprops) for call in calls], 1)
    length, ins, outs = b.shape[1], a.shape[2], b.shape[2]
    # A Gram matrix costs T²·(ins + outs) products; building costs writing and reading ins·outs.
    if length * length * (ins + outs) <= 8 * ins * outs:
        return Sequences(layer, a, b)
    found: Gradients = {}
    if layer.weight.requires_grad:
        found[layer.weight] = b.mT @ a
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = b.sum(1)
    return Built(found, "matrix products")
