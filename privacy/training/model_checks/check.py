"""Which layers of a model keep per-example gradients from existing, and what to do about it."""

import torch
from torch import nn

from privacy.training.errors import ModelProblem, UnsupportedModelError
from privacy.training.per_example import opacus_layers as _opacus
from privacy.training.per_example.capture import trainable_layers
from privacy.training.per_example.layers import OWN, known

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def groups_for(module: nn.modules.batchnorm._BatchNorm) -> int:
    """How many groups a GroupNorm in its place has: at most 32, and more than one value in each.

    Without places beside the channels a group of one channel would be zero whatever it is given.
    """
    channels = module.num_features
    most = channels // 2 if isinstance(module, nn.BatchNorm1d) else channels
    return next(g for g in range(max(1, min(32, most)), 0, -1) if channels % g == 0)


def _layer_problem(name: str, module: nn.Module) -> ModelProblem | None:
    kind = type(module).__name__
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    if isinstance(module, _BATCH_NORMS) and (module.training or trains):
        single = isinstance(module, nn.BatchNorm1d) and module.num_features == 1
        return ModelProblem(
            name,
            kind,
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
        return ModelProblem(
            name,
            kind,
            "it keeps running statistics of the examples",
            "build it with track_running_stats=False, or call replace_unsupported(model)",
            True,
        )
    if not trains:
        return None
    if isinstance(module, nn.MultiheadAttention):
        return ModelProblem(
            name,
            kind,
            "its gradient is had for the batch as a whole only",
            "call replace_unsupported(model)",
            True,
        )
    if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)):
        return ModelProblem(
            name,
            kind,
            "its gradient is had for the batch as a whole only",
            f"use opacus.layers.DP{kind} or replace_unsupported(model)",
            True,
        )
    computed = _computed_weights(module)
    if computed:
        return ModelProblem(
            name,
            kind,
            f"its weight is computed from {computed} by a hook, of which no per-example gradient "
            "is had",
            "take the hook away (torch.nn.utils.remove_weight_norm, remove_spectral_norm, "
            "prune.remove), or freeze the layer with requires_grad_(False)",
            False,
        )
    odd = [p.dtype for p in module.parameters(recurse=False) if p.dtype not in _PRECISIONS]
    if odd:
        return ModelProblem(
            name,
            kind,
            f"its parameters are of {odd[0]}",
            "use float16, bfloat16, float32 or float64",
            False,
        )
    if isinstance(module, nn.EmbeddingBag):
        return ModelProblem(
            name,
            kind,
            "its indices come in one row for all examples",
            "use nn.Embedding and a sum or mean over its second axis",
            False,
        )
    if isinstance(module, nn.Embedding):
        wrong = [n for n in ("max_norm", "scale_grad_by_freq", "sparse") if getattr(module, n)]
        if wrong:
            return ModelProblem(
                name, kind, f"{' and '.join(wrong)} depend on the batch", "leave them out", False
            )
    if not known(module) and any(True for _ in module.buffers()):
        return ModelProblem(
            name,
            kind,
            "it has parameters and buffers of its own, which torch.func cannot follow",
            "put its parameters into submodules, or freeze it with requires_grad_(False)",
            False,
        )
    return None


def _computed_weights(module: nn.Module) -> str:
    """The parameters from which hooks, as of the old weight norm, compute a plain layer's own."""
    if type(module) not in OWN:
        return ""
    own = dict(module.named_parameters(recurse=False))
    return " and ".join(f"'{name}'" for name in own if name not in ("weight", "bias"))


def _tied(model: nn.Module) -> list[ModelProblem]:
    homes: dict[nn.Parameter, str] = {}
    found: list[ModelProblem] = []
    for name, module in model.named_modules():
        if _opacus.is_recurrent(module):
            continue  # Opacus gives their cells' parameters a second name.
        for own, parameter in module.named_parameters(recurse=False):
            here = f"{name}.{own}" if name else own
            if parameter.requires_grad and parameter in homes:
                found.append(
                    ModelProblem(
                        name,
                        type(module).__name__,
                        f"its '{own}' is tied to '{homes[parameter]}'",
                        "give each its own parameter, or freeze it with requires_grad_(False)",
                        False,
                    )
                )
            homes.setdefault(parameter, here)
    return found


def model_problems(model: nn.Module) -> list[ModelProblem]:
    """Everything in ``model`` that breaks per-example gradients, in the model's order."""
    found = [p for name, m in model.named_modules() if (p := _layer_problem(name, m)) is not None]
    named = {problem.layer for problem in found}
    for name, module in model.named_modules():
        if type(module) in OWN or name in named:
            continue
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            found += [
                ModelProblem(name, type(module).__name__, str(error), "replace it", False)
                for error in _opacus.complaints(module)
            ]
    return found + _tied(model)


def check_model(model: nn.Module) -> None:
    """Refuse a model whose examples' gradients cannot be told apart.

    Raises
    ------
    UnsupportedModelError
        Names every such layer, the reason and the remedy.
    ValueError
        If nothing in the model trains.
    """
    problems = model_problems(model)
    if problems:
        raise UnsupportedModelError(problems)
    if not any(True for _ in trainable_layers(model)):
        raise ValueError("the model has no trainable parameter: nothing to train")
