"""A trial that shows whether a model keeps its examples apart.

Clipping an example's gradient bounds its influence only if the example's numbers depend on no
other example. The loss keeps examples apart by construction (``_loss``), known layers that mix
them are refused by name (``check``); this is for everything else.

It runs the model on a handful of made-up records and compares what one example gives at every
layer's input, at the outputs and in the loss, and what comes back to every layer: beside other
records, beside others far from these, with other targets, with other values in the others' rows
behind every layer, in batches of other sizes, and again after others were there. A model that
draws random numbers is tried with ``_SEEDS`` seeds.

Not covered: a model that mixes examples only in batches or for values that were not tried, in few
of its random draws, or through something that training changes later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ._capture import Capture, GradientError, one_for_all
from ._loss import ExampleLoss, detached, tensors_of
from ._trial import (
    BATCH,
    OTHER_SIZE,
    away_from_constants,
    evaluating,
    fixed_randomness,
    largest_of,
    same_numbers,
)

# Rows 0 and 3 of five stay while the others are exchanged: whatever a model shifts, flips or
# shuffles by, one of them meets a row that was exchanged.
_KEPT = slice(0, 4, 3)
_EXCHANGED = (1, 2, 4)
_SIZES = (1, 2, 4)
_SEEDS = 20
# What comes back to a layer, next to the largest that does to any, may be rounding alone.
_ROUNDING = 1e-6

_Exchange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Numbers:
    """What a trial gave: (where, values with the examples first), and whether it drew numbers."""

    places: list[tuple[str, Tensor]]
    backprops: list[tuple[str, Tensor]]
    drew: bool


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
        Records that were made up: inputs, then targets.

    Raises
    ------
    GradientError
        Names the layer at whose input the examples met.
    """
    with away_from_constants(model):
        if _check_beside_others(model, loss, batch):
            _check_sizes(model, loss, batch)
            return
        with evaluating(model):
            if _steady(model, loss, batch):
                _check_sizes(model, loss, batch)


def _check_beside_others(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> bool:
    """Compare in batches of one size; whether random draws change nothing that was seen."""
    before = {seed: _run(model, loss, batch, seed) for seed in (0, 1)}
    exchanges: list[tuple[int, _Exchange]] = [(0, _rolled), (0, _moved), (1, _opposite)]
    taken: list[_Exchange] = []
    for seed, exchange in exchanges:
        try:
            after = _run(model, loss, [exchange(one) for one in batch], seed, others=-2.0)
        except GradientError:
            raise
        except Exception:
            if exchange is _rolled:
                raise
            continue  # values that the model or the loss does not take
        taken.append(exchange)
        _hold_apart(before[seed], after, _KEPT)
    for seed, factor in ((0, 3.0), (1, -3.0)):
        after = _run(model, loss, batch, seed, others=factor, disturb=factor)
        _hold_apart(before[seed], after, _KEPT)
    _hold_apart(before[0], _run(model, loss, batch, 0), slice(None))
    steady = _differing(before[0], before[1], slice(None)) is None
    if any(each.drew for each in before.values()):
        for seed in range(2, _SEEDS):
            one = _run(model, loss, batch, seed)
            exchange = taken[seed % len(taken)]
            other = _run(model, loss, [exchange(each) for each in batch], seed, others=-2.0)
            _hold_apart(one, other, _KEPT)
            steady = steady and _differing(before[0], one, slice(None)) is None
    return steady


def _steady(model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]) -> bool:
    one, other = (_run(model, loss, batch, seed) for seed in (0, 1))
    return _differing(one, other, slice(None)) is None


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
        _hold_apart(whole, part, slice(size), OTHER_SIZE)


def _hold_apart(one: _Numbers, other: _Numbers, rows: slice, slack: float = 1.0) -> None:
    where = _differing(one, other, rows, slack)
    if where is not None:
        raise GradientError(
            f"examples meet {where}: what one example gives depends on others in its "
            "batch or on those before, so clipping would not bound its influence; keep examples "
            "apart, on the first axis"
        )


