"""A model as PyTorch runs it: a copy of our own, one layer after the other."""

import copy
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from privacy.inference.compiler.modules import NOTHING, layers
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError)
"""Exceptions of PyTorch and NumPy for weights and settings that do not go together."""
_POINTS = 8


def reference(model: nn.Sequential) -> nn.Sequential:
    """The model itself, as PyTorch runs it: a copy in evaluation mode and double precision."""
    named = [*layers(model)]
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of a stranger raises
        raise UnsupportedLayerError(_uncopied(model, named, error)) from error
    return copied.cpu().double().eval()


def _uncopied(model: nn.Sequential, named: list[tuple[str, nn.Module]], error: Exception) -> str:
    """Which attribute of which layer stands in the way of a copy."""
    containers = [
        (f"{key} (Sequential)", module)
        for key, module in model.named_modules()
        if key and type(module) is nn.Sequential
    ]
    places = [(f"layer {name}", module) for name, module in [*named, *containers]]
    for place, module in [*places, ("model", model)]:
        attributes = {**vars(module), **module._parameters, **module._buffers}
        for key in ("_modules", "_parameters", "_buffers"):
            attributes.pop(key)
        for key, value in attributes.items():
            try:
                copy.deepcopy(value)
            except Exception:
                return (
                    f"{place} holds {key}, which cannot be copied (kept activations and locks "
                    f"cannot); remove it: del module.{key}"
                )
    return f"model cannot be copied: {error}"


@dataclass(frozen=True)
class LayerRun:
    """A layer at its place in the model, with its inputs and outputs on points of the range."""

    name: str
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


def run_layers(
    model: nn.Sequential, shape: tuple[int, ...], input_range: tuple[float, float]
) -> list[LayerRun]:
    """Run the layers that do something on points of the range, one after the other."""
    low, high = input_range
    # A fixed seed: the same model must compile alike everywhere.
    points = np.random.default_rng(1).uniform(low, high, (_POINTS, *shape))
    values = torch.from_numpy(points)
    chain = []
    for name, layer in layers(model):
        if type(layer) in NOTHING:
            continue
        for key, value in (*layer.named_parameters(), *layer.named_buffers()):
            if not bool(torch.isfinite(value).all()):
                kind = "NaN" if bool(torch.isnan(value).any()) else "infinity"
                raise ValueError(f"layer {name}: {key} holds {kind}; load other weights")
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and (
            layer.running_mean is None or layer.running_var is None
        ):
            raise UnsupportedLayerError(
                f"layer {name} has no running statistics and would mix the images of a batch; "
                "train it with track_running_stats=True"
            )
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            _check_variances(name, layer)
        here = tuple(values.shape[1:])
        try:
            outputs = layer(values)
        except MISFITS as error:
            raise ValueError(
                f"layer {name} does not take inputs of shape {here}: {error}"
            ) from error
        if outputs.ndim < 2 or len(outputs) != _POINTS:
            raise UnsupportedLayerError(
                f"layer {name} makes shape {tuple(outputs.shape)} of {_POINTS} inputs of shape "
                f"{here}: it mixes the images of a batch"
            )
        if outputs.numel() == 0:
            raise ValueError(
                f"layer {name} has no outputs (shape {tuple(outputs.shape[1:])} of an input); give "
                "it 1 or more, or leave it out"
            )
        if not bool(torch.isfinite(outputs).all()):
            if not bool(torch.isfinite(layer(torch.zeros_like(values))).all()):
                raise ValueError(
                    f"layer {name} makes no finite numbers even of zeros, though its weights are "
                    "finite; look at its settings"
                )
            raise CannotPlanError(
                f"over input_range the values after layer {name} are larger than any number of "
                "double precision; narrow input_range, or make the model shallower"
            )
        chain.append(LayerRun(name, layer, values, outputs))
        values = outputs
    return chain


def _check_variances(name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Refuse a BatchNorm that takes the root of zero, or of less."""
    variances = cast(Tensor, layer.running_var)
    least = float(variances.min()) if variances.numel() else 1.0
    if least + layer.eps <= 0:
        raise ValueError(
            f"layer {name}: running_var goes down to {least:.3g} and eps is {layer.eps:.3g}, which "
            "leaves no variance to divide by; load other weights"
        )
