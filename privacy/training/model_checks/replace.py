"""Replacements for layers without per-example gradients."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from privacy._logging import untouched_root_logger
from privacy.imports import needing
from privacy.training.errors import ModelProblem, UnsupportedModelError
from privacy.training.model_checks.check import check_model, groups_for, model_problems
from privacy.training.model_checks.comparison import CLOSE, HALF
from privacy.training.model_checks.model_state import evaluating

_SAME_FUNCTION = (nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)
_LENGTH, _EXAMPLES = 4, 3


def replace_unsupported(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every replaceable layer replaced; then ``check_model``.

    LSTM, GRU and RNN become Opacus's and MultiheadAttention one with layers for its projections,
    with their weights: each is tried, and refused unless its outputs equal the original's, masks
    included. They take batches only. A layer under several names is replaced under all of them.
    Two replacements are other functions, to be trained: BatchNorm becomes GroupNorm (its weights
    start anew; encrypted inference does not take it, see ``check_model``'s advice), and running
    statistics are switched off.

    Parameters
    ----------
    model : nn.Module
        It stays as it is. The copy has its frozen layers, modes, precisions and devices.

    Raises
    ------
    UnsupportedModelError
        If something remains that has no replacement, or none that gives the same.
    """
    problems = model_problems(model)
    remaining = [problem for problem in problems if not problem.replaceable]
    if remaining:  # before the copy, which a computed weight does not allow
        raise UnsupportedModelError(remaining)
    fixed = _copied(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for name in dict.fromkeys(problem.layer for problem in problems):
        module = fixed.get_submodule(name)
        replacements[module] = _replacement(name, module)
    for parent in list(fixed.modules()):
        for own, child in list(parent._modules.items()):  # also by a second name
            if child in replacements:
                setattr(parent, own, replacements[child])
    fixed = replacements.get(fixed, fixed)
    for module in fixed.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # only PyTorch's own attention takes nested tensors
    check_model(fixed)
    return fixed


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        remedy = "take out of it what cannot be copied (a computed tensor, a lock, an open file)"
        kind = type(model).__name__
        problem = ModelProblem("", kind, f"it cannot be copied ({error})", remedy)
        raise UnsupportedModelError([problem]) from error


def _replacement(name: str, module: nn.Module) -> nn.Module:
    try:
        tensors = [*module.parameters(), *module.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        device = torch.device("cpu") if like is None else like.device
        with torch.random.fork_rng(devices=[]), device:
            replacement = _made(module, like)
    except Exception as error:
        raise _refusal(name, module, f"its replacement cannot be made ({error})") from error
    if isinstance(module, _SAME_FUNCTION):
        difference = _difference(module, replacement)
        if difference:
            raise _refusal(name, module, f"its replacement {difference}")
    return replacement


def _made(module: nn.Module, like: Tensor | None) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        with needing("replace_unsupported", extra="training"), untouched_root_logger():
            from privacy.training.model_checks.replacement_layers import SeparateAttention

        return SeparateAttention(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        made: nn.Module = nn.GroupNorm(
            groups_for(module), module.num_features, eps=module.eps, affine=module.affine
        )
    elif isinstance(module, nn.RNNBase):
        made = _recurrent(module)
    else:
        with needing("replace_unsupported", extra="training"), untouched_root_logger():
            from opacus.validators import ModuleValidator
        made = ModuleValidator.FIXERS[type(module)](module)
    if like is not None:
        made.to(device=like.device, dtype=like.dtype)
    for own, parameter in module.named_parameters():
        taken_over = getattr(made, own, None)
        if isinstance(taken_over, nn.Parameter):
            taken_over.requires_grad_(parameter.requires_grad)
    return made.train(module.training)


def _recurrent(module: nn.RNNBase) -> nn.Module:
    with needing("replace_unsupported", extra="training"), untouched_root_logger():
        from privacy.training.model_checks.replacement_layers import (
            BatchedGRU,
            BatchedLSTM,
            BatchedRNN,
        )
    kinds: dict[type, Any] = {nn.RNN: BatchedRNN, nn.GRU: BatchedGRU, nn.LSTM: BatchedLSTM}
    options = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    options += ["proj_size"] * bool(module.proj_size)
    options += ["nonlinearity"] * isinstance(module, nn.RNN)
    made: nn.Module = kinds[type(module)](
        module.input_size, module.hidden_size, **{each: getattr(module, each) for each in options}
    )
    made.load_state_dict(module.state_dict())
    return made


def _refusal(name: str, module: nn.Module, reason: str) -> UnsupportedModelError:
    remedy = "build the model of other layers, or freeze this one with requires_grad_(False)"
    return UnsupportedModelError([ModelProblem(name, type(module).__name__, reason, remedy)])


def _difference(module: nn.Module, replacement: nn.Module) -> str | None:
    """How the replacement's outputs differ, if they do."""
    with evaluating(module), evaluating(replacement), torch.no_grad():
        for call in _calls(module):
            expected = list(_tensors(call(module)))
            try:
                given = list(_tensors(call(replacement)))
            except Exception as error:
                return f"fails where it does not ({error})"
            for one, other in zip(expected, given, strict=True):
                close = 10 * CLOSE.get(one.dtype, HALF)
                if one.shape != other.shape or not torch.allclose(
                    one.double(), other.double(), rtol=close, atol=close, equal_nan=True
                ):
                    return "gives something else"
    return None


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple):
        for each in result:
            yield from _tensors(each)


def _calls(module: nn.Module) -> list[Callable[[nn.Module], Any]]:
    """Calls to which a replacement must give the original's outputs."""
    like = next(module.parameters())
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(like)

    if not isinstance(module, nn.MultiheadAttention):
        inputs = drawn(_EXAMPLES, _LENGTH, module.input_size)  # type: ignore[arg-type]
        return [lambda layer: layer(inputs)]
    shape = (_EXAMPLES, _LENGTH) if module.batch_first else (_LENGTH, _EXAMPLES)
    q, k, v = (drawn(*shape, width) for width in (module.embed_dim, module.kdim, module.vdim))
    padding = torch.zeros(_EXAMPLES, _LENGTH, dtype=torch.bool, device=like.device)
    padding[1, -2:] = True
    causal = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool, device=like.device).triu(1)
    added = drawn(_EXAMPLES * module.num_heads, _LENGTH, _LENGTH)
    return [
        lambda layer: layer(q, k, v),
        lambda layer: layer(q, k, v, average_attn_weights=False, attn_mask=causal),
        lambda layer: layer(q, k, v, key_padding_mask=padding, need_weights=False),
        lambda layer: layer(
            q,
            k,
            v,
            attn_mask=added,
            key_padding_mask=padding.to(like).mul(-1e4),
            need_weights=False,
        ),
        lambda layer: layer(q, k, v, attn_mask=causal, is_causal=True, need_weights=False),
    ]
