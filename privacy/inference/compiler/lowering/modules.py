"""Which modules are compiled: exactly those whose answers follow from their type and weights.

A compiled model answers as PyTorch runs the model. Therefore a subclass, whose ``forward`` may be
another, is traced and not taken for its base class, and whatever PyTorch would run beside or
instead of a module's own ``forward`` is refused by name.
"""

from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin

from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.errors import UnsupportedLayerError

ACTIVATIONS = (Square, Polynomial)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MOVES = (
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.Unfold),
)
"""Layers that only move values, repeat them, or put constants between them."""
AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
"""Layers that weigh values along each axis by themselves, every channel alike."""
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
NOTHING = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_CONTAINERS = (nn.ParameterList, nn.ParameterDict)
"""Of weights, which refuse to be called."""
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    **dict.fromkeys(("DataParallel", "DistributedDataParallel", "AveragedModel"), "module"),
}
"""What holds a model, and where; by name, since the types would have to be imported."""
_LAYERS = (*ACTIVATIONS, *NORMS, *MOVES, *AVERAGES, *WEIGHTED, *NOTHING)
_DIFFER_IN_TRAINING = (*NORMS, *NOTHING[1:])
_STATE = ("weight", "bias", "running_mean", "running_var", "coefficients")
_POLYNOMIAL = (
    "train with privacy.inference.Square(), or a Polynomial.fitted to it, in its place, or give "
    "the trained model to replace_activations"
)
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
    **{
        f"{kind}MaxPool{d}d": f"use nn.{kind}AvgPool{d}d of the same size"
        for kind in ("", "Adaptive")
        for d in (1, 2)
    },
    "Softmax": "leave it out: the class of the largest logit is the same",
    "LogSoftmax": "leave it out: the class of the largest logit is the same",
    "GroupNorm": _NORMALISATION.format("nn.BatchNorm2d"),
    "InstanceNorm1d": _NORMALISATION.format("nn.BatchNorm1d"),
    "InstanceNorm2d": _NORMALISATION.format("nn.BatchNorm2d"),
    "LocalResponseNorm": _NORMALISATION.format("nn.BatchNorm2d"),
    "LayerNorm": _NORMALISATION.format("nn.BatchNorm1d"),
    "RMSNorm": _NORMALISATION.format("nn.BatchNorm1d"),
    **{
        f"{kind}3d": f"use nn.{kind}2d, with depth among the channels"
        for kind in ("Conv", "ConvTranspose", "AvgPool", "AdaptiveAvgPool", "BatchNorm")
    },
}
_ALIASES = {
    **dict.fromkeys(
        ("abs", "clamp", "clamp_min", "clip", "cos", "exp", "leaky_relu", "log", "maximum", "sin"),
        "ReLU",
    ),
    **{f"max_pool{d}d": f"MaxPool{d}d" for d in (1, 2)},
    **{f"adaptive_max_pool{d}d": f"AdaptiveMaxPool{d}d" for d in (1, 2)},
    **{"log_softmax": "LogSoftmax", "layer_norm": "LayerNorm", "group_norm": "GroupNorm"},
    **{"instance_norm": "InstanceNorm2d", "rms_norm": "RMSNorm"},
}
_FUNCTIONS = {name.lower(): name for name in _REMEDIES} | _ALIASES
_ANYTHING = (
    "use Linear, Conv1d or Conv2d, average pooling, padding, Flatten, BatchNorm, Dropout, Square "
    "or Polynomial; docs/how-to/encrypted-inference.md lists all"
)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is evaluated as a whole, or refused: a type of PyTorch's, or of ours."""
    kind = type(module)
    inside = kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential
    return kind in _LAYERS or is_normalize(module) or inside


def is_normalize(module: nn.Module) -> bool:
    """Whether a module is torchvision's ``Normalize``, by name: torchvision may be absent."""
    kind = type(module)
    return kind.__name__ == "Normalize" and kind.__module__.startswith("torchvision.transforms")


