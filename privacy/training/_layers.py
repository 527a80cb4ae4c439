"""Per layer: the way its examples' gradients are had, chosen by its type and how it was used."""

from collections.abc import Sequence

from torch import nn

from . import _opacus
from ._convolution import CONVOLUTIONS, convolution_gradients
from ._embedding import embedding_gradients
from ._gradients import Built, Call, Gradients, LayerGradients, total
from ._linear import linear_gradients

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
    """The gradients of ``layer`` after ``calls``, in the way that is fastest for it."""
    kind = type(layer)
    if isinstance(layer, nn.Linear) and (kind is nn.Linear or _opacus.is_cell_linear(kind)):
        return linear_gradients(layer, calls)
    if isinstance(layer, CONVOLUTIONS) and kind in CONVOLUTIONS:
        return convolution_gradients(layer, calls)
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        return embedding_gradients(layer, list(calls))
    return _built(layer, calls)


def _built(layer: nn.Module, calls: Sequence[Call]) -> Built:
    registered = _opacus.registered_sampler(type(layer)) if known(layer) else None
    if registered is not None:
        sampler, method = registered, "Opacus"
    else:
        sampler, method = _opacus.functorch_sampler(), "torch.func"
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
