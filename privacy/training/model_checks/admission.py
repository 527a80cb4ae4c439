"""A trial of the model and the loss on made-up records, before a record is looked at.

It refuses those whose per-example gradients would be wrong or, with noise, that mix examples.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.comparison import HALF, closeness, same_numbers
from privacy.training.model_checks.independence import check_example_independence
from privacy.training.model_checks.model_state import (
    Buffers,
    away_from_constants,
    preserved_randomness,
    refuse_changed,
    seed_torch,
)
from privacy.training.model_checks.program_identity import program_identity
from privacy.training.model_checks.trial_records import DISTRIBUTIONS, trial_records
from privacy.training.per_example.capture import Capture, leaves_of
from privacy.training.per_example.gradients import Gradients
from privacy.training.per_example.loss import ExampleLoss, detached, tensors_of
from privacy.training.per_example.malformed import PROGRAM_ERRORS
from privacy.training.records import RecordFormat, Records

_log = logging.getLogger(__name__)

_accepted: OrderedDict[Hashable, None] = OrderedDict()  # the last programs that passed
_MOST_ACCEPTED = 64


def admit(
    model: nn.Module, loss: ExampleLoss, records: Records, buffers: Buffers, *, noised: bool
) -> bool:
    """Try model and loss on made-up records; whether there are records to train on.

    The outcome, which others see, depends on the data's shapes and precisions alone. One format
    that model and loss accept is enough: records of others are malformed.

    Raises
    ------
    GradientError, TypeError, ValueError
        If gradients would be wrong, model and loss accept no format of the records or, with noise,
        they mix examples.
    """
    first: Exception | None = None
    for record_format in records.formats():
        refusal = _refused(model, loss, record_format, buffers, noised)
        if refusal is None:
            return True
        first = first or refusal
    if first is not None:
        raise first
    return False


def admitted(
    model: nn.Module, loss: ExampleLoss, records: Records, buffers: Buffers
) -> list[RecordFormat]:
    """The formats of the records that model and loss accept, with noise; the others are malformed.

    Whatever one record's format brings about, the others are tried: nothing but the format of
    tensors, which is no one record's, can end a step. If no format is accepted the log says why.

    Raises
    ------
    GradientError, TypeError, ValueError
        As ``admit``, of tensors.
    """
    accepted: list[RecordFormat] = []
    first: Exception | None = None
    for record_format in records.formats():
        try:
            refusal = _refused(model, loss, record_format, buffers, noised=True)
        except Exception as error:
            refusal = error
        if refusal is None:
            accepted.append(record_format)
        elif records.one_format:
            raise refusal
        first = first or refusal
    if first is not None and not accepted:
        _log.error("No record can be trained on, and none is: %s", first)
    return accepted


def _refused(
    model: nn.Module, loss: ExampleLoss, record_format: RecordFormat, buffers: Buffers, noised: bool
) -> Exception | None:
    """Why model and loss cannot be run on records of this format, if so."""
    program = program_identity(model, loss)
    identity = None if program is None else (program, record_format, noised)
    if identity is not None and identity in _accepted:
        return None
    failures = []
    for distribution in DISTRIBUTIONS:
        try:
            batch = trial_records(record_format, distribution)
            check_gradients(model, loss, batch)
            if noised:
                check_example_independence(model, loss, batch)
        except PROGRAM_ERRORS:  # they do not depend on the values
            buffers.restore()
            raise
        except Exception as error:
            buffers.restore()
            failures.append(error)
            continue
        refuse_changed(buffers.restore())
        if identity is not None:
            _accepted[identity] = None
            while len(_accepted) > _MOST_ACCEPTED:
                _accepted.popitem(last=False)
        return None
    return _refusal(record_format, failures[0])


def _refusal(record_format: RecordFormat, first: Exception) -> Exception:
    shapes = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype, _ in record_format)
    kinds = (kind for kind in (TypeError, ValueError) if isinstance(first, kind))
    kind: type[Exception] = next(kinds, GradientError)
    refusal = kind(
        f"model or loss fails on a trial's records, which are made up in the data's shapes "
        f"(a record's inputs and target: {shapes}): {type(first).__name__}: {first}; give records "
        "of the shapes that the model takes, and a model with finite parameters and a loss that "
        "take standard normal numbers, those between 0 and 1, or small whole ones, indices and "
        "classes 0 and 1"
    )
    refusal.__cause__ = first
    return refusal


def check_gradients(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> None:
    """Refuse a model or a loss whose per-example gradients do not add up to torch's own.

    ``batch`` holds made-up records: inputs, then targets, each of shape (n, ...).

    Raises
    ------
    GradientError
        Names the parameter that is used around its layer, has a hook, or has another gradient; or
        if none has one, or the loss depends on the batch.
    ValueError
        If the loss is not one value an example.
    ArithmeticError
        If losses or gradients are not finite.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _refuse_hooks(trained)
    *inputs, targets = batch
    with (
        preserved_randomness(model) as generators,
        away_from_constants(model),
        Capture(model) as capture,
    ):
        generators.seed(0)
        outputs = model(*inputs)
        _check_loss(loss, detached(outputs), targets)
        losses = loss(outputs, targets)
        _check_finite("losses", losses)
        if not all(parameter.requires_grad for parameter in trained.values()):
            raise GradientError(
                "the model freezes parameters while it runs, so that other gradients are asked for "
                "than it has: freeze them before training, with requires_grad_(False)"
            )
        capture.check_parameters(losses)
        layers = capture.gradients(losses, keep_graph=True)
        expected = _torchs_own(losses, list(trained.values()))
        if all(gradient is None for gradient in expected):
            raise GradientError(
                "the loss gives no trainable parameter a gradient, so that no step would train: it "
                "is constant, or the model or the loss cuts it off (detach, no_grad, argmax, a "
                "comparison, numbers taken out of tensors); compute it from the model's outputs by "
                "functions that torch differentiates"
            )
        sums: Gradients = {}
        ones = torch.ones(len(targets), dtype=torch.float64, device=losses.device)
        with torch.no_grad():
            for layer in layers.values():
                sums.update(layer.weighted_sum(ones))
    _compare(trained, expected, sums)


