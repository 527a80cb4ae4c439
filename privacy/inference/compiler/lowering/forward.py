"""A model as PyTorch runs it: a copy of our own."""

import copy

from torch import nn

from privacy.inference.compiler.lowering.modules import check_modules
from privacy.inference.errors import UnsupportedLayerError


def reference(model: nn.Module) -> nn.Module:
    """The model itself, as PyTorch runs it: a copy in evaluation mode and double precision."""
    check_modules(model)
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of a stranger raises
        raise UnsupportedLayerError(_uncopied(model, error)) from error
    return copied.cpu().double().eval()


def _uncopied(model: nn.Module, error: Exception) -> str:
    """Which attribute of which module stands in the way of a copy."""
    places = [
        (f"layer {key} ({type(module).__name__})" if key else "model", module)
        for key, module in model.named_modules()
    ]
    for place, module in [*places[1:], places[0]]:
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
