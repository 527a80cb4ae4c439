"""Linear layers: norms from inputs a and output gradients b, without building gradients.

With one vector an example the gradient is the outer product b aᵀ (Goodfellow 2015,
arXiv:1510.01799). With T vectors an example it is a sum of T outer products, and
‖Σ bₜaₜᵀ‖² = Σₜₛ (bₜ·bₛ)(aₜ·aₛ) (Li et al. 2022, arXiv:2110.05679, section 4). In both cases the
clipped sum is one matrix product of the two factors (Bu et al. 2023, arXiv:2210.00038).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from privacy.training.per_example.gradients import (
    BuiltGradients,
    Call,
    Gradients,
    LayerGradients,
    copy_into,
    full_precision_products,
    infinite_beyond,
    one_for_zero,
    row_norms,
)

# Numbers to build at a time: they stay in a core's cache (measured).
_BUILT = 1 << 16

# Between these, a scaled factor in single precision is precise enough for the product.
_SMALL, _LARGE = 1e-20, 1e20


class VectorGradients:
    """One vector an example: the norm is ‖b‖·‖a‖, in which nothing cancels."""

    method = "two factors"

    def __init__(self, layer: nn.Linear, inputs: Tensor, backprops: Tensor) -> None:
        self._layer, self._inputs, self._backprops = layer, inputs, backprops
        self._back = row_norms(backprops)
        self.dtype = backprops.dtype

    def norms(self) -> Iterable[Tensor]:
        if self._layer.weight.requires_grad:
            yield infinite_beyond(self.dtype, row_norms(self._inputs).mul_(self._back))
        if self._layer.bias is not None and self._layer.bias.requires_grad:
            yield self._back

    def weighted_sum(self, factors: Tensor) -> Gradients:
        return _weighted_sum(self._layer, self._inputs, self._backprops, self._back, factors)

    def select(self, rows: Tensor) -> LayerGradients:
        return VectorGradients(self._layer, self._inputs[rows], self._backprops[rows])

    def of_each(self, out: Gradients) -> None:
        # In double precision products of single-precision numbers are exact, however small.
        backprops, weight = self._backprops.double(), self._layer.weight
        if weight.requires_grad:
            factors = backprops[:, :, None], self._inputs.double()[:, None, :]
            if out[weight].device == backprops.device:
                torch.mul(*factors, out=out[weight])
            else:
                out[weight].copy_(torch.mul(*factors))
        if self._layer.bias is not None and self._layer.bias.requires_grad:
            out[self._layer.bias].copy_(backprops)


class SequenceGradients:
    """T vectors an example: norms by Gram matrices of T × T.

    The sum of T² products may cancel, so it is in double precision, and a bound on its rounding
    error is added: an example is never scaled too little.
    """

    method = "Gram matrices"

    def __init__(self, layer: nn.Linear, inputs: Tensor, backprops: Tensor) -> None:
        self._layer, self._inputs, self._backprops = layer, inputs, backprops
        self.dtype = backprops.dtype

    def norms(self) -> Iterable[Tensor]:
        layer = self._layer
        b, b_size = _scaled(self._backprops)
        back = b @ b.mT
        lengths = back.diagonal(dim1=1, dim2=2)
        if layer.weight.requires_grad:
            a, a_size = _scaled(self._inputs)
            inner = a @ a.mT
            products = lengths * inner.diagonal(dim1=1, dim2=2)
            norms = _above(inner * back, products, a.shape[2] + b.shape[2])
            yield infinite_beyond(self.dtype, norms * a_size * b_size)
        if layer.bias is not None and layer.bias.requires_grad:
            yield infinite_beyond(self.dtype, _above(back, lengths, b.shape[2]) * b_size)

    def weighted_sum(self, factors: Tensor) -> Gradients:
        length = self._backprops.shape[1]
        inputs, backprops = self._inputs.flatten(0, 1), self._backprops.flatten(0, 1)
        each = factors.repeat_interleave(length)
        return _weighted_sum(self._layer, inputs, backprops, row_norms(backprops), each)

    def select(self, rows: Tensor) -> LayerGradients:
        return SequenceGradients(self._layer, self._inputs[rows], self._backprops[rows])

    def of_each(self, out: Gradients) -> None:
        backprops = self._backprops.double()
        of_weight = backprops.mT @ self._inputs.double()
        copy_into(out, _by_parameter(self._layer, of_weight, backprops.sum(1)))


class ProductGradients:
    """T vectors an example: the weight's gradient is built twice, for some examples at a time.

    Once for the norms, once for the sum, by the same products, so that what is added is what was
    bounded. All examples' at once would be held from the layer's turn to the end of the pass.
    """

    method = "matrix products"

    def __init__(self, layer: nn.Linear, inputs: Tensor, backprops: Tensor) -> None:
        self._layer, self._inputs, self._backprops = layer, inputs, backprops
        self.dtype = backprops.dtype
        self._at_once = max(1, _BUILT // layer.weight.numel())

    def _built(self) -> Iterator[Tensor]:
        """Some examples' at a time, in the same memory."""
        inputs, backprops = self._inputs.split(self._at_once), self._backprops.split(self._at_once)
        memory = self._inputs.new_empty((len(inputs[0]), *self._layer.weight.shape))
        for a, b in zip(inputs, backprops, strict=True):
            with full_precision_products(memory.device):
                built = torch.bmm(b.mT, a, out=memory[: len(a)])
            yield built

    def norms(self) -> Iterable[Tensor]:
        if self._layer.weight.requires_grad:
            yield torch.cat([row_norms(built) for built in self._built()])
        if self._layer.bias is not None and self._layer.bias.requires_grad:
            yield row_norms(self._backprops.sum(1))

    def weighted_sum(self, factors: Tensor) -> Gradients:
        factors = factors.to(self.dtype)
        of_weight = torch.zeros_like(self._layer.weight, dtype=self.dtype)
        if self._layer.weight.requires_grad:
            for built, some in zip(self._built(), factors.split(self._at_once), strict=True):
                of_weight.view(-1).addmv_(built.flatten(1).mT, some)
        return _by_parameter(self._layer, of_weight, factors @ self._backprops.sum(1))

    def select(self, rows: Tensor) -> LayerGradients:
        return ProductGradients(self._layer, self._inputs[rows], self._backprops[rows])

    def of_each(self, out: Gradients) -> None:
        of_weight = torch.cat([built.clone() for built in self._built()])
        copy_into(out, _by_parameter(self._layer, of_weight, self._backprops.sum(1)))