def _torchs_own(losses: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients that ``backward`` leaves on the parameters; all that are there stay.

    ``torch.autograd.grad`` passes by what a function runs of its own in its backward pass, as a
    reentrant checkpoint does.
    """
    if not losses.requires_grad:
        return [None for _ in parameters]
    leaves = {*parameters, *leaves_of(losses)}
    before = {leaf: leaf.grad for leaf in leaves}
    try:
        for leaf in leaves:
            leaf.grad = None
        losses.sum().backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for leaf, gradient in before.items():
            leaf.grad = gradient


def _refuse_hooks(trained: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in trained.items():
        after = getattr(parameter, "_post_accumulate_grad_hooks", None)
        if parameter._backward_hooks or after:
            raise GradientError(
                f"parameter '{name}' has a hook, which no per-example gradient goes through: "
                "remove the hook, or freeze the parameter with requires_grad_(False)"
            )


def _compare(
    trained: Mapping[str, nn.Parameter], expected: Sequence[Tensor | None], sums: Gradients
) -> None:
    known = [gradient for gradient in expected if gradient is not None]
    _check_finite("gradients", *known)
    largest = max((float(g.abs().amax()) for g in known if g.numel()), default=0.0)
    for (name, parameter), gradient in zip(trained.items(), expected, strict=True):
        zero = torch.zeros_like(parameter)
        gradient = zero if gradient is None else gradient
        close = closeness(parameter)
        size = float(gradient.abs().amax()) if gradient.numel() else 0.0
        tolerance = 10 * close * size + close * (0.1 if close < HALF else 1.0) * largest
        difference = (sums.get(parameter, zero).double() - gradient.double()).abs()
        if difference.numel() and not float(difference.amax()) <= tolerance:
            raise GradientError(
                f"the per-example gradients of parameter '{name}' do not add up to torch's own "
                "gradient: something between the parameter and the loss (a hook, a forward of its "
                "own, a computed weight, a checkpoint with use_reentrant=True) is out of their "
                "reach; take it away, put the parameter into a module with a forward of its own, "
                "or freeze it with requires_grad_(False)"
            )


def _check_finite(name: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ArithmeticError(f"{name} are not finite")


def _check_loss(loss: ExampleLoss, outputs: Any, targets: Tensor) -> None:
    """Refuse a loss of one example that depends on its batch: training gives it one at a time."""
    if loss.is_examplewise:
        return

    def seeded(call: Callable[[Any, Tensor], Tensor], seed: int) -> Tensor:
        seed_torch(seed)
        with torch.no_grad():
            return call(outputs, targets)

    on_batch, one_by_one = seeded(loss.on_batch, 0), seeded(loss.one_by_one, 0)
    _check_finite("losses", on_batch)
    if not same_numbers(on_batch, seeded(loss.on_batch, 0)):
        raise GradientError(
            "the loss gives other values when it is asked again: it keeps something of the "
            "examples, or draws from a generator of its own; make it depend on nothing but its "
            "arguments"
        )
    draws = not same_numbers(on_batch, seeded(loss.on_batch, 1))
    if not draws and not same_numbers(on_batch, one_by_one):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(outputs))
        raise GradientError(
            f"examples meet in the loss (outputs {shapes}, targets {tuple(targets.shape)}): one "
            "example's loss is another when the batch holds other examples, through broadcasting, "
            "a mean or a count over the batch; let it depend on the example alone"
        )
