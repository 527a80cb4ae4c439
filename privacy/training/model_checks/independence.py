"""A trial of whether a model keeps its examples apart.

Clipping an example's gradient bounds its influence only if the example's numbers depend on no
other example. The loss keeps examples apart by construction (``per_example.loss``), known layers
that mix them are refused by name (``check``); this trial is for everything else.

It runs the model on five made-up records and compares one example's numbers at every layer's
input, at the outputs, in the loss and at every layer in the backward pass, while the others'
records, targets and layer outputs change, with padding, missing values and bytes as data sets have
them (``trial_records``), alone and in batches of other sizes, and again after others were there. A
model that draws random numbers is tried with ``_SEEDS`` seeds.

**Not covered.** A model that mixes examples only in batches or for values that were not tried, in
few of its random draws, or through something that training changes later.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.model_state import away_from_constants, evaluating
from privacy.training.model_checks.traces import (
    UNPERTURBED,
    Perturbation,
    Trace,
    TracedModel,
    first_difference,
)
from privacy.training.model_checks.trial_records import (
    BATCH,
    Comparison,
    comparisons,
    is_number,
    unusual,
)
from privacy.training.per_example.loss import ExampleLoss

# Rows 0 and 3 of five stay while the others are exchanged: whatever a model shifts, flips or
# shuffles by, one of them gets values of an exchanged row.
_UNCHANGED = slice(0, 4, 3)
_EXCHANGED = (1, 2, 4)
# Kernels round otherwise in batches of other sizes, and a number that rounding carries over a kink
# has another gradient: each alone is compared in the forward pass only.
_PARTS = ((0,), (0, 1), (0, 1, 2, 3))
_ALONE = ((1,), (2,), (3,), (4,))
_OTHER_SIZE_SLACK = 10.0
_SEEDS = 20

_Exchange = Callable[[Tensor], Tensor]


def check_example_independence(
    model: nn.Module, loss: ExampleLoss, batch: Sequence[Tensor]
) -> None:
    """Refuse, naming the layer, a model in which one example's numbers depend on another.

    ``batch`` holds made-up records: inputs, then targets, each of shape (5, ...).
    """
    *inputs, targets = batch
    with away_from_constants(model), TracedModel.tracing(model, loss) as traced:
        whole = _check_beside_others(traced, inputs, targets)
        if whole is not None:
            _check_sizes(traced, whole, inputs, targets)
            return
        with evaluating(model):
            whole = traced(inputs, targets)
            if first_difference(whole, traced(inputs, targets, seed=1)) is None:
                _check_sizes(traced, whole, inputs, targets)


def _check_beside_others(
    traced: TracedModel, inputs: Sequence[Tensor], targets: Tensor
) -> Trace | None:
    """Compare in batches of one size; the batch's trace, if no random draw changes it."""
    before = [traced(inputs, targets)]
    drew = before[0].drew
    before.append(traced(inputs, targets, seed=1) if drew else before[0])
    exchanges: list[tuple[int, _Exchange]] = [(0, _rolled), (0, _moved), (1, _opposite)]
    if not drew and not any(is_number(each) for each in (*inputs, targets)):
        exchanges = exchanges[:1]  # the others would be the same
    accepted: list[_Exchange] = []
    perturbed = Perturbation(_EXCHANGED, -2.0)
    for seed, exchange in exchanges:
        changed = [exchange(each) for each in inputs], exchange(targets)
        if exchange is _rolled:
            after: Trace | None = traced(*changed, seed=seed, perturbed=perturbed)
        else:
            after = _if_accepted(traced, *changed, seed=seed, perturbed=perturbed)
        if after is not None:
            accepted.append(exchange)
            _compare(before[seed], after, _UNCHANGED)
    for seed, factor in ((0, 3.0), (1, -3.0)):
        behind_layers = Perturbation(_EXCHANGED, factor, layer_outputs=True)
        after = traced(inputs, targets, seed=seed, perturbed=behind_layers)
        _compare(before[seed], after, _UNCHANGED)
    _check_unusual(traced, before[0], inputs)
    again = traced(inputs, targets)
    _compare(before[0], again)
    steady = not drew or first_difference(before[0], before[1]) is None
    if drew:
        for seed in range(2, _SEEDS):
            one = traced(inputs, targets, seed=seed)
            exchange = accepted[seed % len(accepted)]
            changed = [exchange(each) for each in inputs], exchange(targets)
            other = traced(*changed, seed=seed, perturbed=perturbed)
            _compare(one, other, _UNCHANGED)
            steady = steady and first_difference(before[0], one) is None
    return again if steady else None


