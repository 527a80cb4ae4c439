"""A trial that shows whether a model keeps its examples apart."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ._capture import Capture, GradientError
from ._loss import Loss, checked


def check_apart(model: nn.Module, loss: Loss, record: Sequence[Tensor]) -> None:
    """Run two examples, exchange the second, and see whether the first one's numbers change.

    Clipping an example's gradient bounds its influence only if it appears in no other example's.
    Known layers that mix examples are refused by name; this finds the others: statistics over
    the batch, examples on another axis than the first, losses that look around.

    Parameters
    ----------
    model : nn.Module
        As it will be trained.
    loss : callable
        Returns one value an example.
    record : sequence of Tensor, shape (1, ...)
        One record: its inputs, then its target.

    Raises
    ------
    GradientError
        Names the layer at whose input the examples met.
    """
    *inputs, target = record
    targets = torch.cat([target, target])
    alone, *others = (
        _first_rows(model, loss, [torch.cat([one, beside(one)]) for one in inputs], targets)
        for beside in (_itself, _another, _opposite)
    )
    pairs = chain.from_iterable(zip(alone, other, strict=True) for other in others)
    for (name, one), (_, other) in pairs:
        if one.shape != other.shape or not torch.allclose(
            one, other, rtol=1e-3, atol=1e-4 * float(one.abs().amax()), equal_nan=True
        ):
            raise GradientError(
                f"examples meet before '{name}': what one example gives depends on another in "
                "its batch, so clipping would not bound its influence; keep examples apart, on "
                "the first axis"
            )


def _itself(one: Tensor) -> Tensor:
    return one


def _another(one: Tensor) -> Tensor:
    if one.is_floating_point():
        return one + 1
    return one.amin() + one.amax() - one if one.dtype != torch.bool else ~one


def _opposite(one: Tensor) -> Tensor:
    return -4 * (one + 1) if one.is_floating_point() else _another(one)


def _first_rows(
    model: nn.Module, loss: Loss, inputs: Sequence[Tensor], targets: Tensor
) -> list[tuple[str, Tensor]]:
    """The first example's numbers at every layer's input, and its loss."""
    with torch.random.fork_rng(devices=[]), Capture(model) as capture:
        torch.manual_seed(0)
        losses = checked(loss(model(*inputs), targets), len(targets))
        rows = [(name, seen[:1].double()) for name, seen in capture.take()]
    return [*rows, ("the loss", losses.detach()[:1].double())]
