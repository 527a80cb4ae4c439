"""A trial that shows whether a model keeps its examples apart.

Clipping an example's gradient bounds its influence only if the example's numbers depend on no
other example. The loss keeps examples apart by construction (``_loss``), known layers that mix
them are refused by name (``check``); this is for everything else.

It runs the model on a handful of records and compares what one example gives at every layer's
input, at the outputs and in the loss: beside other records, beside others far from these, with
other targets, with other values in the others' rows behind every layer, in batches of other
sizes, and again after others were there.

Not covered: a model that mixes examples only in batches or for values that were not tried, or
through something that training changes later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from ._capture import Capture, GradientError
from ._loss import ExampleLoss, tensors_of
from ._trial import (
    BATCH,
    OTHER_SIZE,
    away_from_constants,
    evaluating,
    fixed_randomness,
    same_numbers,
)

# Rows 0 and 3 of five stay while the others are exchanged: whatever a model shifts, flips or
# shuffles by, one of them meets a row that was exchanged.
_KEPT = (0, 3)
_EXCHANGED = tuple(row for row in range(BATCH) if row not in _KEPT)
_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class _Numbers:
    """What a forward pass gave: (where, values with the examples first), and the losses."""

    places: list[tuple[str, Tensor]]


def check_example_independence(
    model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]
) -> None:
    """Refuse a model in which what one example gives depends on another.

    Parameters
    ----------
    model : nn.Module
        As it will be trained.
    loss : ExampleLoss
        The user's, an example at a time.
    batch : sequence of Tensor, shape (5, ...)
        Records: inputs, then targets.

    Raises
    ------
    GradientError
        Names the layer at whose input the examples met.
    """
    with away_from_constants(model):
        if not _check_beside_others(model, loss, batch):
            with evaluating(model):
                if not _steady(model, loss, batch):
                    return
                _check_sizes(model, loss, batch)
        else:
            _check_sizes(model, loss, batch)


def _check_beside_others(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> bool:
    """Compare in batches of one size; whether the model draws no random numbers."""
    before = {seed: _run(model, loss, batch, seed) for seed in (0, 1)}
    exchanges: list[tuple[int, Callable[[Tensor], Tensor]]] = [
        (0, _others_rolled),
        (0, _others_moved),
        (1, _others_opposite),
    ]
    for seed, exchange in exchanges:
        try:
            after = _run(model, loss, [exchange(one) for one in batch], seed)
        except GradientError:
            raise
        except Exception:
            if exchange is _others_rolled:
                raise
            continue  # the values that were made up are none the model or the loss takes
        _hold_apart(before[seed], after, _KEPT)
    for seed, factor in ((0, 3.0), (1, -3.0)):
        _hold_apart(before[seed], _run(model, loss, batch, seed, disturb=factor), _KEPT)
    _hold_apart(before[0], _run(model, loss, batch, 0), range(BATCH))
    return _differing(before[0], before[1], range(BATCH), 1.0) is None


def _steady(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> bool:
    one, other = (_run(model, loss, batch, seed) for seed in (0, 1))
    return _differing(one, other, range(BATCH), 1.0) is None


def _check_sizes(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> None:
    whole = _run(model, loss, batch, 0)
    for size in _SIZES:
        try:
            part = _run(model, loss, [one[:size] for one in batch], 0)
        except GradientError:
            raise
        except Exception as error:
            raise GradientError(
                f"model and loss take {BATCH} examples at once but not {size} ({error}): batches "
                "come in every size; keep the first axis, for instance squeeze(1) for squeeze()"
            ) from error
        _hold_apart(whole, part, range(size), OTHER_SIZE)


def _hold_apart(one: _Numbers, other: _Numbers, rows: Sequence[int], slack: float = 1.0) -> None:
    where = _differing(one, other, rows, slack)
    if where is not None:
        raise GradientError(
            f"examples meet before {where}: what one example gives depends on others in its "
            "batch or on those before, so clipping would not bound its influence; keep examples "
            "apart, on the first axis"
        )


def _differing(one: _Numbers, other: _Numbers, rows: Sequence[int], slack: float) -> str | None:
    """The first place where the rows' numbers differ."""
    for mine, theirs in zip_longest(one.places, other.places):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return (mine or theirs)[0]
        kept = list(rows)
        if not same_numbers(mine[1][kept], theirs[1][kept], slack):
            return mine[0]
    return None


def _run(
    model: nn.Module,
    loss: ExampleLoss,
    batch: Sequence[Tensor],
    seed: int,
    *,
    disturb: float | None = None,
) -> _Numbers:
    *inputs, targets = batch
    handles = []
    with fixed_randomness(model, seed), Capture(model) as capture:
        if disturb is not None:
            frozen = [m for m in model.modules() if isinstance(m, nn.Embedding)]
            layers = dict.fromkeys((*capture.layers.values(), *frozen))
            handles = [
                layer.register_forward_hook(partial(_disturb, factor=disturb)) for layer in layers
            ]
        try:
            outputs = model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        losses = loss(outputs, targets)
        seen = capture.take()
    places = [(f"'{name}'", values) for name, values in seen]
    places += [("the outputs", values.detach()) for values in tensors_of(outputs)]
    for where, values in places:
        if values.shape[:1] != (len(targets),):
            raise GradientError(
                f"{where} has shape {tuple(values.shape)} for {len(targets)} examples: put the "
                "examples on the first axis"
            )
    return _Numbers([*places, ("the loss", losses.detach())])


def _disturb(layer: nn.Module, inputs: tuple[Any, ...], output: Any, *, factor: float) -> Any:
    """Give the rows to be exchanged other values behind this layer."""
    if not isinstance(output, Tensor) or output.shape[:1] != (BATCH,):
        return output
    changed = output.clone()
    for row in _EXCHANGED:
        changed[row] = 1 + row + factor * output[row]
    return changed


def _others_rolled(one: Tensor) -> Tensor:
    """Other records, which every model and loss must take, in the others' places."""
    places = list(range(BATCH))
    for row, other in zip(_EXCHANGED, (_KEPT[0], _EXCHANGED[2], _KEPT[1]), strict=True):
        places[row] = other
    return one[places]


def _others_moved(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: others + 1)


def _others_opposite(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: -4 * (others + 1))


def _exchanged(one: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Made up if they are numbers to compute with; of indices only those in the data are safe."""
    changed = _others_rolled(one).clone()
    if one.is_floating_point():
        changed[list(_EXCHANGED)] = change(one[list(_EXCHANGED)])
    return changed
