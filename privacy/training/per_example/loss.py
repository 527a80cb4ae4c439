"""From the user's loss to one number an example."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves, tree_map

Loss = Callable[[Any, Tensor], Tensor]

# torch's own losses that, unreduced, treat each example alone, and the functions behind them.
_ELEMENTWISE = {
    nn.L1Loss: F.l1_loss,
    nn.MSELoss: F.mse_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.KLDivLoss: F.kl_div,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
}
_BY_CLASS = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}
_OTHERS = {
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
}


def _names(table: Mapping[Any, object]) -> frozenset[object]:
    return frozenset((*table, *table.values()))


_ELEMENTWISE_NAMES, _BY_CLASS_NAMES = _names(_ELEMENTWISE), _names(_BY_CLASS)
_OWN_NAMES = _ELEMENTWISE_NAMES | _BY_CLASS_NAMES | _names(_OTHERS)


class ExampleLoss:
    """What ``per_example`` returns.

    Parameters
    ----------
    loss : callable
        What the user gave.
    """

    def __init__(self, loss: Loss) -> None:
        self.given = loss
        self._plain, keywords = _unwrapped(loss)
        self._unreduced, self._within = _without_reduction(loss)
        self._ignored = keywords.get("ignore_index", -100)
        self._weight: Tensor | None = keywords.get("weight")
        self.is_torchs = self._plain in _OWN_NAMES
        weighted = [keywords.get(name) is not None for name in ("weight", "pos_weight")]
        # Elementwise weights may belong to places in the batch, those of classes do not.
        self.is_known_apart = self.is_torchs and (
            self._plain not in _ELEMENTWISE_NAMES or not any(weighted)
        )
        self._vectorised = True

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """The examples' losses, shape (n,)."""
        if self.is_torchs:
            return self.together(outputs, targets)
        if self._vectorised:
            try:
                return self._vmapped(outputs, targets)
            except Exception:  # whatever vmap cannot follow: the loop below tells real errors
                self._vectorised = False
        return self._each(outputs, targets, self._of_one)

    def together(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss as it was given, called once for all examples, shape (n,) or refused."""
        if self._plain in _ELEMENTWISE_NAMES:
            _refuse_broadcast(outputs, targets)
        values: Tensor = self._unreduced(outputs, targets)
        if self._within is None or values.dim() <= 1:
            return checked(values, outputs, targets)
        if len(values) != len(targets):
            return checked(values, outputs, targets)
        values = values.flatten(1)
        if self._within in ("sum", "batchmean"):
            return values.sum(1)
        if self._plain in _BY_CLASS_NAMES and not targets.is_floating_point():
            counted = self._shares(targets, values).flatten(1).sum(1)
            return values.sum(1) / torch.where(counted > 0, counted, 1)
        return values.mean(1)

    def _shares(self, targets: Tensor, values: Tensor) -> Tensor:
        """What each place counts for in its example's mean: its class's weight, ignored ones 0."""
        kept: Tensor = targets != self._ignored
        if self._weight is None:
            return kept
        weights: Tensor = self._weight.to(values)
        return weights[torch.where(kept, targets, 0)].mul(kept)

    def alone(self, outputs: Any, targets: Tensor) -> Tensor:
        """What ``together`` gives each example as a batch of one, shape (n,)."""
        return self._each(outputs, targets, self.together)

    def _each(self, outputs: Any, targets: Tensor, one: Loss) -> Tensor:
        rows = range(len(targets))
        _check_first_axes(outputs, len(targets))
        return torch.cat([one(_row(outputs, row), targets[row : row + 1]) for row in rows])

    def _of_one(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of a batch of one, shape (1,): of several places its own mean or sum."""
        if self._within in (None, "none"):
            return self.together(outputs, targets)
        values = self._unreduced(outputs, targets)
        if not isinstance(values, Tensor) or values.dim() <= 1:
            return checked(values, outputs, targets)
        reduced = self.given(outputs, targets)
        if isinstance(reduced, Tensor) and reduced.numel() == 1:
            reduced = reduced.reshape(1)
        return checked(reduced, outputs, targets)

    def _vmapped(self, outputs: Any, targets: Tensor) -> Tensor:
        def one(output: Any, target: Tensor) -> Tensor:
            return self._of_one(_as_batch(output), target[None])[0]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            values: Tensor = torch.func.vmap(one, randomness="different")(outputs, targets)
        return values


def per_example(loss: Loss) -> ExampleLoss:
    """Make ``loss`` return one value an example, in which no other example has a part.

    torch's own losses are called once for the batch, with ``reduction="none"`` and shapes that
    cannot be broadcast from one example to another. Any other callable is called with one example
    at a time, as a batch of one (by ``torch.func.vmap`` where that can follow): whatever it
    computes, it has no other example's outputs or targets to compute it from.

    A loss that averages over the batch would tie every example's gradient to the batch it is in
    (by its size, or by the sum of class weights), and clipping one example would not bound its
    influence. What is left beyond the first axis is reduced within the example the way torch
    would have done it: a mean leaves out ``ignore_index`` and is
    weighted by its own classes' weights. A callable that has a ``reduction`` does that itself.

    Parameters
    ----------
    loss : callable
        A torch loss module or function, or any callable that returns shape (n,).

    Returns
    -------
    ExampleLoss
        Takes the model's outputs and the targets, returns shape (n,).
    """
    return ExampleLoss(loss)


def _row(outputs: Any, row: int) -> Any:
    return tree_map(lambda leaf: _sliced(leaf, row), outputs)


def _sliced(leaf: Any, row: int) -> Any:
    return leaf[row : row + 1] if isinstance(leaf, Tensor) else leaf


def _as_batch(output: Any) -> Any:
    return tree_map(lambda leaf: leaf[None], output)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in what a model returned: a tensor, or tuples, lists and dicts of them."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def detached(outputs: Any) -> Any:
    """The same without their history."""
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
    """The class or function of torch's behind ``loss``, if that is what it is, and its settings."""
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial) and not loss.args:
        keywords = {**loss.keywords, **keywords}
        loss = loss.func
    if isinstance(loss, nn.Module):
        untouched = not loss._forward_hooks and not loss._forward_pre_hooks
        settings = {**vars(loss), **loss._buffers}  # weights are buffers
        return (type(loss) if untouched and "forward" not in vars(loss) else None), settings
    try:
        return (loss if loss in _OWN_NAMES else None), keywords
    except TypeError:  # a callable that cannot be hashed
        return None, keywords


