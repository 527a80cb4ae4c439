"""What a plan predicts: the operations that happen, and their time from what each takes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from privacy.inference import (
    BlindEvaluator,
    DataOwner,
    Evaluator,
    Square,
    ThreeParties,
    compile_model,
)
from privacy.inference.ckks import Ciphertext, Extended, Ring
from privacy.inference.compiler.operation_costs import milliseconds
from tests.privacy.inference.inference_models import linear, mlp, tutorial_cnn


def rotations(total: Extended, steps: Sequence[int]) -> dict[str, int]:
    """A sum that was not divided yet must be, in half, before its first rotation."""
    again = int(bool(steps))
    halves = again if total.second is None else 0
    return {"divide half": halves, "hoist": again, "hoisted rotation": len(steps)}


OPERATIONS: dict[str, Callable[..., dict[str, int]]] = {
    "multiply_plain": lambda *_: {"multiply plain": 1},
    "weighted_sum": lambda _, weights: {"multiply plain": len(weights.places)},
    "multiply": lambda *_: {"multiply": 1},
    "sum_of_products": lambda _, __, places: {"multiply": len(places)},
    # What has size 2 needs no relinearisation.
    "relinearise": lambda value, _: dict.fromkeys(("relinearise", "divide"), int(value.size > 2)),
    "relinearised": lambda *_: {"relinearise": 1},
    "rescale": lambda _: {"rescale": 1},
    "extended": lambda value: {"extend": int(isinstance(value, Ciphertext))},
    "divided": lambda value: {"divide": int(isinstance(value, Extended))},
    "rotate": lambda total, step, _: rotations(total, [step]),
    "add_rotations": lambda total, steps, _: rotations(total, steps),
    "hoist": lambda total, steps, _: rotations(total, [each for each in steps if each is not None]),
    "rotate_many": lambda _, steps, __: {
        "extend": 1,
        "hoist": 1,
        "hoisted rotation": len(steps) - steps.count(None),
        "divide": len(steps) - steps.count(None),
    },
    "combine": lambda _, weights: {"hoisted product": len(weights.places)},
}
"""What each method of a ring does, by its arguments."""
MODELS: dict[str, tuple[nn.Sequential, tuple[int, ...]]] = {
    "linear": (linear(392), (392,)),
    "mlp": (mlp(), (1, 28, 28)),
    "cnn": (tutorial_cnn(), (1, 28, 28)),
    "deep": (
        nn.Sequential(
            nn.Linear(30, 100),
            Square(),
            nn.Linear(100, 20),
            Square(),
            nn.Linear(20, 20),
            Square(),
            nn.Linear(20, 10),
        ),
        (30,),
    ),
}


class Counting:
    """A ring that counts its operations: those that it is asked for, not those inside."""

    def __init__(self, ring: Ring, counts: Counter[str]) -> None:
        self._ring, self._counts = ring, counts

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ring, name)
        if name not in OPERATIONS:
            return operation

        def run(*arguments: Any) -> Any:
            self._counts.update(OPERATIONS[name](*arguments))
            return operation(*arguments)

        return run


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_operations_that_a_plan_names_are_those_that_happen(name: str, encrypted: bool) -> None:
    model, shape = MODELS[name]
    parties = ThreeParties("laboratory", "clinic", "cloud") if encrypted else None
    compiled = compile_model(
        model, input_shape=shape, input_range=(0.0, 1.0), tolerance=5.0, parties=parties
    )
    plan = compiled.plan
    owner = DataOwner(plan)
    material = owner.public_material()
    if encrypted:
        weights = compiled.encrypt_weights(material)
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name="cloud")
    else:
        evaluator = Evaluator(compiled, material)
    query = owner.encrypt(np.full(shape, 0.5))
    counts: Counter[str] = Counter(load=plan.ciphertexts, mask=len(plan.answers))
    evaluator._encoded.ring = Counting(evaluator._encoded.ring, counts)
    evaluator.evaluate(query)
    assert +counts == plan.operations


def test_the_prediction_is_the_sum_of_its_operations() -> None:
    one, other = Counter({("relinearise", 2): 1}), Counter({("mask", 1): 1})
    both = Counter({("relinearise", 2): 5, ("mask", 1): 2})
    total = 5 * milliseconds(one, 8192) + 2 * milliseconds(other, 8192)
    assert milliseconds(both, 8192) == pytest.approx(total)
    # Larger rings take longer, by N log N, but for what is done once whatever the ring.
    assert 1.9 < milliseconds(both, 16384) / milliseconds(both, 8192) < 2 * 15 / 14


def test_the_digest_of_a_plan_leaves_the_predicted_time_out() -> None:
    plan = compile_model(linear(20), input_shape=(20,), input_range=(0.0, 1.0)).plan
    assert plan.predicted_ms > 0
    assert replace(plan, predicted_ms=2 * plan.predicted_ms).digest == plan.digest
