"""Batches: one image a slot, the same answers as one at a time."""

import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize("size", [1.0, 1e8, 1e15, 1e20, 1e40, 1e80])
@pytest.mark.parametrize("layer", [0, 2, None])
def test_weights_of_any_size_are_answered_or_refused_by_the_compiler(
    size: float, layer: int | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Square(), nn.Linear(5, 3)).double()
    if layer is None:
        model = nn.Sequential(model[0])
    with torch.no_grad():
        model[layer or 0].weight *= size
    try:
        compiled = compile_model(model, input_shape=6, input_range=(-1.0, 1.0), batch_size=4)
    except CannotPlanError:
        assert size > 1e8
        assert layer is not None
        return
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(-1, 1, (4, 6))
    error = np.abs(owner.logits(evaluator.evaluate(owner.encrypt(x))) - compiled.predict(x)).max()
    assert error < 2 * 2.0**compiled.plan.error_bits


@pytest.mark.parametrize(("outputs", "batch_size"), [(3, 16384), (20000, 1)])
def test_an_affine_map_takes_the_larger_rings_where_it_needs_their_places(
    outputs: int, batch_size: int
) -> None:
    torch.manual_seed(0)
    compiled = compile_model(
        nn.Sequential(nn.Linear(2, outputs)),
        input_shape=2,
        input_range=(-1.0, 1.0),
        batch_size=batch_size,
    )
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(-1, 1, (batch_size, 2))
    query = owner.encrypt(x if batch_size > 1 else x[0])
    error = np.abs(owner.logits(evaluator.evaluate(query)) - compiled.predict(x)).max()
    assert error < 2 * 2.0**compiled.plan.error_bits


def test_an_affine_map_beyond_every_ring_says_what_is_too_much() -> None:
    with pytest.raises(CannotPlanError, match=r"has 40,000 outputs.*compile two models"):
        compile_model(nn.Sequential(nn.Linear(2, 40000)), input_shape=2, input_range=(0.0, 1.0))
    with pytest.raises(CannotPlanError, match="a ring has 32768 places; split the batch"):
        compile_model(linear(2), input_shape=2, input_range=(0.0, 1.0), batch_size=40000)


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CannotPlanError, match="split the batch"):
        compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0), batch_size=10**6)
    model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
    with pytest.raises(CannotPlanError, match="16384 slots for 17000 images"):
        compile_model(model, input_shape=(4,), input_range=(0.0, 1.0), batch_size=17000)
    plan = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0), batch_size=3).plan
    with pytest.raises(ValueError, match="1 to 3 images"):
        DataOwner(plan).encrypt(np.zeros((4, 4)))
