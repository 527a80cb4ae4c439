"""Layers of a model that break per-example gradients, each with the remedy."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from privacy._logging import untouched_root_logger
from privacy.imports import needing
from privacy.training.errors import ModelProblem, UnsupportedModelError
from privacy.training.per_example.capture import trainable_layers
from privacy.training.per_example.layers import OWN_METHOD, handled_alone, is_recurrent

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_model(model: nn.Module) -> None:
    """Refuse a model without per-example gradients.

    Raises
    ------
    UnsupportedModelError
        Names every such layer, the reason and the remedy.
    ValueError
        If nothing in the model trains, or it lies on a device without double precision.
    """
    for device in {parameter.device for parameter in model.parameters()}:
        refuse_device(device)
    problems = model_problems(model)
    if problems:
        raise UnsupportedModelError(problems)
    if not any(True for _ in trainable_layers(model)):
        raise ValueError("the model has no trainable parameter: nothing to train")


def refuse_device(device: torch.device) -> None:
    """Refuse, in a ``ValueError``, a device on which norms and noise cannot be had."""
    if device.type == "mps":
        raise ValueError(
            f"the model lies on {device}, which has no double precision, in which norms are "
            "computed and noise is added: move it to the CPU or a CUDA device"
        )


def model_problems(model: nn.Module) -> list[ModelProblem]:
    """Everything in ``model`` that breaks per-example gradients, in the model's order."""
    problems = [p for name, m in model.named_modules() if (p := _layer_problem(name, m))]
    named = {problem.layer for problem in problems}
    for name, module in model.named_modules():
        if type(module) not in OWN_METHOD and name not in named and _trains(module):
            kind = type(module).__name__
            errors = _opacus_errors(module)
            problems += [ModelProblem(name, kind, str(each), "replace it") for each in errors]
    return [*problems, *_tied(model)]


def groups_for(module: nn.modules.batchnorm._BatchNorm) -> int:
    """How many groups a GroupNorm in its place has: at most 32, and more than one value in each.

    A group of one value would be zero whatever its input.
    """
    channels = module.num_features
    most = channels // 2 if isinstance(module, nn.BatchNorm1d) else channels
    return next(g for g in range(max(1, min(32, most)), 0, -1) if channels % g == 0)


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _layer_problem(name: str, module: nn.Module) -> ModelProblem | None:
    kind = type(module).__name__
    problem = partial(ModelProblem, name, kind)
    trains = _trains(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or trains):
        single = isinstance(module, nn.BatchNorm1d) and module.num_features == 1
        return problem(
            "it mixes the examples of a batch and keeps statistics of them",
            "leave it out"
            if single
            else f"use GroupNorm({groups_for(module)}, {module.num_features}), "
            "replace_unsupported(model), or leave it out; where the model is to be compiled for "
            "encrypted inference, which takes no GroupNorm, leave it out or freeze it with "
            "statistics of public data, eval() and requires_grad_(False): both take that",
            not single,
        )
    if getattr(module, "track_running_stats", False) and module.training:
        return problem(
            "it keeps running statistics of the examples",
            "build it with track_running_stats=False, or call replace_unsupported(model)",
            True,
        )
    if not trains:
        return None
    if isinstance(module, (nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN)):
        own = "" if isinstance(module, nn.MultiheadAttention) else f"use opacus.layers.DP{kind} or "
        return problem(
            "its gradient is had for the batch as a whole only",
            f"{own}call replace_unsupported(model)",
            True,
        )
    hooked = _computed_from(module)
    if hooked:
        return problem(
            f"its weight is computed from {hooked} by a hook, of which no per-example gradient is "
            "had",
            "take the hook away (torch.nn.utils.remove_weight_norm, remove_spectral_norm, "
            "prune.remove), or freeze the layer with requires_grad_(False)",
        )
    for parameter in module.parameters(recurse=False):
        if parameter.dtype not in _PRECISIONS:
            return problem(
                f"its parameters are of {parameter.dtype}",
                "use float16, bfloat16, float32 or float64",
            )
    if isinstance(module, nn.EmbeddingBag):
        return problem(
            "its indices come in one row for all examples",
            "use nn.Embedding and a sum or mean over its second axis",
        )
    if isinstance(module, nn.Embedding):
        options = [n for n in ("max_norm", "scale_grad_by_freq", "sparse") if getattr(module, n)]
        if options:
            return problem(f"{' and '.join(options)} depend on the batch", "leave them out")
    if not handled_alone(module) and any(True for _ in module.buffers()):
        return problem(
            "it has parameters and buffers of its own, which torch.func cannot follow",
            "put its parameters into submodules, or freeze it with requires_grad_(False)",
        )
    return None


def _computed_from(module: nn.Module) -> str:
    """The parameters from which hooks, as the old weight norm's, compute a plain layer's weight."""
    if type(module) not in OWN_METHOD:
        return ""
    own = dict(module.named_parameters(recurse=False))
    return " and ".join(f"'{name}'" for name in own if name not in ("weight", "bias"))


def _opacus_errors(module: nn.Module) -> list[Exception]:
    """Why Opacus does not train this module, its children apart."""
    with needing("check_model", extra="training"), untouched_root_logger():
        from opacus.validators import ModuleValidator
    validator = ModuleValidator.VALIDATORS.get(type(module))
    return [] if validator is None else list(validator(module))


def _tied(model: nn.Module) -> Iterator[ModelProblem]:
    homes: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        if is_recurrent(module):
            continue  # Opacus gives their cells' parameters a second name
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter in homes:
                yield ModelProblem(
                    name,
                    type(module).__name__,
                    f"its '{own}' is tied to '{homes[parameter]}'",
                    "give each its own parameter, or freeze it with requires_grad_(False)",
                )
            homes.setdefault(parameter, f"{name}.{own}" if name else own)