def _by_parameter(layer: nn.Linear, of_weight: Tensor, of_bias: Tensor) -> Gradients:
    """Those of the parameters that train."""
    gradients: Gradients = {}
    if layer.weight.requires_grad:
        gradients[layer.weight] = of_weight
    if layer.bias is not None and layer.bias.requires_grad:
        gradients[layer.bias] = of_bias
    return gradients


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, T, width) in double precision, and each example's scale: a double's is its largest."""
    if values.dtype != torch.float64 or not values.numel():
        return values.double(), torch.ones(len(values), dtype=torch.float64, device=values.device)
    largest = one_for_zero(values.abs().amax((1, 2)))
    return values / largest[:, None, None], largest


def _above(products: Tensor, diagonal: Tensor, width: int) -> Tensor:
    """Roots of the sums of ``products`` (n, T, T) plus their rounding errors' bound, (n,)."""
    terms = products.shape[1] ** 2 + 2 * width
    largest = diagonal.clamp(min=0).sqrt().sum(1).square()
    sums = products.sum((1, 2)).clamp(min=0) + terms * torch.finfo(products.dtype).eps * largest
    return sums.sqrt()


def _weighted_sum(
    layer: nn.Linear, inputs: Tensor, backprops: Tensor, back: Tensor, factors: Tensor
) -> Gradients:
    """Σ factor·b·aᵀ and Σ factor·b, ``back`` holding every ‖b‖.

    The sum is in double precision where some factor·b, which ``a`` may bring back into range,
    would underflow or overflow single precision.
    """
    dtype = backprops.dtype if _moderate(back * factors) else torch.float64
    weighted = backprops.to(dtype) * factors.to(dtype)[:, None]
    gradients: Gradients = {}
    if layer.weight.requires_grad:
        gradients[layer.weight] = (weighted.T @ inputs.to(dtype)).to(backprops.dtype)
    if layer.bias is not None and layer.bias.requires_grad:
        gradients[layer.bias] = weighted.sum(0).to(backprops.dtype)
    return gradients


def _moderate(sizes: Tensor) -> bool:
    """Whether all but zeros are far from the ends of single precision."""
    if not len(sizes):
        return True
    low, high = (each.item() for each in torch.aminmax(sizes))
    if not low > _SMALL:
        low = torch.where(sizes > 0, sizes, 1.0).amin().item()
    return low > _SMALL and high < _LARGE


def _vectors(calls: Sequence[Tensor]) -> Tensor:
    """Those of all calls, of shapes (n, ..., width), as (n, T, width)."""
    each = [values.reshape(len(values), -1, values.shape[-1]) for values in calls]
    return each[0] if len(each) == 1 else torch.cat(each, 1)


def linear_gradients(layer: nn.Linear, calls: Sequence[Call]) -> LayerGradients:
    """The gradients of a linear layer that was called once or, in a recurrent one, T times."""
    if len(calls) == 1 and calls[0].inputs.dim() == 2:
        return VectorGradients(layer, calls[0].inputs, calls[0].backprops)
    a, b = _vectors([call.inputs for call in calls]), _vectors([call.backprops for call in calls])
    length, ins, outs = b.shape[1], a.shape[2], b.shape[2]
    # A Gram matrix costs T²·(ins + outs) products; building costs writing and reading ins·outs.
    if length * length * (ins + outs) <= 8 * ins * outs:
        return SequenceGradients(layer, a, b)
    if length * (ins + outs) < ins * outs:
        return ProductGradients(layer, a, b)
    return BuiltGradients(_by_parameter(layer, b.mT @ a, b.sum(1)), ProductGradients.method)
