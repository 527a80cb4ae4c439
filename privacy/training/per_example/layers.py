"""Per layer: the way its examples' gradients are had, chosen by its type and how it was used."""

from collections.abc import Sequence

from torch import Tensor, nn

from privacy.training.per_example import opacus_layers as _opacus
from privacy.training.per_example.convolution import CONVOLUTIONS, convolution_gradients
from privacy.training.per_example.embedding import embedding_gradients
from privacy.training.per_example.gradients import (
    Built,
    Call,
    Gradients,
    LayerGradients,
    full_products,
    summing_dtype,
    total,
)
from privacy.training.per_example.linear import linear_gradients

# The layers whose examples' gradients are had here, in ways of our own.
OWN = frozenset({nn.Linear, *CONVOLUTIONS, nn.Embedding})


def known(layer: nn.Module) -> bool:
    """Whether a layer's own gradients can be had alone; others go to torch.func whole."""
    if type(layer) in OWN:
        return True
    # Opacus takes the bias of a LayerNorm for granted.
    bare = type(layer) is nn.LayerNorm and getattr(layer, "bias", None) is None
    return not bare and _opacus.registered_sampler(type(layer)) is not None


def layer_gradients(layer: nn.Module, calls: Sequence[Call]) -> LayerGradients:
    """The gradients of ``layer`` after ``calls``, in the way that is fastest for it.

    Whatever precision the model has, they come in single precision at least.
    """
    if not known(layer):  # torch.func runs the layer again, in the layer's own precision
        return _built(layer, calls, _opacus.functorch_sampler(), "torch.func")
    with full_products(calls[0].backprops.device):
        return _known_gradients(layer, [_precise(call) for call in calls])


def _known_gradients(layer: nn.Module, calls: list[Call]) -> LayerGradients:
    kind = type(layer)
    if isinstance(layer, nn.Linear) and (kind is nn.Linear or _opacus.is_cell_linear(kind)):
        return linear_gradients(layer, calls)
    if isinstance(layer, CONVOLUTIONS) and kind in CONVOLUTIONS:
        return convolution_gradients(layer, calls)
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        return embedding_gradients(layer, calls)
    registered = _opacus.registered_sampler(kind)
    if registered is None:
        raise TypeError(f"{kind.__name__} is not known")
    return _built(layer, calls, registered, "Opacus")


def _precise(call: Call) -> Call:
    dtype = summing_dtype(call.inputs, call.backprops)
    inputs = call.inputs.to(dtype) if call.inputs.is_floating_point() else call.inputs
    return Call(inputs, call.backprops.to(dtype))


def _built(
    layer: nn.Module, calls: Sequence[Call], sampler: _opacus.PerExample, method: str
) -> Built:
    each = [sampler(layer, [call.inputs], call.backprops) for call in calls]
    found: Gradients = {
        parameter: total([_summable(gradients[parameter]) for gradients in each])
        for parameter in layer.parameters()
        if parameter.requires_grad
    }
    return Built(found, method)


def _summable(gradient: Tensor) -> Tensor:
    return gradient.to(summing_dtype(gradient))


def forget(layer: nn.Module) -> None:
    """Take away what torch.func's set-up left on ``layer``."""
    layer.__dict__.pop("ft_compute_sample_grad", None)
