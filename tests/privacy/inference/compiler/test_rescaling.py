"""Wherever squares are rescaled, the answer is the model's within the predicted error."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import CompiledModel, Evaluator, MeasurementOwner, Square, compile_model
from privacy.inference.arithmetic.program import BatchProgram, SlotProgram
from privacy.inference.arithmetic.scales import AFTER, FIRST, NEVER, SUMMED
from privacy.inference.compiler import planner
from privacy.inference.compiler.candidates import PackingCandidate
from privacy.inference.errors import CannotPlanError

SHAPE, RANGE = (40,), (-1.0, 1.0)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(40, 60), Square(), nn.Linear(60, 20), Square(), nn.Linear(20, 4)
    ).eval()


def compiled(
    monkeypatch: pytest.MonkeyPatch, rescales: tuple[int, ...], batch_size: int
) -> CompiledModel:
    def only(candidate: PackingCandidate, _: Sequence[int]) -> Iterator[PackingCandidate]:
        yield replace(candidate, rescales=rescales, relinearise_after_last_layer=False)

    monkeypatch.setattr(planner, "rescaling_variants", only)
    # A ring and an answer in which each way has room.
    monkeypatch.setattr(planner, "_RINGS", (8192,))
    monkeypatch.setattr(planner, "_least_answer_level", lambda _: 2)
    # Whatever way is given is taken, however small these weights are.
    monkeypatch.setattr(planner.Planner, "_vanishes", lambda *_: False)
    return compile_model(
        model(), input_shape=SHAPE, input_range=RANGE, tolerance=1.0, batch_size=batch_size
    )


@pytest.mark.parametrize(
    ("rescales", "batch_size"),
    [
        ((NEVER, FIRST), 1),
        ((NEVER, SUMMED), 1),
        ((FIRST, FIRST), 1),
        ((SUMMED, AFTER), 1),
        ((AFTER, FIRST), 1),
        ((NEVER, FIRST), 20),
        ((FIRST, AFTER), 20),
    ],
)
def test_the_answer_is_the_models(
    monkeypatch: pytest.MonkeyPatch, rescales: tuple[int, ...], batch_size: int
) -> None:
    made = compiled(monkeypatch, rescales, batch_size)
    assert isinstance(made.program, SlotProgram | BatchProgram)
    assert made.program.scales.rescales == rescales
    x = np.random.default_rng(0).uniform(*RANGE, (batch_size, *SHAPE))
    owner = MeasurementOwner(made.plan)
    evaluator = Evaluator(made, owner.public_material())
    logits = owner.logits(evaluator.evaluate(owner.encrypt(x if batch_size > 1 else x[0])))
    # As in the property over random models: twice six deviations.
    assert np.abs(logits - made.predict(x)).max() < 2 * 2.0**made.plan.error_bits


def test_a_larger_tolerance_buys_time_and_a_smaller_one_precision() -> None:
    plans = [
        compile_model(
            model(), input_shape=SHAPE, input_range=RANGE, tolerance=tolerance, batch_size=1
        ).plan
        for tolerance in (0.5, 1e-3)
    ]
    assert plans[0].error_bits <= -1
    assert plans[1].error_bits <= -9
    assert plans[0].levels < plans[1].levels
    assert plans[0].query_bytes < plans[1].query_bytes


def test_no_tolerance_is_large_enough_for_weights_to_vanish() -> None:
    """Where biases decide, a rougher layer would be within tolerance even as nothing at all."""
    small = model()
    with torch.no_grad():
        for layer in (small[0], small[2], small[4]):
            layer.weight *= 1e-2
    made = compile_model(small, input_shape=SHAPE, input_range=RANGE, tolerance=1.0)
    owner = MeasurementOwner(made.plan)
    x = np.ones(SHAPE)
    logits = owner.logits(Evaluator(made, owner.public_material()).evaluate(owner.encrypt(x)))
    assert np.abs(logits - made.predict(x[None])).max() < 2 * 2.0**made.plan.error_bits


def test_scales_of_a_packing_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of the time of compiling, and the same under every limit and tolerance."""
    looked: Counter[PackingCandidate] = Counter()
    look = planner.choose_scales

    def counted(candidate: PackingCandidate, *rest: Any) -> planner.Choice | None:
        looked[candidate] += 1
        return look(candidate, *rest)

    monkeypatch.setattr(planner, "choose_scales", counted)
    with pytest.raises(CannotPlanError, match="give max_query_bytes="):
        compile_model(model(), input_shape=SHAPE, input_range=RANGE, max_query_bytes=150_000)
    assert len(looked) > 2
    assert set(looked.values()) == {1}
