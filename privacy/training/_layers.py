"""Per layer: the way its examples' gradients are had, chosen by its type and how it was used."""

from collections.abc import Sequence

from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from torch import nn

from ._convolution import CONVOLUTIONS, convolution_gradients
from ._embedding import embedding_gradients
from ._gradients import Built, Call, Gradients, LayerGradients, total
from ._linear import LINEAR, linear_gradients


def known(layer: nn.Module) -> bool:
    """Whether a layer's own gradients can be had alone; others go to torch.func whole."""
    # Opacus takes the bias of a LayerNorm for granted.
    bare = type(layer) is nn.LayerNorm and getattr(layer, "bias", None) is None
    return type(layer) in GradSampleModule.GRAD_SAMPLERS and not bare


def layer_gradients(layer: nn.Module, calls: Sequence[Call]) -> LayerGradients:
    """The gradients of ``layer`` after ``calls``, in the way that is fastest for it."""
    kind = type(layer)
    if isinstance(layer, nn.Linear) and kind in LINEAR:
        return linear_gradients(layer, calls)
    if isinstance(layer, CONVOLUTIONS) and kind in CONVOLUTIONS:
        return convolution_gradients(layer, calls)
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        return embedding_gradients(layer, list(calls))
    return _built(layer, calls)


def _built(layer: nn.Module, calls: Sequence[Call]) -> Built:
    if known(layer):
        sampler, method = GradSampleModule.GRAD_SAMPLERS[type(layer)], "Opacus"
    else:
        sampler, method = ft_compute_per_sample_gradient, "torch.func"
    each = [sampler(layer, [call.inputs], call.backprops) for call in calls]
    found: Gradients = {
        parameter: total([gradients[parameter] for gradients in each])
        for parameter in layer.parameters()
        if parameter.requires_grad
    }
    return Built(found, method)


def forget(layer: nn.Module) -> None:
    """Take away what torch.func's set-up left on ``layer``."""
    layer.__dict__.pop("ft_compute_sample_grad", None)