def _check_unusual(traced: TracedModel, before: Trace, inputs: Sequence[Tensor]) -> None:
    """Compare beside, and with, values as data sets have them, in the model alone."""
    for missing in (True, False):
        changed = [unusual(each, _EXCHANGED, missing=missing) for each in inputs]
        after = _if_accepted(traced, changed, None, perturbed=Perturbation(_EXCHANGED, -2.0))
        if after is not None:
            _compare(before.without_loss(), after, _UNCHANGED)
            break
    numbers = sum(values[0].numel() for _, values in before.forward)
    for alternatives in comparisons(inputs, layer_numbers=numbers, tables=traced.tables):
        for comparison in alternatives:
            if _check_comparison(traced, comparison):
                break


def _check_comparison(traced: TracedModel, comparison: Comparison) -> bool:
    """Compare the unchanged rows; whether the model accepts both of two batches."""
    accepted = False
    backward = comparison.backward
    one = _if_accepted(traced, comparison.inputs, None, backward=backward)
    for batch in comparison.others if one is not None else ():
        exchanged = [row for row in range(len(batch.inputs[0])) if row not in batch.unchanged]
        perturbed = Perturbation(exchanged, -2.0)
        other = _if_accepted(traced, batch.inputs, None, perturbed=perturbed, backward=backward)
        if one is not None and other is not None:
            _compare(one, other, batch.unchanged, missing=True)
            accepted = True
    return accepted


def _if_accepted(
    traced: TracedModel,
    inputs: Sequence[Tensor],
    targets: Tensor | None,
    *,
    seed: int = 0,
    perturbed: Perturbation = UNPERTURBED,
    backward: bool = True,
) -> Trace | None:
    """The trace; None if the model or the loss does not accept such values."""
    try:
        return traced(inputs, targets, seed=seed, perturbed=perturbed, backward=backward)
    except (GradientError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return None


def _check_sizes(
    traced: TracedModel, whole: Trace, inputs: Sequence[Tensor], targets: Tensor
) -> None:
    for rows in (*_PARTS, *_ALONE):
        places, backward = list(rows), rows in _PARTS
        records = [each[places] for each in inputs], targets[places]
        try:
            part = traced(*records, places=places, backward=backward)
        except GradientError:
            raise
        except Exception as error:
            raise GradientError(
                f"model and loss take {BATCH} examples at once but not {len(rows)} ({error}): "
                "batches come in every size; keep the first axis, for instance squeeze(1) for "
                "squeeze()"
            ) from error
        same = whole.only(places)
        _compare(same if backward else same.without_backward(), part, slack=_OTHER_SIZE_SLACK)


def _compare(
    one: Trace,
    other: Trace,
    rows: slice | Sequence[int] = slice(None),
    slack: float = 1.0,
    *,
    missing: bool = False,
) -> None:
    place = first_difference(one, other, rows, slack, missing=missing)
    if place is not None:
        raise GradientError(
            f"examples meet {place}: one example's numbers depend on others in its batch or "
            "on those before, so clipping would not bound its influence; keep examples apart, on "
            "the first axis"
        )


def _rolled(values: Tensor) -> Tensor:
    """Exchange rows for values that every model and loss must accept."""
    if not is_number(values) and not _all_equal(values):
        return _exchanged(values, lambda others: (others == 0).to(values.dtype))
    return values[[0, 0, 4, 3, 3]]


def _moved(values: Tensor) -> Tensor:
    return _exchanged(values, lambda rows: rows + 1) if is_number(values) else _rolled(values)


def _opposite(values: Tensor) -> Tensor:
    if not is_number(values):
        return _rolled(values)
    return _exchanged(values, lambda rows: -4 * (rows + 1))


def _all_equal(values: Tensor) -> bool:
    """Whether all are one integer, as for a model that takes one only."""
    return bool((values == values.flatten()[:1]).all())


def _exchanged(values: Tensor, change: _Exchange) -> Tensor:
    changed = values.clone()
    changed[list(_EXCHANGED)] = change(values[list(_EXCHANGED)])
    return changed
