"""Checks of ``train``'s arguments, before anything is charged."""

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from types import NoneType

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from privacy.arguments import of_kind, shown
from privacy.mechanisms import Randomness
from privacy.training.ledger import ClientLedger
from privacy.training.model_checks.check import check_model
from privacy.training.optimizer import GradientDescent
from privacy.training.payment import NO_LEDGER, Payment
from privacy.training.per_example.loss import Loss
from privacy.training.protection import (
    Batches,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    PoissonBatches,
    Protection,
)


def check_arguments(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer | GradientDescent,
    protection: Protection,
    batches: Batches,
    schedule: LRScheduler | None,
    ledger: ClientLedger | Payment | None,
    randomness: Randomness | None,
) -> None:
    """Refuse, by name, arguments of another kind than ``train`` takes, or that do not fit."""
    check_program(model, loss)
    of_kind("optimizer", optimizer, (Optimizer, GradientDescent), "one of torch.optim's")
    of_kind("protection", protection, (ClipOnly, ClipAndNoise), "ClipOnly(…) or ClipAndNoise(…)")
    of_kind("batches", batches, (FullBatch, PoissonBatches), "FullBatch(…) or PoissonBatches(…)")
    kinds = (ClientLedger, Payment, NoneType)
    of_kind("ledger", ledger, kinds, "a ClientLedger or a Payment, or None with ClipOnly")
    of_kind("randomness", randomness, (Randomness, NoneType), "SeededRandomness(seed), or None")
    check_model(model)
    if ledger is None and isinstance(protection, ClipAndNoise):
        raise ValueError(NO_LEDGER)
    _check_optimizer(model, optimizer)
    if schedule is not None:
        _check_schedule(schedule, optimizer, batches.steps)


def check_program(model: nn.Module, loss: Loss) -> None:
    """Refuse a model and a loss of another kind than is trained with."""
    of_kind("model", model, nn.Module, "an nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            "model is scripted or traced, whose layers cannot be watched: give the nn.Module that "
            "it was made of"
        )
    hooks = chain.from_iterable(module._forward_hooks.values() for module in model.modules())
    if any(getattr(hook, "__module__", "").startswith("opacus.grad_sample") for hook in hooks):
        raise TypeError(
            "model has the hooks of Opacus's GradSampleModule: give the bare module, "
            "model.to_standard_module(); examples' gradients are computed, clipped and noised here"
        )
    if isinstance(loss, type):
        raise TypeError(f"loss is {shown(loss)}; give an instance, {loss.__name__}()")
    if not callable(loss):
        raise TypeError(f"loss is {shown(loss)}; give a callable, loss(outputs, targets)")


def _check_optimizer(model: nn.Module, optimizer: Optimizer | GradientDescent) -> None:
    """Refuse an optimizer that needs more than a gradient, or has not this model's parameters."""
    if type(optimizer).__module__.startswith("opacus.optimizers"):
        raise TypeError(
            f"optimizer is Opacus's {type(optimizer).__name__}, which clips and adds noise as "
            "train does: give the optimizer that it was made of, optimizer.original_optimizer"
        )
    if isinstance(optimizer, LBFGS) or _step_needs_argument(optimizer):
        raise ValueError(
            f"optimizer {type(optimizer).__name__} evaluates the loss again and again: take SGD "
            "or Adam"
        )
    if isinstance(optimizer, SparseAdam):
        raise ValueError("optimizer SparseAdam takes sparse gradients only: take Adam")
    stepped = set(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in stepped:
            raise ValueError(
                f"optimizer lacks the trainable parameter '{name}': add it, or freeze it with "
                "requires_grad_(False)"
            )
        stepped.discard(parameter)
    if stepped:
        raise ValueError(f"optimizer holds {len(stepped)} parameters that are not the model's")


def _check_schedule(
    schedule: LRScheduler, optimizer: Optimizer | GradientDescent, steps: int
) -> None:
    """Refuse one that cannot be stepped ``steps`` times; a copy is tried (``OneCycleLR`` ends)."""
    kind = type(schedule).__name__
    of_kind("schedule", schedule, LRScheduler, "one of torch.optim.lr_scheduler")
    if isinstance(schedule, ReduceLROnPlateau) or _step_needs_argument(schedule):
        raise ValueError(
            f"schedule {kind} needs a metric at every step, and a metric of local records is "
            "neither clipped nor noised: take one that goes by the number of steps"
        )
    if schedule.optimizer is not optimizer:
        raise ValueError(f"schedule {kind} was made for another optimizer: make it for this one")
    error = _error_of_steps(schedule, steps)
    if error is not None:
        raise ValueError(f"schedule {kind} cannot be stepped {steps} times ({error})") from error


def _step_needs_argument(stepper: object) -> bool:
    """Whether its class's ``step`` has a required argument."""
    # The class's: a schedule wraps its optimizer's own.
    step = getattr(type(stepper), "step", None)
    return step is not None and _needs_argument(step)


@lru_cache(maxsize=64)
def _needs_argument(method: Callable[..., object]) -> bool:
    """Whether it has a required argument beside its first."""
    try:
        _, *parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind not in variadic for p in parameters)


def _error_of_steps(schedule: LRScheduler, steps: int) -> Exception | None:
    optimizer = schedule.optimizer
    states = (state.values() for state in optimizer.state.values())
    parameters = (group["params"] for group in optimizer.param_groups)
    shared = [t for t in chain.from_iterable((*states, *parameters)) if isinstance(t, Tensor)]
    try:
        trial = copy.deepcopy(schedule, {id(tensor): tensor for tensor in shared})
    except Exception:
        return None  # it cannot be tried
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer did not step before it
        try:
            for _ in range(steps):
                trial.step()
        except Exception as error:
            return error
    return None
