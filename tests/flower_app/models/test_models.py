"""The models: what they take, what they give, and that arithmetic alone computes them."""

import logging

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator

from flower_app.data import encode
from flower_app.encrypted.evaluation import check_model_can_be_encrypted
from flower_app.encrypted.model import compile_app_model
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from flower_app.shared.model import compile_shared

NOISE = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
_CNN = 200 + 256 * 64 + 64 + 650
WEIGHTS = {"hog-linear": 3920, "mlp": 784 * 64 + 64 + 650, "cnn": _CNN, "relu-cnn": _CNN}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_what_its_description_says(name: str) -> None:
    spec = MODELS[name]
    inputs = encode(NOISE, spec.kind)
    assert inputs.shape[1:] == spec.shape
    assert spec.low <= inputs.min() <= inputs.max() <= spec.high
    assert build_model(name)(torch.from_numpy(inputs)).shape == (20, spec.classes)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_shape_it_is_named_for(name: str) -> None:
    count = sum(p.numel() for p in build_model(name).parameters())
    assert count == WEIGHTS[name] == MODELS[name].parameters


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_model_is_compiled_to_be_checked_without_alarm(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first logits are all alike; that is no fault of a model that is yet to be trained."""
    model, state = build_model(name), torch.random.get_rng_state()
    compile_it = compile_app_model if MODELS[name].in_ckks else compile_shared
    check_model_can_be_encrypted(model, MODELS[name], compile_it)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert torch.equal(torch.random.get_rng_state(), state)
    kept = build_model(name).state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_are_the_same_everywhere(name: str) -> None:
    first, second = build_model(name).state_dict(), build_model(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("name", "degree"), [("hog-linear", 1), ("mlp", 2), ("cnn", 4)])
def test_logits_are_polynomials_of_the_inputs(name: str, degree: int) -> None:
    model = build_model(name).double()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    start, step = torch.randn(2, 1, *MODELS[name].shape, generator=generator, dtype=torch.float64)
    along = torch.arange(degree + 2, dtype=torch.float64)
    logits = torch.cat([model(start + t * step) for t in along]).detach().numpy()
    differences = np.diff(logits, n=degree + 1, axis=0)
    assert np.abs(differences).max() < 1e-9 * np.abs(logits).max()
    assert np.abs(np.diff(logits, n=degree, axis=0)).max() > 1e-3 * np.abs(logits[0]).max()


@pytest.mark.parametrize("name", MODELS)
def test_per_example_gradients_can_be_had(name: str) -> None:
    assert ModuleValidator.validate(build_model(name), strict=False) == []


@pytest.mark.parametrize("name", MODELS)
def test_training_can_start(name: str) -> None:
    model = build_model(name)
    inputs = torch.from_numpy(encode(NOISE, MODELS[name].kind))
    loss = torch.nn.functional.cross_entropy(model(inputs), torch.arange(20) % 10)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 1e-4 for p in model.parameters())


def test_what_ckks_does_not_take_is_refused_with_the_backend_that_does() -> None:
    refused = [name for name, spec in MODELS.items() if not spec.in_ckks]
    assert refused == ["relu-cnn"]
    for name in refused:
        with pytest.raises(SettingError, match=r"ReLU.*encrypted-backend = 'shared'"):
            check_model_can_be_encrypted(build_model(name), MODELS[name])


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'vgg' is unknown; choose one of hog-linear, mlp, cnn"):
        build_model("vgg")