def _differing(one: _Numbers, other: _Numbers, rows: slice, slack: float = 1.0) -> str | None:
    """The first place where the rows' numbers differ."""
    for mine, theirs in zip_longest(one.places, other.places):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"before {(mine or theirs)[0]}"
        if not same_numbers(mine[1][rows], theirs[1][rows], slack):
            return f"before {mine[0]}"
    least = _ROUNDING * max((largest_of(back) for _, back in one.backprops), default=0.0)
    for mine, theirs in zip_longest(one.backprops, other.backprops):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"in the backward pass behind {(mine or theirs)[0]}"
        if not same_numbers(mine[1][rows], theirs[1][rows], slack, least):
            return f"in the backward pass behind {mine[0]}"
    return None


def _run(
    model: nn.Module,
    loss: ExampleLoss,
    batch: Sequence[Tensor],
    seed: int,
    *,
    others: float = 1.0,
    disturb: float | None = None,
) -> _Numbers:
    """Both passes over a batch; the gradients at the others' outputs are times ``others``."""
    *inputs, targets = batch
    handles = []
    with fixed_randomness(model, seed) as draws, Capture(model) as capture:
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
        losses = loss(detached(outputs), targets)
        found = tensors_of(outputs)
        _check_first_axis([("the outputs", each) for each in found], len(targets))
        trained = [each for each in found if each.requires_grad]
        cotangents = [_cotangent(each, others) for each in trained]
        seen, back = capture.take_with_backprops(trained, cotangents)
    places = [(f"'{name}'", values) for name, values in seen]
    backprops = [(f"'{name}'", values) for name, values in back]
    _check_first_axis(places + backprops, len(targets))
    places += [("the outputs", values.detach()) for values in found]
    return _Numbers([*places, ("the loss", losses)], backprops, draws.happened)


def _check_first_axis(places: Sequence[tuple[str, Tensor]], examples: int) -> None:
    for where, values in places:
        if values.shape[:1] != (examples,):
            raise GradientError(
                f"{where} has shape {tuple(values.shape)} for {examples} examples: put the "
                f"examples on the first axis{one_for_all(values)}"
            )


def _cotangent(output: Tensor, others: float) -> Tensor:
    """Gradients at an output, made up: those of a loss may be nothing but rounding."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn((BATCH, *output.shape[1:]), generator=generator)
    drawn[list(_EXCHANGED)] *= others
    return drawn[: len(output)].to(output)


def _disturb(layer: nn.Module, inputs: tuple[Any, ...], output: Any, *, factor: float) -> Any:
    """Give the rows to be exchanged other values behind this layer."""
    if not isinstance(output, Tensor) or output.shape[:1] != (BATCH,):
        return output
    changed = output.clone()
    for row in _EXCHANGED:
        changed[row] = 1 + row + factor * output[row]
    return changed


def _rolled(one: Tensor) -> Tensor:
    """Other records, which every model and loss must take, in the others' places."""
    if not _is_number(one) and not _all_equal(one):
        return _exchanged(one, lambda others: (others == 0).to(one.dtype))
    return one[[0, 0, 4, 3, 3]]


def _moved(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: others + 1) if _is_number(one) else _rolled(one)


def _opposite(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: -4 * (others + 1)) if _is_number(one) else _rolled(one)


def _is_number(one: Tensor) -> bool:
    """To compute with, and no index or class."""
    return one.is_floating_point() or one.is_complex()


def _all_equal(one: Tensor) -> bool:
    """As integers are where the model takes one only."""
    return bool((one == one.flatten()[:1]).all())


def _exchanged(one: Tensor, change: _Exchange) -> Tensor:
    changed = one.clone()
    changed[list(_EXCHANGED)] = change(one[list(_EXCHANGED)])
    return changed
