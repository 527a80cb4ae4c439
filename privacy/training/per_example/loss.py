"""The user's loss as one number an example."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves, tree_map

Loss = Callable[[Any, Tensor], Tensor]

# torch's own losses that, unreduced, treat each example alone, and the functions behind them.
_ELEMENTWISE = frozenset(
    {
        *(nn.L1Loss, F.l1_loss),
        *(nn.MSELoss, F.mse_loss),
        *(nn.SmoothL1Loss, F.smooth_l1_loss),
        *(nn.HuberLoss, F.huber_loss),
        *(nn.BCELoss, F.binary_cross_entropy),
        *(nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits),
        *(nn.KLDivLoss, F.kl_div),
        *(nn.PoissonNLLLoss, F.poisson_nll_loss),
        *(nn.SoftMarginLoss, F.soft_margin_loss),
        *(nn.HingeEmbeddingLoss, F.hinge_embedding_loss),
    }
)
_BY_CLASS = frozenset({nn.CrossEntropyLoss, F.cross_entropy, nn.NLLLoss, F.nll_loss})
_TORCHS: frozenset[object] = (
    _ELEMENTWISE
    | _BY_CLASS
    | {
        *(nn.MultiMarginLoss, F.multi_margin_loss),
        *(nn.MultiLabelMarginLoss, F.multilabel_margin_loss),
        *(nn.MultiLabelSoftMarginLoss, F.multilabel_soft_margin_loss),
    }
)


class ExampleLoss:
    """A loss with one value an example, which depends on no other example.

    A mean over the batch would tie every example's gradient to the batch's size or sum of class
    weights, and clipping one example would not bound its influence. So torch's own losses are
    called once for the batch, with ``reduction="none"`` and shapes that cannot be broadcast between
    examples; any other callable with one example at a time, as a batch of one (by
    ``torch.func.vmap`` where that can follow).

    Axes beyond the first are reduced within the example as torch would: a mean leaves out
    ``ignore_index`` and is weighted by its own classes' weights. A callable that has a
    ``reduction`` does that itself.

    Parameters
    ----------
    loss : callable
        A torch loss module or function, or any callable that returns shape (n,).
    one_by_one : bool
        Whether a loss that is not torch's gets one example at a time in any case. ``torch.func``
        may round otherwise, and one malformed example makes it give up for all others.
    """

    def __init__(self, loss: Loss, *, one_by_one: bool = False) -> None:
        self.given = loss
        self._torch_loss, settings = _unwrapped(loss)
        self._unreduced, self._reduction = _without_reduction(loss)
        self._ignored = settings.get("ignore_index", -100)
        self._weight: Tensor | None = settings.get("weight")
        self.is_torchs = self._torch_loss in _TORCHS
        weighted = [settings.get(name) is not None for name in ("weight", "pos_weight")]
        # Elementwise weights may belong to places in the batch, those of classes do not.
        self.is_examplewise = self.is_torchs and (
            self._torch_loss not in _ELEMENTWISE or not any(weighted)
        )
        self._vectorised = not one_by_one

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """The examples' losses, shape (n,)."""
        if self.is_torchs:
            return self.on_batch(outputs, targets)
        if self._vectorised:
            try:
                return self._vmapped(outputs, targets)
            except Exception:  # vmap cannot follow it, or the loop raises the loss's own error
                self._vectorised = False
        return self._one_by_one(outputs, targets, self._of_one)

    def on_batch(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss called once for all examples; refused unless of shape (n,)."""
        if self._torch_loss in _ELEMENTWISE:
            _refuse_broadcast(outputs, targets)
        values: Tensor = self._unreduced(outputs, targets)
        if self._reduction is None or values.dim() <= 1 or len(values) != len(targets):
            return _checked(values, outputs, targets)
        values = values.flatten(1)
        if self._reduction in ("sum", "batchmean"):
            return values.sum(1)
        if self._torch_loss in _BY_CLASS and not targets.is_floating_point():
            weights = self._place_weights(targets, values).flatten(1).sum(1)
            return values.sum(1) / torch.where(weights > 0, weights, 1)
        return values.mean(1)

    def _place_weights(self, targets: Tensor, values: Tensor) -> Tensor:
        """Each place's weight in its example's mean: its class's, 0 for an ignored one."""
        counted: Tensor = targets != self._ignored
        if self._weight is None:
            return counted
        weights: Tensor = self._weight.to(values)
        return weights[torch.where(counted, targets, 0)].mul(counted)

    def one_by_one(self, outputs: Any, targets: Tensor) -> Tensor:
        """``on_batch`` of each example as a batch of one, shape (n,)."""
        return self._one_by_one(outputs, targets, self.on_batch)

    def _one_by_one(self, outputs: Any, targets: Tensor, loss: Loss) -> Tensor:
        rows = range(len(targets))
        _check_first_axes(outputs, len(targets))
        return torch.cat([loss(_row(outputs, row), targets[row : row + 1]) for row in rows])

    def _of_one(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a batch of one, shape (1,): of several places its own mean or sum."""
        if self._reduction in (None, "none"):
            return self.on_batch(outputs, targets)
        values = self._unreduced(outputs, targets)
        if not isinstance(values, Tensor) or values.dim() <= 1:
            return _checked(values, outputs, targets)
        reduced = self.given(outputs, targets)
        if isinstance(reduced, Tensor) and reduced.numel() == 1:
            reduced = reduced.reshape(1)
        return _checked(reduced, outputs, targets)

    def _vmapped(self, outputs: Any, targets: Tensor) -> Tensor:
        def of_one(output: Any, target: Tensor) -> Tensor:
            return self._of_one(tree_map(lambda leaf: leaf[None], output), target[None])[0]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            values: Tensor = torch.func.vmap(of_one, randomness="different")(outputs, targets)
        return values


def _row(outputs: Any, row: int) -> Any:
    return tree_map(lambda leaf: leaf[row : row + 1] if isinstance(leaf, Tensor) else leaf, outputs)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in a model's outputs: a tensor, or tuples, lists and dicts of them."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def detached(outputs: Any) -> Any:
    """The outputs without their graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)


def _check_first_axes(outputs: Any, examples: int) -> None:
    tensors = tensors_of(outputs)
    if not tensors:
        raise ValueError(
            f"the model returned a {type(outputs).__name__}: it must return a tensor, or tuples, "
            "lists or dicts of tensors, with the examples on the first axis"
        )
    for tensor in tensors:
        if tensor.shape[:1] != (examples,):
            raise ValueError(
                f"the model returned shape {tuple(tensor.shape)} for {examples} examples: put the "
                "examples on the first axis of every tensor it returns"
            )


def _unwrapped(loss: Loss) -> tuple[object, dict[str, Any]]:
    """Torch's class or function that ``loss`` is, or None, and its settings."""
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial) and not loss.args:
        keywords = {**loss.keywords, **keywords}
        loss = loss.func
    if isinstance(loss, nn.Module):
        untouched = not loss._forward_hooks and not loss._forward_pre_hooks
        settings = {**vars(loss), **loss._buffers}  # weights are buffers
        return (type(loss) if untouched and "forward" not in vars(loss) else None), settings
    try:
        return (loss if loss in _TORCHS else None), keywords
    except TypeError:  # a callable that cannot be hashed
        return None, keywords


