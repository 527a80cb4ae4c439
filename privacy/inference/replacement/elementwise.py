"""Which modules and functions are activations that a polynomial replaces, and which cannot be."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MODULES: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink),
    *(nn.Softshrink, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus),
    *(nn.Softsign, nn.Threshold),
)
"""Exactly these types: one function of each element."""

FUNCTIONS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
        *("hardswish", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink"),
        *("sigmoid", "log_sigmoid", "tanh", "softplus", "softsign", "_threshold", "threshold"),
        *("clamp", "clamp_min", "clamp_max", "clip", "abs", "erf", "exp", "atan", "arctan"),
        *("sin", "cos"),
    }
)
"""Names of PyTorch's functions and of tensors' methods; in place with a trailing underscore."""

AT_THE_END = frozenset({"Sigmoid", "LogSigmoid", "sigmoid", "log_sigmoid"})
"""Activations behind which the decision is that of the logits before."""

MAX_POOLS: dict[str, type[nn.Module]] = {
    "MaxPool1d": nn.AvgPool1d,
    "MaxPool2d": nn.AvgPool2d,
    "max_pool1d": nn.AvgPool1d,
    "max_pool2d": nn.AvgPool2d,
}
ADAPTIVE_MAX_POOLS: dict[str, type[nn.Module]] = {
    "AdaptiveMaxPool1d": nn.AdaptiveAvgPool1d,
    "AdaptiveMaxPool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool1d": nn.AdaptiveAvgPool1d,
    "adaptive_max_pool2d": nn.AdaptiveAvgPool2d,
}

_NORMALISED = "which divides by a statistic of each input; train with nn.BatchNorm instead"
_SOFTMAX = (
    "which divides by a sum of exponentials; at the end of a model leave it out, since the class "
    "of the largest logit is the same"
)
_COMPARED = "which compares values; build the model without comparisons"
_REFUSED = {
    **dict.fromkeys(
        (
            *("LayerNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "LocalResponseNorm"),
            *("RMSNorm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"),
            *("local_response_norm",),
        ),
        _NORMALISED,
    ),
    **dict.fromkeys(
        ("Softmax", "Softmax2d", "Softmin", "LogSoftmax", "softmax", "softmin", "log_softmax"),
        _SOFTMAX,
    ),
    **dict.fromkeys(
        ("MultiheadAttention", "TransformerEncoderLayer", "scaled_dot_product_attention"),
        "whose weights are a softmax; no polynomial of small degree takes its place",
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"),
        "whose gates stand inside it; write it out in nn.Linear layers and activations",
    ),
    **dict.fromkeys(
        ("MaxPool3d", "AdaptiveMaxPool3d", "FractionalMaxPool2d", "max_pool3d", "LPPool2d"),
        "a maximum or a root over a window; train with an average pool instead",
    ),
    **dict.fromkeys(
        (
            *("max", "min", "amax", "amin", "maximum", "minimum", "where", "sign", "sort"),
            *("topk", "argmax", "argmin", "gt", "lt", "ge", "le", "eq", "ne", "round", "floor"),
        ),
        _COMPARED,
    ),
    **dict.fromkeys(
        ("truediv", "div", "divide", "reciprocal", "rsqrt", "sqrt", "log", "true_divide"),
        "a division, root or logarithm of values that depend on the input; build the model "
        "without it",
    ),
    **dict.fromkeys(("GLU", "glu"), "a gate of two halves; build it of a layer and an activation"),
}


def refusal(kind: str) -> str | None:
    """Why a module or function of this name has no polynomial, with the remedy, or None."""
    return _REFUSED.get(kind)


def average_pool(kind: str, settings: dict[str, Any]) -> nn.Module | None:
    """The average over the windows of a max pool with these settings; None if there is none."""
    if kind in ADAPTIVE_MAX_POOLS:
        if settings.get("return_indices"):
            return None
        return ADAPTIVE_MAX_POOLS[kind](settings["output_size"])
    dilation = settings.get("dilation", 1)
    plain = all(each == 1 for each in (dilation if isinstance(dilation, tuple) else (dilation,)))
    if not plain or settings.get("return_indices"):
        return None
    # A max pool's padding is no value, and so counts in no average.
    return MAX_POOLS[kind](
        settings["kernel_size"],
        stride=settings.get("stride"),
        padding=settings.get("padding", 0),
        ceil_mode=settings.get("ceil_mode", False),
        count_include_pad=False,
    )


class Function(nn.Module):
    """A function or a method of tensors with fixed further arguments, as a module."""

    def __init__(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        name = target if isinstance(target, str) else target.__name__
        self.label = name.strip("_")
        if name.endswith("_"):  # in place: the same function beside it
            home = torch if hasattr(torch, self.label) else nn.functional
            target = self.label if isinstance(target, str) else getattr(home, self.label)
        if "inplace" in kwargs:
            kwargs["inplace"] = False
        self._target: Any = getattr(Tensor, target) if isinstance(target, str) else target
        self._args, self._kwargs = args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        """The function's value for each element of ``x``."""
        result: Tensor = self._target(x, *self._args, **self._kwargs)
        return result