def check_modules(model: nn.Module) -> None:
    """Refuse a model of which PyTorch runs something else than its modules' ``forward``.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``.
    UnsupportedLayerError
        If a module has hooks and the like, or weights without values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module")
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        for hook in hooks.values():
            raise UnsupportedLayerError(
                f"a forward hook ({_label(hook)}) is registered for all modules, which PyTorch "
                "runs and a compiled model would not; remove it with its handle's remove()"
            )
    _walk(model, "", "model", (), training=model.training)


def _walk(
    module: nn.Module, prefix: str, name: str, inside: tuple[int, ...], *, training: bool
) -> None:
    _check_own(module, name)
    if id(module) in inside:
        raise UnsupportedLayerError(f"{name} contains itself; give layers in a row")
    _check_tensors(module, name)
    if module.training and not training and type(module) in _DIFFER_IN_TRAINING:
        raise UnsupportedLayerError(
            f"{name} is in training mode, the model is not; a compiled model answers as in "
            "evaluation mode: call model.eval()"
        )
    # named_children() would leave out a module that it has seen.
    for key, child in module._modules.items():
        path = f"{prefix}{key}"
        if child is None:
            if isinstance(module, nn.Sequential):
                raise UnsupportedLayerError(
                    f"layer {path} is None; leave it out, or use nn.Identity()"
                )
            continue
        here = f"layer {path} ({type(child).__name__})"
        _walk(child, f"{path}.", here, (*inside, id(module)), training=training)


def check_layer(layer: nn.Module, name: str) -> None:
    """Refuse a layer that cannot be evaluated, with an alternative."""
    if type(layer) not in _LAYERS and not is_normalize(layer):
        remedy = _REMEDIES.get(type(layer).__name__, _ANYTHING)
        raise UnsupportedLayerError(f"layer {name} cannot be evaluated under encryption; {remedy}")
    if isinstance(layer, NORMS):
        if layer.running_mean is None or layer.running_var is None:
            raise UnsupportedLayerError(
                f"layer {name} has no running statistics and would mix the images of a batch; "
                "train it with track_running_stats=True"
            )
        _check_variances(layer, name)


def function_remedy(name: str) -> str:
    """What to use in place of a function of PyTorch's."""
    return _REMEDIES.get(_FUNCTIONS.get(name.rstrip("_"), ""), _ANYTHING)


def check_finite(layer: nn.Module, name: str) -> None:
    """Refuse weights that are no numbers."""
    for key, value in (*layer.named_parameters(), *layer.named_buffers()):
        if not bool(torch.isfinite(value).all()):
            kind = "NaN" if bool(torch.isnan(value).any()) else "infinity"
            raise ValueError(f"layer {name}: {key} holds {kind}; load other weights")


def _check_variances(layer: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> None:
    """Refuse a BatchNorm that takes the root of zero, or of less."""
    variances = cast(Tensor, layer.running_var)
    least = float(variances.min()) if variances.numel() else 1.0
    if least + layer.eps <= 0:
        raise ValueError(
            f"layer {name}: running_var goes down to {least:.3g} and eps is {layer.eps:.3g}, which "
            "leaves no variance to divide by; load other weights"
        )


def _check_tensors(layer: nn.Module, name: str) -> None:
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    for key, value in own:
        if value.is_meta:
            raise UnsupportedLayerError(
                f"{name}: {key} is on the meta device and has no values; make the model on "
                "the CPU, or with to_empty(), and load its weights"
            )
        if value.layout != torch.strided:
            raise UnsupportedLayerError(
                f"{name}: {key} is sparse ({value.layout}); give it dense: "
                f"module.{key} = nn.Parameter(module.{key}.to_dense())"
            )
        if value.is_complex():
            raise UnsupportedLayerError(f"{name}: {key} is complex; give real values")
        if key == "coefficients" and value.ndim != 1:
            raise UnsupportedLayerError(
                f"{name}: coefficients has shape {tuple(value.shape)}; give one dimension, "
                "lowest power first"
            )


def _calls_its_graph(module: nn.Module) -> bool:
    """Whether a ``GraphModule`` is called as ``torch.fx`` and ``nn.Module`` have it alone."""
    calls = [vars(kind)["__call__"] for kind in type(module).__mro__ if "__call__" in vars(kind)]
    ours = (fx.graph_module.__name__, torch_module.__name__)
    return isinstance(module, fx.GraphModule) and all(call.__module__ in ours for call in calls)


def _check_own(module: nn.Module, name: str) -> None:
    """Refuse hooks, and attributes of an instance in place of its type's."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"{name} is TorchScript, whose forward cannot be traced; give the nn.Module that it "
            "was made of, or an ONNX file (from_onnx)"
        )
    inside = _WRAPPERS.get(type(module).__name__)
    if inside is not None and type(module).__module__.startswith("torch."):
        raise UnsupportedLayerError(
            f"{name} is a {type(module).__name__} around the model; give the model itself, its "
            f"attribute {inside}"
        )
    if isinstance(module, LazyModuleMixin):
        raise UnsupportedLayerError(
            f"{name} has no weights yet; run a batch of inputs through the model first, which "
            "makes them"
        )
    if hasattr(module, "parametrizations"):
        raise UnsupportedLayerError(
            f"{name} has parametrizations, which PyTorch applies at every call; bake them in with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, tensor_name)"
        )
    if not (
        type(module).__call__ is nn.Module.__call__
        or type(module) in _CONTAINERS
        or _calls_its_graph(module)
    ):
        raise UnsupportedLayerError(
            f"{name} has a __call__ of its own, which PyTorch runs before its forward; move what "
            "it does into forward"
        )
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook in hooks.values():
            raise UnsupportedLayerError(
                f"{name} has a forward hook ({_label(hook)}), which PyTorch runs and a compiled "
                "model would not; remove it with its handle's remove() (weight_norm, spectral_norm "
                "and pruning: torch.nn.utils.remove_weight_norm, remove_spectral_norm, "
                "prune.remove)"
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


def _label(hook: object) -> str:
    return str(getattr(hook, "__name__", type(hook).__name__))
