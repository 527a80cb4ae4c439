"""From the user's loss to one number an example."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Loss = Callable[[Any, Tensor], Tensor]


def per_example(loss: Loss) -> Loss:
    """Make ``loss`` return one value an example.

    A loss that averages over the batch would tie every example's gradient to the batch it is in
    (by its size, or by the sum of class weights), and clipping one example would not bound its
    influence. Losses with a ``reduction`` are called with ``"none"``; what is left beyond the
    first axis is reduced within the example the way the loss would have done it.

    Parameters
    ----------
    loss : callable
        A torch loss module or function, or any callable that returns shape (n,).

    Returns
    -------
    callable
        Takes the model's outputs and the targets, returns shape (n,).
    """
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        within: object = loss.reduction
        unreduced: Loss = copy.copy(loss)
        unreduced.reduction = "none"  # type: ignore[attr-defined]
    else:
        try:
            parameter = inspect.signature(loss).parameters.get("reduction")
        except (TypeError, ValueError):
            parameter = None
        if parameter is None:
            return loss
        within = "mean" if parameter.default is inspect.Parameter.empty else parameter.default

        def unreduced(outputs: Any, targets: Tensor) -> Tensor:
            return loss(outputs, targets, reduction="none")  # type: ignore[call-arg]

    def reduced(outputs: Any, targets: Tensor) -> Tensor:
        values = unreduced(outputs, targets)
        if values.dim() <= 1:
            return values
        values = values.flatten(1)
        return values.sum(1) if within == "sum" else values.mean(1)

    return reduced


def checked(losses: Tensor, examples: int) -> Tensor:
    """Refuse losses that are not one value an example.

    Raises
    ------
    ValueError
        If the shape is not (examples,).
    """
    if losses.shape != (examples,):
        raise ValueError(
            f"loss returned shape {tuple(losses.shape)} for {examples} examples: it must return "
            "one value an example, shape (n,), without averaging over the batch"
        )
    return losses
