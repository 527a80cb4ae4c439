"""The three roles together: compile, encrypt, evaluate, decrypt."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
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
from privacy.inference.errors import (
    CannotPlanError,
    MessageError,
    OutOfRangeError,
    UnsupportedLayerError,
)
from tests.privacy.inference.inference_models import linear, mlp, tutorial_cnn

MODELS = {
    "hog-linear": (linear(392), (392,), (-1.0, 1.0)),
    "linear": (nn.Sequential(nn.Flatten(), *linear(784)), (1, 28, 28), (0.0, 1.0)),
    "mlp": (mlp(), (1, 28, 28), (0.0, 1.0)),
    "cnn": (tutorial_cnn(), (1, 28, 28), (0.0, 1.0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_encrypted_answer_is_the_models(name: str) -> None:
    model, shape, (low, high) = MODELS[name]
    compiled = compile_model(model, input_shape=shape, input_range=(low, high))
    plan = Plan.from_json(compiled.plan.to_json())
    assert plan == compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    assert len(material) == plan.public_bytes
    generator = np.random.default_rng(1)
    for _ in range(3):
        x = generator.uniform(low, high, shape)
        query = owner.encrypt(x)
        answer = evaluator.evaluate(query)
        assert (len(query), len(answer)) == (plan.query_bytes, plan.answer_bytes)
        expected = model.double()(torch.from_numpy(x)[None]).detach().numpy()[0]
        assert np.abs(owner.logits(answer)[0] - expected).max() < 2.0**plan.error_bits
        np.testing.assert_allclose(compiled.predict(x[None])[0], expected, atol=1e-9)


def test_only_the_class_leaves_a_data_owner() -> None:
    model, shape, span = MODELS["hog-linear"]
    compiled = compile_model(model, input_shape=shape, input_range=span)
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(*span, shape)
    answer = owner.decrypt(evaluator.evaluate(owner.encrypt(x)))
    assert answer.label == int(compiled.predict(x[None])[0].argmax())
    assert (answer.top, answer.logits) == (None, None)
    assert not hasattr(owner, "logits")


@pytest.mark.parametrize("value", [1.001, -0.001, float("nan"), float("inf")])
def test_inputs_outside_the_range_are_refused(value: float) -> None:
    plan = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0)).plan
    owner = DataOwner(plan)
    with pytest.raises(OutOfRangeError, match="proved for"):
        owner.encrypt([0.0, 1.0, 0.5, value])
    with pytest.raises(ValueError, match="shape"):
        owner.encrypt([0.0])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.ReLU(), r"1 \(ReLU\).*Square"),
        (nn.Tanh(), r"1 \(Tanh\).*Polynomial"),
        (nn.MaxPool2d(2), r"1 \(MaxPool2d\).*AvgPool2d"),
        (nn.LSTM(3, 3), r"1 \(LSTM\).*use Linear"),
    ],
)
def test_a_layer_it_cannot_evaluate_is_named_with_a_remedy(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 2), layer, nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(UnsupportedLayerError, match=words):
        compile_model(model, input_shape=(1, 4, 4), input_range=(0.0, 1.0))


def test_too_deep_names_the_levels() -> None:
    layers: list[nn.Module] = []
    for _ in range(40):
        layers += [nn.Linear(4, 4), Square()]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    with pytest.raises(CannotPlanError, match=r"needs 41 levels, 35 fit at 128 bits"):
        compile_model(model, input_shape=(4,), input_range=(0.0, 1.0))


def test_keys_of_another_plan_are_refused() -> None:
    one = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0))
    two = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 2.0))
    material = DataOwner(one.plan).public_material()
    with pytest.raises(MessageError, match="another plan"):
        Evaluator(two, material)


def test_an_answer_is_released_once() -> None:
    compiled = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0))
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    answer = evaluator.evaluate(owner.encrypt([0.0, 1.0, 0.5, 0.25]))
    owner.decrypt(answer)
    with pytest.raises(MessageError, match="replayed"):
        owner.decrypt(answer)


def test_importing_privacy_does_not_import_inference() -> None:
    code = "import privacy, sys; sys.exit('privacy.inference' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("coefficients", [[], [1.0], [0.0] * 9, [1.0, 0.0], [float("nan"), 1.0]])
def test_a_polynomial_checks_its_coefficients(coefficients: list[float]) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        Polynomial(coefficients)


def test_a_polynomial_evaluates_itself() -> None:
    x = torch.linspace(-1, 1, 5)
    torch.testing.assert_close(Polynomial([1.0, -2.0, 3.0])(x), 1 - 2 * x + 3 * x**2)


def test_the_plan_of_a_model_is_the_same_every_time() -> None:
    """Two processes, or two machines, that compile one model agree."""
    one, two = (
        compile_model(tutorial_cnn(), input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
        for _ in range(2)
    )
    assert one.digest == two.digest
    slower = replace(one, predicted_ms=one.predicted_ms * 2)
    assert slower.digest == one.digest
    assert replace(one, input_scale_bits=3).digest != one.digest


def test_a_plan_prints_what_it_costs() -> None:
    plan = compile_model(tutorial_cnn(), input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
    text = str(plan)
    for words in ("of 218 bits", "proved", "rotation keys", "ms", f"{plan.public_bytes:,}"):
        assert words in text


def test_a_plan_from_a_stranger_is_checked() -> None:
    plan = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0)).plan
    for change, words in (
        ({"prime_bits": (50, 50)}, "128 bits of security"),
        ({"prime_bits": (51,)}, "from 2 to 50"),
        ({"degree": 1000}, "choose one of"),
        ({"headroom_bits": -0.1}, "overflow"),
        ({"packing_kind": "else"}, "packing_kind"),
        ({"answers": ((0,),)}, "coefficients for 10 classes"),
    ):
        content = json.loads(plan.to_json()) | change
        with pytest.raises(ValueError, match=words):
            Plan.from_json(json.dumps(content))
    with pytest.raises(ValueError, match="missing or unknown"):
        Plan.from_json(json.dumps(json.loads(plan.to_json()) | {"more": 1}))


def test_a_sample_makes_the_prediction_that_of_its_inputs() -> None:
    generator = np.random.default_rng(0)
    dark = generator.random((8, 1, 28, 28)) * 0.01
    errors, plans = [], []
    for sample in (None, dark):
        given = {"input_shape": (1, 28, 28), "input_range": (0.0, 1.0), "sample": sample}
        with pytest.raises(CannotPlanError, match="least predicted error") as refusal:
            compile_model(mlp(), tolerance=1e-14, **given)
        errors.append(float(re.findall(r"logit is (\S+)", str(refusal.value))[0]))
        plans.append(compile_model(mlp(), tolerance=0.01, **given).plan)
    assert errors[1] < errors[0]
    even, sampled = plans
    assert (sampled.logit_bits, sampled.headroom_bits >= 0) == (even.logit_bits, True)
    with pytest.raises(ValueError, match="outside input_range"):
        compile_model(mlp(), input_shape=(1, 28, 28), input_range=(0.0, 1.0), sample=dark - 1.0)


def test_the_default_tolerance_follows_the_logits() -> None:
    """A model whose logits are a thousand times as large may err a thousand times as much."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), Square(), nn.Linear(20, 5))
    plans = []
    for factor in (1.0, 1000.0):
        with torch.no_grad():
            model[2].weight *= factor
            model[2].bias *= factor
        compiled = compile_model(model, input_shape=(20,), input_range=(-1.0, 1.0))
        plans.append(compiled.plan)
        spread = compiled.predict(np.random.default_rng(0).uniform(-1, 1, (50, 20))).std(axis=1)
        assert 2.0**compiled.plan.error_bits < spread.mean() / 10
    assert plans[1].error_bits > plans[0].error_bits


def test_a_client_forgets_the_oldest_of_very_many_open_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client whose queries are never answered does not grow for ever."""
    monkeypatch.setattr("privacy.inference.owner.secret_state._OPEN_QUERIES", 3)
    compiled = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0))
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    answers = [evaluator.evaluate(owner.encrypt([0.0, 1.0, 0.5, 0.25])) for _ in range(4)]
    with pytest.raises(MessageError, match="not open"):
        owner.decrypt(answers[0])
    for answer in answers[1:]:
        owner.decrypt(answer)
