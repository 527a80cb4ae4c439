"""Which layers of a model keep per-example gradients from existing, and what to do about it."""

from dataclasses import dataclass

from torch import nn

from . import _opacus
from ._capture import trainable_layers
from ._layers import OWN, known

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class ModelProblem:
    """Why one layer cannot be trained with per-example clipping.

    Parameters
    ----------
    layer : str
        Its name in the model, as ``named_modules`` spells it; "" is the model itself.
    kind : str
        Its class.
    reason, remedy : str
        What is wrong and what to do.
    replaceable : bool
        Whether ``replace_unsupported`` mends it.
    """

    layer: str
    kind: str
    reason: str
    remedy: str
    replaceable: bool

    def __str__(self) -> str:
        return f"'{self.layer or '(model)'}' ({self.kind}): {self.reason}; {self.remedy}"


class UnsupportedModelError(ValueError):
    """The model has layers that break per-example gradients.

    ``problems`` lists them.
    """

    def __init__(self, problems: list[ModelProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, problems)))


def _layer_problem(name: str, module: nn.Module) -> ModelProblem | None:
    kind = type(module).__name__
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    if isinstance(module, _BATCH_NORMS) and (module.training or trains):
        return ModelProblem(
            name,
            kind,
            "it mixes the examples of a batch and keeps statistics of them",
            f"use GroupNorm({min(32, module.num_features)}, {module.num_features}), "
            "replace_unsupported(model), or freeze it: eval() and requires_grad_(False)",
            True,
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
    if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)):
        return ModelProblem(
            name,
            kind,
            "its gradient is had for the batch as a whole only",
            f"use opacus.layers.DP{kind} or replace_unsupported(model)",
            True,
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


def replace_unsupported(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with what Opacus can replace replaced; then ``check_model``.

    BatchNorm becomes GroupNorm (its weights start anew), running statistics are switched off,
    LSTM, GRU, RNN and MultiheadAttention become Opacus's, with their weights.

    Raises
    ------
    UnsupportedModelError
        If something remains that has no replacement.
    """
    fixed = _opacus.fix(model)
    check_model(fixed)
    return fixed