def _without_reduction(loss: Loss) -> tuple[Loss, object]:
    """``loss`` called with ``reduction="none"``, and how it reduces; None if it has none."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        reduction: object = loss.reduction
        unreduced: Loss = copy.copy(loss)
        unreduced.reduction = "none"  # type: ignore[attr-defined]
        return unreduced, reduction
    try:
        plain = type(loss) is FunctionType and loss in _TORCHS
        parameter = (_torchs_parameters if plain else _parameters)(loss).get("reduction")
    except (TypeError, ValueError):
        parameter = None
    if parameter is None:
        return loss, None
    default = parameter.default
    reduction = "mean" if default is inspect.Parameter.empty else default
    return functools.partial(loss, reduction="none"), reduction  # type: ignore[call-arg]


def _parameters(function: Loss) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


_torchs_parameters = functools.cache(_parameters)  # a call's set-up is short beside them


def _refuse_broadcast(outputs: Any, targets: Tensor) -> None:
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
    if len(shape) != targets.dim() or shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"the loss compares outputs of shape {shape} with targets of shape "
            f"{tuple(targets.shape)}, which would be broadcast from one example to another: give "
            "targets the outputs' shape (targets.unsqueeze(1) makes (n, 1) of (n,))"
        )


def _checked(losses: Tensor, outputs: Any, targets: Tensor) -> Tensor:
    """Refuse losses that are not one value an example."""
    examples = len(targets)
    if isinstance(losses, Tensor) and losses.shape == (examples,):
        return losses
    returned = (
        f"shape {tuple(losses.shape)}"
        if isinstance(losses, Tensor)
        else f"a {type(losses).__name__}"
    )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(outputs))
    raise ValueError(
        f"loss returned {returned} for {examples} examples (outputs {shapes}, targets "
        f"{tuple(targets.shape)}): it must return one value an example, shape (n,), without "
        "averaging over the batch"
    )