def _without_reduction(loss: Loss) -> tuple[Loss, object]:
    """``loss`` called with ``reduction="none"``, and how it reduces; None if it has none."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        within: object = loss.reduction
        unreduced: Loss = copy.copy(loss)
        unreduced.reduction = "none"  # type: ignore[attr-defined]
        return unreduced, within
    try:
        parameter = inspect.signature(loss).parameters.get("reduction")
    except (TypeError, ValueError):
        parameter = None
    if parameter is None:
        return loss, None

    def called(outputs: Any, targets: Tensor) -> Tensor:
        return loss(outputs, targets, reduction="none")  # type: ignore[call-arg]

    default = parameter.default
    return called, "mean" if default is inspect.Parameter.empty else default


def _refuse_broadcast(outputs: Any, targets: Tensor) -> None:
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
    if len(shape) != targets.dim() or shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"the loss compares outputs of shape {shape} with targets of shape "
            f"{tuple(targets.shape)}, which would be broadcast from one example to another: give "
            "targets the outputs' shape (targets.unsqueeze(1) makes (n, 1) of (n,))"
        )


def checked(losses: Tensor, outputs: Any, targets: Tensor) -> Tensor:
    """Refuse losses that are not one value an example.

    Raises
    ------
    ValueError
        If the shape is not (examples,).
    """
    examples = len(targets)
    if not isinstance(losses, Tensor) or losses.shape != (examples,):
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
    return losses
