"""Answers modulo several primes: for logits that one prime does not hold, and for precision."""

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    Evaluator,
    MeasurementOwner,
    Square,
    ThreeParties,
    compile_model,
)

PARTIES = ThreeParties("laboratory", "clinic", "cloud")


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), Square(), nn.Linear(9, 4)).eval()


def affine() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 4)).eval()


def answered(compiled: CompiledModel, x: np.ndarray) -> np.ndarray:
    plan = compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    if plan.parties:
        weights = compiled.encrypt_weights(material)
        assert len(weights) == plan.weights_bytes
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name="cloud")
    else:
        evaluator = Evaluator(compiled, material)
    answer = evaluator.evaluate(owner.encrypt(x if plan.batch_size > 1 else x[0]))
    assert len(answer) == plan.answer_bytes
    return owner.logits(answer)


@pytest.mark.parametrize(
    ("model", "largest", "batch_size", "parties"),
    [
        (perceptron(), 1e8, 1, None),
        (perceptron(), 1e8, 4, None),
        (perceptron(), 1e8, 1, PARTIES),
        (affine(), 1e17, 1, None),
        (affine(), 1e17, 4, None),
        (affine(), 1e17, 1, PARTIES),
        (affine(), 1e40, 1, None),
        (affine(), 1e40, 4, None),
        (affine(), 1e40, 1, PARTIES),
        (affine(), 1e110, 1, None),
    ],
)
def test_logits_beyond_one_prime_are_answered(
    model: nn.Sequential, largest: float, batch_size: int, parties: ThreeParties | None
) -> None:
    compiled = compile_model(
        model,
        input_shape=12,
        input_range=(-largest, largest),
        batch_size=batch_size,
        parties=parties,
    )
    plan = compiled.plan
    assert plan.logit_bits > 50
    assert plan.answer_level >= 2
    assert plan.headroom_bits >= 0
    inside = np.random.default_rng(0).uniform(-largest, largest, (batch_size, 12))
    for x in (inside, np.full_like(inside, largest), np.full_like(inside, -largest)):
        error = np.abs(answered(compiled, x) - compiled.predict(x)).max()
        # Twice six deviations for inputs drawn evenly, as in the property over random models.
        assert error < 2 * 2.0 ** (plan.error_bits if x is inside else plan.worst_error_bits)


@pytest.mark.parametrize("model", [perceptron(), affine()])
def test_a_second_prime_buys_precision(model: nn.Sequential) -> None:
    plans = [
        compile_model(model, input_shape=12, input_range=(-1.0, 1.0), tolerance=tolerance)
        for tolerance in (1e-2, 1e-6)
    ]
    assert plans[1].plan.answer_level == 2
    x = np.random.default_rng(0).uniform(-1, 1, (1, 12))
    for compiled in plans:
        error = np.abs(answered(compiled, x) - compiled.predict(x)).max()
        assert error < 2 * 2.0**compiled.plan.error_bits
