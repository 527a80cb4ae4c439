"""What a plan predicts: the operations that happen, and their time from what each takes."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
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
from privacy.inference.compiler import calibration as module
from privacy.inference.compiler.calibration import Calibration, calibration
from tests.privacy.inference.inference_models import linear, mlp, tutorial_cnn

NAMES = {
    "apply_galois": "rotate",
    "multiply_plain": "multiply plain",
    "multiply": "multiply",
    "square_inplace": "multiply",
    "relinearize_inplace": "relinearise",
    "rescale_to_next_inplace": "rescale",
}
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
    """Passes everything on to SEAL's evaluator, and counts."""

    def __init__(self, inner: Any, counts: Counter[str]) -> None:
        self._inner, self._counts = inner, counts

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in NAMES:
            self._counts[NAMES[name]] += 1
        return getattr(self._inner, name)


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
    evaluator._encoded.ring.evaluator = Counting(evaluator._encoded.ring.evaluator, counts)
    evaluator.evaluate(query)
    assert counts == plan.operations


def test_the_prediction_is_the_sum_of_its_operations() -> None:
    machine = Calibration({"rotate": (1.0, 2.0), "mask": (3.0, 0.0)}, byte=0.5)
    operations = Counter({("rotate", 1): 2, ("rotate", 2): 5, ("mask", 1): 1})
    assert machine.milliseconds(operations, 10) == 2 + 10 + 3 + 5


def test_a_calibration_is_measured_once_and_survives_a_spoilt_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    calibration.cache_clear()
    try:
        first = calibration(4096, 3)
        calibration.cache_clear()
        monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
        assert calibration(4096, 3) == first
        monkeypatch.undo()
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
        (file,) = (tmp_path / "ckks-costs").iterdir()
        file.write_text(file.read_text()[:50])
        calibration.cache_clear()
        again = calibration(4096, 3)
        assert min(again.operations["rotate"]) > 0
        assert json.loads(file.read_text())["byte"] == again.byte
        # A folder that cannot be made costs the time of measuring, no more.
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: file)
        calibration.cache_clear()
        assert calibration(4096, 3).operations.keys() == first.operations.keys()
    finally:
        calibration.cache_clear()


def test_the_choice_of_a_plan_does_not_depend_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = []
    for factor in (1.0, 50.0):
        switched = ("load", "rotate", "multiply plain", "multiply", "relinearise", "rescale")
        table = dict.fromkeys(switched, (factor,) * 4)
        machine = Calibration({**table, "mask": (1 / factor,)}, byte=0.0)
        monkeypatch.setattr("privacy.inference.compile.calibration", lambda *_, m=machine: m)
        plan = compile_model(mlp(), input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
        digests.append((plan.digest, plan.predicted_ms))
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] < digests[1][1] / 20
