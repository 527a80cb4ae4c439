"""The method for each layer's per-example gradients: this package's, Opacus's or ``torch.func``.

Opacus takes over a CPU second to load, and a deployed client starts a process for every message:
it is loaded only for layers without a method here.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from privacy._logging import untouched_root_logger
from privacy.imports import needing
from privacy.training.per_example.convolution import CONVOLUTIONS, convolution_gradients
from privacy.training.per_example.embedding import embedding_gradients
from privacy.training.per_example.gradients import (
    BuiltGradients,
    Call,
    Gradients,
    LayerGradients,
    full_precision_products,
    sum_of,
    summing_dtype,
)
from privacy.training.per_example.linear import linear_gradients

# (layer, [inputs], backprops) -> every example's gradient, by parameter
Sampler = Callable[[nn.Module, list[Tensor], Tensor], Mapping[nn.Parameter, Tensor]]

# The layers that have a method here.
OWN_METHOD = frozenset({nn.Linear, *CONVOLUTIONS, nn.Embedding})
_RECURRENT = "opacus.layers.dp_rnn"


def handled_alone(layer: nn.Module) -> bool:
    """Whether a layer's own gradients can be computed alone; others go to torch.func whole."""
    if type(layer) in OWN_METHOD:
        return True
    # Opacus takes the bias of a LayerNorm for granted.
    without_bias = type(layer) is nn.LayerNorm and getattr(layer, "bias", None) is None
    return not without_bias and _registered_sampler(type(layer)) is not None


def layer_gradients(layer: nn.Module, calls: Sequence[Call]) -> LayerGradients:
    """The gradients of ``layer`` after ``calls``, in single precision at least."""
    if not handled_alone(layer):  # torch.func runs the layer again, in the layer's own precision
        with needing("train", extra="training"), untouched_root_logger():
            from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
        return _built(layer, calls, ft_compute_per_sample_gradient, "torch.func")
    with full_precision_products(calls[0].backprops.device):
        return _alone(layer, [_in_single_precision(call) for call in calls])


def _alone(layer: nn.Module, calls: list[Call]) -> LayerGradients:
    kind = type(layer)
    if isinstance(layer, nn.Linear) and (kind is nn.Linear or _is_recurrent_cell(kind)):
        return linear_gradients(layer, calls)
    if isinstance(layer, CONVOLUTIONS) and kind in CONVOLUTIONS:
        return convolution_gradients(layer, calls)
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        return embedding_gradients(layer, calls)
    registered = _registered_sampler(kind)
    if registered is None:
        raise TypeError(f"{kind.__name__} has no method for per-example gradients")
    return _built(layer, calls, registered, "Opacus")


def _in_single_precision(call: Call) -> Call:
    dtype = summing_dtype(call.inputs, call.backprops)
    inputs = call.inputs.to(dtype) if call.inputs.is_floating_point() else call.inputs
    return Call(inputs, call.backprops.to(dtype))


def _built(
    layer: nn.Module, calls: Sequence[Call], sampler: Sampler, method: str
) -> BuiltGradients:
    by_call = [sampler(layer, [call.inputs], call.backprops) for call in calls]
    gradients: Gradients = {
        parameter: sum_of([each[parameter].to(summing_dtype(each[parameter])) for each in by_call])
        for parameter in layer.parameters()
        if parameter.requires_grad
    }
    return BuiltGradients(gradients, method)


def remove_functorch_state(layer: nn.Module) -> None:
    """Remove the attribute that torch.func's set-up left on ``layer``."""
    layer.__dict__.pop("ft_compute_sample_grad", None)


def _registered_sampler(kind: type[nn.Module]) -> Sampler | None:
    with needing("train", extra="training"), untouched_root_logger():
        from opacus.grad_sample import GradSampleModule
    sampler: Sampler | None = GradSampleModule.GRAD_SAMPLERS.get(kind)
    return sampler


def is_recurrent(module: nn.Module) -> bool:
    """Whether it is one of Opacus's recurrent layers."""
    if _RECURRENT not in sys.modules:  # then there cannot be one
        return False
    with needing("train", extra="training"):
        from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN

    return isinstance(module, (DPRNN, DPLSTM, DPGRU))


def _is_recurrent_cell(kind: type[nn.Module]) -> bool:
    """Whether it is the linear layer in the cells of Opacus's recurrent layers."""
    if _RECURRENT not in sys.modules:
        return False
    with needing("train", extra="training"):
        from opacus.layers.dp_rnn import RNNLinear

    return kind is RNNLinear
