"""Whether what is clipped is the gradient: the loss alone, the parameters inside their layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.model_state import (
    HALF,
    away_from_constants,
    closeness,
    kept_randomness,
    same_numbers,
    seed_global,
)
from privacy.training.per_example.capture import Capture
from privacy.training.per_example.loss import ExampleLoss, detached, tensors_of


class NotFiniteError(ArithmeticError):
    """What was made up for the trial gives numbers that say nothing."""


def check_gradients(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> None:
    """Refuse a model or a loss whose per-example gradients would be wrong.

    Parameters
    ----------
    model : nn.Module
        As it will be trained.
    loss : ExampleLoss
        The user's, an example at a time.
    batch : sequence of Tensor, shape (n, ...)
        Records that were made up: inputs, then targets.

    Raises
    ------
    GradientError
        Names the parameter that is used around its layer, has a hook, or whose gradient differs
        from torch's; or says that no parameter has one.
    ValueError
        If the loss is not one value an example, or depends on the batch it is in.
    NotFiniteError
        If losses or gradients are not finite.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _refuse_hooks(trained)
    *inputs, targets = batch
    with (
        kept_randomness(model) as generators,
        away_from_constants(model),
        Capture(model) as capture,
    ):
        generators.restart(0)
        outputs = model(*inputs)
        check_loss(loss, detached(outputs), targets)
        losses = loss(outputs, targets)
        if not bool(torch.isfinite(losses).all()):
            raise NotFiniteError("losses are not finite")
        capture.check_parameters(losses)
        layers = capture.gradients(losses, keep_graph=True)
        theirs: Sequence[Tensor | None] = (None,) * len(trained)
        if losses.requires_grad:
            theirs = torch.autograd.grad(losses.sum(), list(trained.values()), allow_unused=True)
        if all(gradient is None for gradient in theirs):
            raise GradientError(
                "the loss gives no trainable parameter a gradient, so that no step would train: it "
                "is constant, or the model or the loss cuts it off (detach, no_grad, argmax, a "
                "comparison, numbers taken out of tensors); compute it from the model's outputs by "
                "functions that torch differentiates"
            )
        ours: dict[Tensor, Tensor] = {}
        each = torch.ones(len(targets), dtype=torch.float64, device=losses.device)
        with torch.no_grad():
            for layer in layers.values():
                ours.update(layer.weighted_sum(each))
    _compare(trained, theirs, ours)


def _refuse_hooks(trained: dict[str, nn.Parameter]) -> None:
    for name, parameter in trained.items():
        after = getattr(parameter, "_post_accumulate_grad_hooks", None)
        if parameter._backward_hooks or after:
            raise GradientError(
                f"parameter '{name}' has a hook, which no per-example gradient goes through: "
                "remove the hook, or freeze the parameter with requires_grad_(False)"
            )


def _compare(
    trained: dict[str, nn.Parameter],
    theirs: Sequence[Tensor | None],
    ours: dict[Tensor, Tensor],
) -> None:
    known = [gradient for gradient in theirs if gradient is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in known):
        raise NotFiniteError("gradients are not finite")
    largest = max((float(g.abs().amax()) for g in known if g.numel()), default=0.0)
    for (name, parameter), expected in zip(trained.items(), theirs, strict=True):
        zero = torch.zeros_like(parameter)
        expected = zero if expected is None else expected
        found = ours.get(parameter, zero)
        close = closeness(parameter)
        size = float(expected.abs().amax()) if expected.numel() else 0.0
        tolerance = 10 * close * size + close * (0.1 if close < HALF else 1.0) * largest
        apart = (found.double() - expected.double()).abs()
        if apart.numel() and not float(apart.amax()) <= tolerance:
            raise GradientError(
                f"the per-example gradients of parameter '{name}' do not add up to torch's own "
                "gradient: something between the parameter and the loss (a hook, a forward of its "
                "own, a computed weight) is out of their reach; take it away, put the parameter "
                "into a module with a forward of its own, or freeze it with requires_grad_(False)"
            )


def check_loss(loss: ExampleLoss, outputs: Any, targets: Tensor) -> None:
    """Refuse a loss whose values for one example depend on the batch that it is in.

    Training would not let it see other examples, and so would train by another loss than meant.
    """
    if loss.is_known_apart:
        return

    def seeded(call: Callable[[Any, Tensor], Tensor], seed: int) -> Tensor:
        seed_global(seed)
        with torch.no_grad():
            return call(outputs, targets)

    together, alone = seeded(loss.together, 0), seeded(loss.alone, 0)
    if not bool(torch.isfinite(together).all()):
        raise NotFiniteError("losses are not finite")
    if not same_numbers(together, seeded(loss.together, 0)):
        raise GradientError(
            "the loss gives other values when it is asked again: it keeps something of the "
            "examples, or draws from a generator of its own; make it depend on nothing but its "
            "arguments"
        )
    drawn = not same_numbers(together, seeded(loss.together, 1))
    if not drawn and not same_numbers(together, alone):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(outputs))
        raise GradientError(
            f"examples meet in the loss (outputs {shapes}, targets {tuple(targets.shape)}): one "
            "example's loss is another when the batch holds other examples, through broadcasting, "
            "a mean or a count over the batch; let it depend on the example alone"
        )
