"""What is of another kind is named where it is given, with what to give."""

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    BlindEvaluator,
    ClassOnly,
    DataOwner,
    Evaluator,
    EvaluatorPool,
    MeasurementOwner,
    Plan,
    accept_plan,
    certify,
    compile_model,
    decide,
    logit_bound,
)
from privacy.inference_service import OwnerSession
from strategies.encrypted_round.node import make_questions

MODEL = nn.Sequential(nn.Linear(8, 3))
SETTINGS = {"input_shape": (8,), "input_range": (0.0, 1.0)}
INPUTS = np.linspace(0, 1, 24).reshape(3, 8)


@pytest.fixture(scope="module")
def compiled():
    return compile_model(MODEL, **SETTINGS)


WRONG = {
    "input_shape": [None, "8", (8.0,), ("8",), (True,), [[8]], {8: 1}, True, 8.0],
    "input_range": [None, 1, (0, 1, 2), "01", ("a", "b"), (True, 2), {0: 1, 1: 2}],
    "tolerance": ["1", True, [0.1]],
    "batch_size": [None, "1", 1.0, True],
    "max_query_bytes": ["x", 1e6, True],
    "parties": ["a", ("a", "b", "c"), True],
    "sample": ["x", [["a"] * 8], {1: 2}, object(), np.zeros((2, 8), complex), [[1.0], [1.0, 2.0]]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_an_argument_of_another_kind_is_named(name, value):
    with pytest.raises(TypeError, match=rf"^{name} .*; give "):
        compile_model(MODEL, **{**SETTINGS, name: value})
    if name in SETTINGS:
        with pytest.raises(TypeError, match=rf"^{name} .*; give "):
            logit_bound(MODEL, **{**SETTINGS, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_shape", ()),
        ("input_shape", 0),
        ("input_range", (0.0, np.inf)),
        ("input_range", (1.0, 0.0)),
        ("tolerance", np.inf),
        ("tolerance", 0.0),
        ("batch_size", 0),
        ("max_query_bytes", -1),
    ],
)
def test_an_argument_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*; give "):
        compile_model(MODEL, **{**SETTINGS, name: value})


@pytest.mark.parametrize("shape", [8, np.int64(8), [8], np.array([8]), torch.Size([8])])
@pytest.mark.parametrize("limits", [[0, 1], np.array([0.0, 1.0]), torch.tensor([0.0, 1.0])])
def test_shapes_and_ranges_may_come_in_any_container(shape, limits, compiled):
    plan = compile_model(MODEL, input_shape=shape, input_range=limits).plan
    assert (plan.input_shape, plan.input_range) == ((8,), (0.0, 1.0))
    assert plan.model_version == compiled.plan.model_version


@pytest.mark.parametrize("other", [None, "model", MODEL, b"x", {}])
def test_what_is_no_model_and_no_plan_is_named(other, compiled, tmp_path):
    calls = {
        "compiled": [
            lambda: certify(other, INPUTS, [0, 1, 2]),
            lambda: Evaluator(other, b""),
        ],
        "plan": [
            lambda: DataOwner(other),
            lambda: MeasurementOwner(other),
            lambda: DataOwner.from_secret_state(other, b""),
            lambda: BlindEvaluator(other, b"", b"", name="n"),
            lambda: make_questions(other, INPUTS, [0, 1, 2], images=1, folder=tmp_path),
            lambda: OwnerSession(None, other),
        ],
        "contract": [lambda: accept_plan(compiled.plan.to_json(), other)],
        "release": [lambda: DataOwner(compiled.plan, release=other or ClassOnly)],
    }
    if not isinstance(other, str):
        calls["text"] = [lambda: Plan.from_json(other), lambda: accept_plan(other, None)]
    if not callable(other):
        calls["start"] = [lambda: EvaluatorPool(other)]
    for name, each in calls.items():
        for call in each:
            with pytest.raises(TypeError, match=rf"(?s)^{name} is .*; give "):
                call()
    with pytest.raises(ValueError, match="not JSON, and so no plan"):
        Plan.from_json("model")


def test_a_compiled_model_is_not_taken_for_its_plan(compiled, tmp_path):
    for call in (
        DataOwner,
        MeasurementOwner,
        lambda plan: OwnerSession(None, plan),
        lambda plan: make_questions(plan, INPUTS, [0, 1, 2], images=1, folder=tmp_path),
    ):
        with pytest.raises(TypeError, match=r"^plan is of type CompiledModel; give the plan, as"):
            call(compiled)


@pytest.mark.parametrize("values", [None, "x", [["a"] * 8], {}, np.zeros((3, 8), complex)])
def test_what_are_no_numbers_is_named(values, compiled):
    for name, call in {
        "inputs": lambda: certify(compiled, values, [0, 1, 2]),
        "logits": lambda: decide(values),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name} is .*; give real numbers"):
            call()
    with pytest.raises(TypeError, match=r"^inputs is .*; give real numbers"):
        compiled.predict(values)


@pytest.mark.parametrize(
    "shape", [(2, 4, 5, 3), (2, 3, 5, 4), (2, 12, 5), (2, 4, 15), (2, 61), (60,), (3, 4, 5), (1, 0)]
)
def test_inputs_with_axes_in_another_order_are_not_read_as_others(shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 3))
    settings = {"input_shape": (3, 4, 5), "input_range": (0.0, 1.0)}
    picture = np.linspace(0, 1, 120).reshape(2, 3, 4, 5)
    compiled = compile_model(model, **settings, sample=picture.reshape(2, 60))
    assert np.array_equal(compiled.predict(picture), compiled.predict(picture.reshape(2, 60)))
    wrong = np.zeros(shape)
    with pytest.raises(ValueError, match=r"^inputs has shape .*give \(inputs, 3, 4, 5\)"):
        compiled.predict(wrong)
    with pytest.raises(ValueError, match=r"^sample has shape .*give \(inputs, 3, 4, 5\)"):
        compile_model(model, **settings, sample=wrong)


def test_tensors_are_taken_whatever_their_precision_and_history(compiled):
    tensor = torch.tensor(INPUTS, dtype=torch.bfloat16).requires_grad_()
    assert compile_model(MODEL, **SETTINGS, sample=tensor).plan.input_shape == (8,)
    rounded = tensor.detach().double().numpy()
    assert np.array_equal(compiled.predict(tensor), compiled.predict(rounded))
