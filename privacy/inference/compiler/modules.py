"""Which modules are compiled: exactly those whose answers follow from their type and weights.

A compiled model answers as PyTorch runs the model. Therefore a subclass, whose ``forward`` may be
another, is not taken for its base class, and whatever PyTorch would run beside or instead of a
layer's own ``forward`` is refused by name.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin

from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.errors import UnsupportedLayerError

ACTIVATIONS = (Square, Polynomial)
AFFINE = (
    nn.Linear,
    nn.Conv2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Flatten,
)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_DIFFER_IN_TRAINING = (nn.BatchNorm1d, nn.BatchNorm2d, *NOTHING[1:])
_STATE = ("weight", "bias", "running_mean", "running_var", "coefficients")
_POLYNOMIAL = "train with privacy.inference.Square(), or a Polynomial.fitted to it, in its place"
_NORMALISATION = (
    "train without it, or with {}, which becomes constants after training (clients that clip each "
    "example, as privacy.training does, take it frozen only: eval() and requires_grad_(False))"
)
_REMEDIES = {
    **dict.fromkeys(
        (
            *("ReLU", "Tanh", "GELU", "SiLU", "LeakyReLU", "ELU", "Softplus", "Mish"),
            *("Hardswish", "ReLU6", "PReLU", "SELU", "CELU", "Hardtanh", "Hardsigmoid"),
        ),
        _POLYNOMIAL,
    ),
    "Sigmoid": "at the end of a model leave it out (one logit decides at 0, where it is a half); "
    f"elsewhere {_POLYNOMIAL}",
    "MaxPool2d": "use nn.AvgPool2d of the same size",
    "AdaptiveMaxPool2d": "use nn.AdaptiveAvgPool2d of the same size",
    "Softmax": "leave it out: the class of the largest logit is the same",
    "LogSoftmax": "leave it out: the class of the largest logit is the same",
    "GroupNorm": _NORMALISATION.format("nn.BatchNorm2d"),
    "LayerNorm": _NORMALISATION.format("nn.BatchNorm1d"),
}
_ANYTHING = (
    "use Linear, Conv2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, BatchNorm, Dropout, Square or "
    "Polynomial"
)


def layers(model: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a model in the order in which PyTorch runs them, with their names.

    A module that stands at two places comes twice.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Sequential``.
    UnsupportedLayerError
        If a layer cannot be evaluated, or PyTorch runs something else than it.
    """
    if type(model) is not nn.Sequential:
        raise TypeError(_not_sequential(model))
    _check_global_hooks()
    yield from _walk(model, "", "model", (), training=model.training)


def _walk(
    module: nn.Sequential, prefix: str, name: str, inside: tuple[int, ...], *, training: bool
) -> Iterator[tuple[str, nn.Module]]:
    _check_own(module, name)
    if id(module) in inside:
        raise UnsupportedLayerError(f"{name} contains itself; give layers in a row")
    # named_children() would leave out a module that it has seen.
    for key, child in module._modules.items():
        path = f"{prefix}{key}"
        if child is None:
            raise UnsupportedLayerError(f"layer {path} is None; leave it out, or use nn.Identity()")
        here = f"{path} ({type(child).__name__})"
        if type(child) is nn.Sequential:
            yield from _walk(
                child, f"{path}.", f"layer {here}", (*inside, id(module)), training=training
            )
            continue
        _check_layer(child, here, training=training)
        yield here, child


def _check_layer(layer: nn.Module, name: str, *, training: bool) -> None:
    if type(layer) not in (*ACTIVATIONS, *AFFINE, *NOTHING):
        raise UnsupportedLayerError(_refusal(name, layer))
    _check_own(layer, f"layer {name}")
    _check_tensors(layer, name)
    if layer.training and not training and isinstance(layer, _DIFFER_IN_TRAINING):
        raise UnsupportedLayerError(
            f"layer {name} is in training mode, the model is not; a compiled model answers as in "
            "evaluation mode: call model.eval()"
        )


def _check_tensors(layer: nn.Module, name: str) -> None:
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_meta:
            raise UnsupportedLayerError(
                f"layer {name}: {key} is on the meta device and has no values; make the model on "
                "the CPU, or with to_empty(), and load its weights"
            )
        if value.layout != torch.strided:
            raise UnsupportedLayerError(
                f"layer {name}: {key} is sparse ({value.layout}); give it dense: "
                f"module.{key} = nn.Parameter(module.{key}.to_dense())"
            )
        if value.is_complex():
            raise UnsupportedLayerError(f"layer {name}: {key} is complex; give real values")
        if key == "coefficients" and value.ndim != 1:
            raise UnsupportedLayerError(
                f"layer {name}: coefficients has shape {tuple(value.shape)}; give one dimension, "
                "lowest power first"
            )


def _not_sequential(model: object) -> str:
    kind = type(model).__name__
    if isinstance(model, nn.Sequential):
        return (
            f"model is a {kind}, a subclass of nn.Sequential, whose forward could do something "
            "else; if it runs its layers one after the other, give nn.Sequential(*model)"
        )
    return f"model is a {kind}; give an nn.Sequential, which gives the order of its layers"


def _refusal(name: str, layer: nn.Module) -> str:
    if isinstance(layer, LazyModuleMixin):
        return (
            f"layer {name} has no weights yet; run a batch of inputs through the model first, "
            "which makes them"
        )
    if hasattr(layer, "parametrizations"):
        return (
            f"layer {name} has parametrizations, which PyTorch applies at every call; bake them "
            "in with torch.nn.utils.parametrize.remove_parametrizations(layer, tensor_name)"
        )
    for known in (*ACTIVATIONS, *AFFINE, *NOTHING, nn.Sequential):
        if isinstance(layer, known):
            return (
                f"layer {name} is a subclass of {known.__name__}, whose forward could do something "
                f"else; give a {known.__name__} with its weights"
            )
    remedy = _REMEDIES.get(type(layer).__name__, _ANYTHING)
    return f"layer {name} cannot be evaluated under encryption; {remedy}"


def _check_own(module: nn.Module, name: str) -> None:
    """Refuse hooks, and attributes of an instance in place of its type's."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook in hooks.values():
            label = getattr(hook, "__name__", type(hook).__name__)
            raise UnsupportedLayerError(
                f"{name} has a forward hook ({label}), which PyTorch runs and a compiled model "
                "would not; remove it with its handle's remove() (weight_norm, spectral_norm and "
                "pruning: torch.nn.utils.remove_weight_norm, remove_spectral_norm, prune.remove)"
            )
    for key, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), key, None)):
            raise UnsupportedLayerError(
                f"{name} has another {key} than its type {type(module).__name__}, which PyTorch "
                f"runs and a compiled model would not; remove it: del module.{key}"
            )
        if key in _STATE and isinstance(value, torch.Tensor):
            raise UnsupportedLayerError(
                f"{name} holds {key} outside its parameters and buffers; make it an nn.Parameter "
                "or register it as a buffer"
            )


def _check_global_hooks() -> None:
    for hooks in (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
    ):
        for hook in hooks.values():
            label = getattr(hook, "__name__", type(hook).__name__)
            raise UnsupportedLayerError(
                f"a forward hook ({label}) is registered for all modules, which PyTorch runs and a "
                "compiled model would not; remove it with its handle's remove()"
            )
