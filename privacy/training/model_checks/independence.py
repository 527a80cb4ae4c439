"""A trial that shows whether a model keeps its examples apart.

Clipping an example's gradient bounds its influence only if the example's numbers depend on no
other example. The loss keeps examples apart by construction (``_loss``), known layers that mix
them are refused by name (``check``); this is for everything else.

It runs the model on a handful of made-up records and compares what one example gives at every
layer's input, at the outputs and in the loss, and what comes back to every layer: beside other
records, beside others far from these, with other targets, with other values in the others' rows
behind every layer, with padding, missing values and bytes as data sets have them
(``_usual_records``), each alone and in batches of other sizes, and again after others were there.
A model that draws random numbers is tried with ``_SEEDS`` seeds.

Not covered: a model that mixes examples only in batches or for values that were not tried, in few
of its random draws, or through something that training changes later.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.model_state import (
    BATCH,
    OTHER_SIZE,
    away_from_constants,
    closeness,
    evaluating,
    largest_of,
    same_numbers,
)
from privacy.training.model_checks.traces import NOBODY, Numbers, Others, Passes
from privacy.training.model_checks.trial_records import Contrast, contrasts, is_number, unusual
from privacy.training.per_example.loss import ExampleLoss

# Rows 0 and 3 of five stay while the others are exchanged: whatever a model shifts, flips or
# shuffles by, one of them meets a row that was exchanged.
_KEPT = slice(0, 4, 3)
_EXCHANGED = (1, 2, 4)
# In batches of other sizes other kernels round otherwise, and where that carries a number over a
# kink, another gradient comes back: each alone is compared in the forward pass only.
_PARTS = ((0,), (0, 1), (0, 1, 2, 3))
_ALONE = ((1,), (2,), (3,), (4,))
_SEEDS = 20
# What comes back to a layer, next to the largest that does to any, may be rounding alone.
_ROUNDING = 1e-6

_Exchange = Callable[[Tensor], Tensor]


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
    *inputs, targets = batch
    with away_from_constants(model), Passes.over(model, loss) as passes:
        whole = _check_beside_others(passes, inputs, targets)
        if whole is not None:
            _check_sizes(passes, whole, inputs, targets)
            return
        with evaluating(model):
            whole = passes(inputs, targets)
            if _differing(whole, passes(inputs, targets, seed=1), slice(None)) is None:
                _check_sizes(passes, whole, inputs, targets)


def _check_beside_others(
    passes: Passes, inputs: Sequence[Tensor], targets: Tensor
) -> Numbers | None:
    """Compare in batches of one size; what the batch gives, where no draw changes it."""
    before = [passes(inputs, targets)]
    drew = before[0].drew
    before.append(passes(inputs, targets, seed=1) if drew else before[0])
    exchanges: list[tuple[int, _Exchange]] = [(0, _rolled), (0, _moved), (1, _opposite)]
    if not drew and not any(is_number(one) for one in (*inputs, targets)):
        exchanges = exchanges[:1]  # the others would be the same
    taken: list[_Exchange] = []
    others = Others(_EXCHANGED, -2.0)
    for seed, exchange in exchanges:
        changed = [exchange(one) for one in inputs], exchange(targets)
        if exchange is _rolled:
            after: Numbers | None = passes(*changed, seed=seed, others=others)
        else:
            after = _where_taken(passes, *changed, seed=seed, others=others)
        if after is not None:
            taken.append(exchange)
            _hold_apart(before[seed], after, _KEPT)
    for seed, factor in ((0, 3.0), (1, -3.0)):
        disturbed = Others(_EXCHANGED, factor, disturbed=True)
        after = passes(inputs, targets, seed=seed, others=disturbed)
        _hold_apart(before[seed], after, _KEPT)
    _check_usual(passes, before[0], inputs)
    again = passes(inputs, targets)
    _hold_apart(before[0], again, slice(None))
    steady = not drew or _differing(before[0], before[1], slice(None)) is None
    if drew:
        for seed in range(2, _SEEDS):
            one = passes(inputs, targets, seed=seed)
            exchange = taken[seed % len(taken)]
            changed = [exchange(each) for each in inputs], exchange(targets)
            other = passes(*changed, seed=seed, others=others)
            _hold_apart(one, other, _KEPT)
            steady = steady and _differing(before[0], one, slice(None)) is None
    return again if steady else None


def _check_usual(passes: Passes, before: Numbers, inputs: Sequence[Tensor]) -> None:
    """Compare beside, and with, what records of data have and drawn numbers do not.

    The loss has no part: it is asked one example at a time.
    """
    for missing in (True, False):
        others = Others(_EXCHANGED, -2.0)
        changed = [unusual(one, _EXCHANGED, missing=missing) for one in inputs]
        after = _where_taken(passes, changed, None, others=others)
        if after is not None:
            _hold_apart(before.without_loss(), after, _KEPT)
            break
    taken = sum(values[0].numel() for _, values in before.places)
    for choices in contrasts(inputs, taken=taken, tables=passes.tables):
        for contrast in choices:
            if _check_contrast(passes, contrast):
                break


def _check_contrast(passes: Passes, contrast: Contrast) -> bool:
    """Compare what is kept; whether the model took one batch and another."""
    took = False
    one = _where_taken(passes, contrast.inputs, None, backward=contrast.backward)
    for batch in contrast.others if one is not None else ():
        exchanged = [row for row in range(len(batch.inputs[0])) if row not in batch.kept]
        other = _where_taken(
            passes,
            batch.inputs,
            None,
            others=Others(exchanged, -2.0),
            backward=contrast.backward,
        )
        if one is not None and other is not None:
            _hold_apart(one, other, batch.kept, missing=True)
            took = True
    return took


def _where_taken(
    passes: Passes,
    inputs: Sequence[Tensor],
    targets: Tensor | None,
    *,
    seed: int = 0,
    others: Others = NOBODY,
    backward: bool = True,
) -> Numbers | None:
    """Nothing, where the model or the loss does not take such values."""
    try:
        return passes(inputs, targets, seed=seed, others=others, backward=backward)
    except (GradientError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return None


def _check_sizes(passes: Passes, whole: Numbers, inputs: Sequence[Tensor], targets: Tensor) -> None:
    for rows in (*_PARTS, *_ALONE):
        places, backward = list(rows), rows in _PARTS
        records = [one[places] for one in inputs], targets[places]
        try:
            part = passes(*records, places=places, backward=backward)
        except GradientError:
            raise
        except Exception as error:
            raise GradientError(
                f"model and loss take {BATCH} examples at once but not {len(rows)} ({error}): "
                "batches come in every size; keep the first axis, for instance squeeze(1) for "
                "squeeze()"
            ) from error
        same = whole.only(places)
        _hold_apart(same if backward else same.forward(), part, slice(None), OTHER_SIZE)


def _hold_apart(
    one: Numbers,
    other: Numbers,
    rows: slice | Sequence[int],
    slack: float = 1.0,
    *,
    missing: bool = False,
) -> None:
    where = _differing(one, other, rows, slack, missing=missing)
    if where is not None:
        raise GradientError(
            f"examples meet {where}: what one example gives depends on others in its "
            "batch or on those before, so clipping would not bound its influence; keep examples "
            "apart, on the first axis"
        )


def _differing(
    one: Numbers,
    other: Numbers,
    rows: slice | Sequence[int],
    slack: float = 1.0,
    *,
    missing: bool = False,
) -> str | None:
    """The first place where the rows' numbers differ; ``missing`` ones are equal to each other."""
    close = 0.0  # of the coarsest precision that a number has come through
    for mine, theirs in zip_longest(one.places, other.places):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"before {(mine or theirs)[0]}"
        values = mine[1][rows], theirs[1][rows]
        close = max(close, closeness(values[0]))
        if not same_numbers(*values, slack, close=close, missing=missing):
            return f"before {mine[0]}"
    least = _ROUNDING * max((largest_of(back[rows]) for _, back in one.backprops), default=0.0)
    for mine, theirs in zip_longest(one.backprops, other.backprops):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"in the backward pass behind {(mine or theirs)[0]}"
        values = mine[1][rows], theirs[1][rows]
        if not same_numbers(*values, slack, least, close=close, missing=missing):
            return f"in the backward pass behind {mine[0]}"
    return None


def _rolled(one: Tensor) -> Tensor:
    """Other records, which every model and loss must take, in the others' places."""
    if not is_number(one) and not _all_equal(one):
        return _exchanged(one, lambda others: (others == 0).to(one.dtype))
    return one[[0, 0, 4, 3, 3]]


def _moved(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: others + 1) if is_number(one) else _rolled(one)


def _opposite(one: Tensor) -> Tensor:
    return _exchanged(one, lambda others: -4 * (others + 1)) if is_number(one) else _rolled(one)


def _all_equal(one: Tensor) -> bool:
    """As integers are where the model takes one only."""
    return bool((one == one.flatten()[:1]).all())


def _exchanged(one: Tensor, change: _Exchange) -> Tensor:
    changed = one.clone()
    changed[list(_EXCHANGED)] = change(one[list(_EXCHANGED)])
    return changed
