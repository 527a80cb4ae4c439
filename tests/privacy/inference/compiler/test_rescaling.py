"""Wherever squares are rescaled, the answer is the model's within the predicted error."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    Evaluator,
    MeasurementOwner,
    Plan,
    Square,
    ThreeParties,
    compile_model,
)
from privacy.inference.arithmetic.program import BatchProgram, SlotProgram
from privacy.inference.compiler import planner
from privacy.inference.compiler.candidates import (
    PackedLayerCandidate,
    PackedMap,
    PackingCandidate,
)
from privacy.inference.compiler.error_model import averaged
from privacy.inference.errors import CannotPlanError
from privacy.inference.rescaling import AFTER, BOTH, FIRST, NEVER, SUMMED

SHAPE, RANGE = (40,), (-1.0, 1.0)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(40, 60), Square(), nn.Linear(60, 20), Square(), nn.Linear(20, 4)
    ).eval()


def compiled(
    monkeypatch: pytest.MonkeyPatch,
    rescales: tuple[int, ...],
    batch_size: int,
    parties: ThreeParties | None = None,
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
        model(),
        input_shape=SHAPE,
        input_range=RANGE,
        tolerance=1.0,
        batch_size=batch_size,
        parties=parties,
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


@pytest.mark.parametrize(
    "rescales",
    [(AFTER, NEVER), (NEVER, FIRST), (FIRST, SUMMED), (SUMMED, AFTER), (BOTH, AFTER)],
)
def test_encrypted_weights_are_rescaled_anywhere(
    monkeypatch: pytest.MonkeyPatch, rescales: tuple[int, ...]
) -> None:
    def starts(self: planner.Planner) -> Iterator[list[PackingCandidate]]:
        yield [replace(each, rescales=rescales, answer_level=2) for each in self._packings(8192)]

    # No way is found by chance: one that takes a level more is the quickest of none.
    monkeypatch.setattr(planner.Planner, "_starts", starts)
    made = compiled(monkeypatch, rescales, 1, ThreeParties("laboratory", "clinic", "cloud"))
    plan = Plan.from_json(made.plan.to_json())
    assert tuple(layer.rescale for layer in plan.blind_layers) == rescales
    x = np.random.default_rng(0).uniform(*RANGE, SHAPE)
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    weights = made.encrypt_weights(material)
    assert len(weights) == plan.weights_bytes
    evaluator = BlindEvaluator(plan, material, weights, name="cloud")
    logits = owner.logits(evaluator.evaluate(owner.encrypt(x)))
    assert np.abs(logits - made.predict(x[None])).max() < 2.0**plan.error_bits


@pytest.mark.parametrize("period", [64, 1024])
@pytest.mark.parametrize("doublings", [0, 2, 4])
def test_the_noise_of_encrypted_weights_averages_over_copies(period: int, doublings: int) -> None:
    """The mean over copies of a sum of rotations, as a weighted sum of the slots before it."""
    slots, padded = 4096, 64
    copies, summed = slots // period, 2**doublings
    weights = np.zeros(slots)
    weights[::period] = 1 / copies
    for doubling in range(doublings):
        weights = weights + np.roll(weights, padded << doubling)
    variance_of_one = summed
    layers = (
        PackedLayerCandidate((PackedMap(0, 1),), 1, 2, 64),
        PackedLayerCandidate(
            (PackedMap(1, 1, sums=tuple((padded << k,) for k in range(doublings))),), 0, 2, 64
        ),
        PackedLayerCandidate((PackedMap(2, 1),), 0, 0, 10),
    )
    candidate = PackingCandidate(8192, layers, 1, (AFTER, AFTER), copies=copies, encrypted=True)
    share = averaged(candidate, 1, layers[1].maps[0])
    assert np.sum(weights**2) <= variance_of_one * share * (1 + 1e-9)
    if period == padded:
        assert np.isclose(np.sum(weights**2), variance_of_one * share)
    # Copies of an earlier value are read apart.
    assert averaged(candidate, 0, layers[0].maps[0]) == 1.0


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
