"""Batches: one image a slot, the same answers as one at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import (
    DataOwner,
    Evaluator,
    MeasurementOwner,
    Plan,
    Polynomial,
    Square,
    compile_model,
)
from privacy.inference.ckks import matrix_product
from privacy.inference.errors import CannotPlanError
from tests.privacy.inference.inference_models import linear

PRIMES = [1125899906826241, 1099511480321, 4294828033, 12289]


@given(
    prime=st.sampled_from(PRIMES),
    largest=st.sampled_from([1, 2**10, 2**20, 2**40]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_a_matrix_product_is_exact(prime: int, largest: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.integers(-largest, largest, (3, 7), endpoint=True)
    values = generator.integers(0, prime, (7, 11), dtype=np.uint64)
    expected = (weights.astype(object) @ values.astype(object)) % prime
    found = matrix_product(weights.astype(np.float64), values, prime)
    assert (found.astype(object) == expected).all()


def test_weights_that_are_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to"):
        matrix_product(np.full((1, 1), 2.0**53), np.ones((1, 1), dtype=np.uint64), 12289)


MODELS = {
    "linear": (linear(30), (30,), 700),
    "wider then narrower": (
        nn.Sequential(
            nn.Linear(6, 12), Square(), nn.Linear(12, 5), Polynomial([0, 1, 0.2]), nn.Linear(5, 3)
        ),
        (6,),
        9,
    ),
    "cubic, widening": (
        nn.Sequential(nn.Linear(4, 3), Polynomial([0.1, 0.5, 0.2, 0.3]), nn.Linear(3, 5)),
        (4,),
        2048,
    ),
    "convolution": (
        nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2, padding=1), Square(), nn.Flatten(), nn.Linear(18, 4)
        ),
        (1, 5, 5),
        50,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_answered_like_its_images(name: str) -> None:
    model, shape, batch_size = MODELS[name]
    compiled = compile_model(
        model, input_shape=shape, input_range=(-1.0, 1.0), batch_size=batch_size, tolerance=0.1
    )
    plan = Plan.from_json(compiled.plan.to_json())
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    assert len(material) == plan.public_bytes
    generator = np.random.default_rng(0)
    for images in (batch_size, 2):
        x = generator.uniform(-1, 1, (images, *shape))
        query = owner.encrypt(x)
        answer = evaluator.evaluate(query)
        assert (len(query), len(answer)) == (plan.query_bytes, plan.answer_bytes)
        logits = owner.logits(answer)
        assert logits.shape == (images, plan.classes)
        # Six deviations a logit: over 4,096 logits 7.5 would still be exceeded once in 10^9.
        assert np.abs(logits - compiled.predict(x)).max() < 2 * 2.0**plan.error_bits
    expected = compiled.predict(x).argmax(axis=1)
    other = DataOwner(plan)
    answer = Evaluator(compiled, other.public_material()).evaluate(other.encrypt(x))
    assert other.decrypt(answer).labels == tuple(expected.tolist())


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CannotPlanError, match="split the batch"):
        compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0), batch_size=10**6)
    model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
    with pytest.raises(CannotPlanError, match="16384 slots for 17000 images"):
        compile_model(model, input_shape=(4,), input_range=(0.0, 1.0), batch_size=17000)
    plan = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0), batch_size=3).plan
    with pytest.raises(ValueError, match="1 to 3 images"):
        DataOwner(plan).encrypt(np.zeros((4, 4)))
