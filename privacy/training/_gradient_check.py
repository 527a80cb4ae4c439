"""Whether what is clipped is the gradient: the loss alone, the parameters inside their layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ._capture import Capture, GradientError
from ._layers import OWN
from ._loss import ExampleLoss, tensors_of
from ._trial import (
    CLOSE,
    HALF,
    away_from_constants,
    fixed_randomness,
    same_numbers,
    seed_global,
)


def check_gradients(
    model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor], *, every_layer: bool
) -> None:
    """Refuse a model or a loss whose per-example gradients would be wrong.

    Parameters
    ----------
    model : nn.Module
        As it will be trained.
    loss : ExampleLoss
        The user's, an example at a time.
    batch : sequence of Tensor, shape (n, ...)
        Records: inputs, then targets.
    every_layer : bool
        Whether to compare gradients with torch's also where all layers are plain ones.

    Raises
    ------
    GradientError
        Names the parameter that is used around its layer, or whose gradient differs from torch's.
    ValueError
        If the loss is not one value an example, or depends on the batch it is in.
    """
    *inputs, targets = batch
    with fixed_randomness(model, 0), Capture(model) as capture:
        outputs = model(*inputs)
        check_loss(loss, _detached(outputs), targets)
        losses = loss(outputs, targets)
        capture.check_parameters(losses)
        if not every_layer and all(_plain(layer) for layer in capture.layers.values()):
            return
    with fixed_randomness(model, 0), away_from_constants(model), Capture(model) as capture:
        losses = loss(model(*inputs), targets)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        theirs: Sequence[Tensor | None] = (None,) * len(trained)
        if losses.requires_grad:
            theirs = torch.autograd.grad(
                losses.sum(), list(trained.values()), retain_graph=True, allow_unused=True
            )
        ours = {}
        for layer in capture.gradients(losses).values():
            each = torch.ones(len(targets), dtype=torch.float64, device=losses.device)
            ours.update(layer.weighted_sum(each))
    _compare(trained, theirs, ours)


def _plain(layer: nn.Module) -> bool:
    """Whether a layer does what its type says."""
    return type(layer) in OWN and not layer._forward_pre_hooks and "forward" not in vars(layer)


def _compare(
    trained: dict[str, nn.Parameter],
    theirs: Sequence[Tensor | None],
    ours: dict[Tensor, Tensor],
) -> None:
    known = [gradient for gradient in theirs if gradient is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in known):
        return  # a record that is not finite: it adds nothing in training either
    largest = max((float(g.abs().amax()) for g in known if g.numel()), default=0.0)
    for (name, parameter), expected in zip(trained.items(), theirs, strict=True):
        zero = torch.zeros_like(parameter)
        expected = zero if expected is None else expected
        found = ours.get(parameter, zero)
        close = CLOSE.get(parameter.dtype, HALF)
        size = float(expected.abs().amax()) if expected.numel() else 0.0
        tolerance = 10 * close * size + close * (0.1 if close < HALF else 1.0) * largest
        if not torch.allclose(found.double(), expected.double(), rtol=0, atol=tolerance):
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


def _detached(outputs: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)
