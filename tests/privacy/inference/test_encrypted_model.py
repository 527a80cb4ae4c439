"""A model that its evaluator cannot read: three parties, encrypted weights."""

import hashlib
import hmac
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    DataOwner,
    Evaluator,
    MeasurementOwner,
    Plan,
    Polynomial,
    Square,
    ThreeParties,
    certify,
    compile_model,
)
from privacy.inference.errors import MessageError, UnsupportedLayerError
from privacy.inference.messages import MAC_BYTES, Tag, open_message
from privacy.inference.plan import MESSAGE_OVERHEAD
from tests.privacy.inference.inference_models import linear, mlp, tutorial_cnn

PARTIES = ThreeParties(model_owner="laboratory", data_owner="clinic", evaluator="cloud")
HEAD = MESSAGE_OVERHEAD - MAC_BYTES
WIDE = nn.Sequential(nn.Linear(5, 300), Square(), nn.Linear(300, 30), Square(), nn.Linear(30, 12))
MODELS = {
    "linear": (linear(392), (392,)),
    "mlp": (mlp(), (1, 28, 28)),
    "cnn": (tutorial_cnn(), (1, 28, 28)),
    "wide": (WIDE, (5,)),
}


def compile_for(model: nn.Sequential, shape: tuple[int, ...]) -> CompiledModel:
    return compile_model(
        model, input_shape=shape, input_range=(0.0, 1.0), tolerance=0.5, parties=PARTIES
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_third_party_answers_like_the_model(name: str) -> None:
    model, shape = MODELS[name]
    compiled = compile_for(model, shape)
    plan = Plan.from_json(compiled.plan.to_json())
    assert plan == compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    weights = compiled.encrypt_weights(material)
    evaluator = BlindEvaluator(plan, material, weights, name="cloud")
    assert (len(material), len(weights)) == (plan.public_bytes, plan.weights_bytes)
    double = model.double().eval()
    for x in np.random.default_rng(0).uniform(0, 1, (2, *shape)):
        with torch.no_grad():
            expected = double(torch.from_numpy(x)[None]).numpy()[0]
        error = np.abs(owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] - expected).max()
        assert error < 2.0**plan.error_bits


def test_a_certificate_covers_encrypted_weights() -> None:
    compiled = compile_for(linear(20), (20,))
    x = np.random.default_rng(0).uniform(0, 1, (4, 20))
    certificate = certify(compiled, x, compiled.predict(x).argmax(axis=1))
    assert certificate.agreement == certificate.encrypted_accuracy == 1.0
    assert 0 < certificate.worst_error < certificate.predicted_error


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("lab", "clinic", "lab"), "evaluator and model_owner are both"),
        (("lab", "clinic", "Clinic "), "evaluator and data_owner are both"),
        (("lab", "lab", "cloud"), "data_owner and model_owner are both"),
        (("lab", "clinic", " "), "evaluator is ' '"),
    ],
)
def test_without_a_third_party_it_is_refused(names: tuple[str, str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ThreeParties(*names)
    plan = compile_for(linear(4), (4,)).plan
    content = json.loads(plan.to_json()) | {"parties": list(names)}
    with pytest.raises(ValueError, match=words):
        Plan.from_json(json.dumps(content))


def test_every_role_refuses_what_is_not_its_own() -> None:
    blind, plain = (
        compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0), parties=parties)
        for parties in (PARTIES, None)
    )
    owner = DataOwner(blind.plan)
    material = owner.public_material()
    weights = blind.encrypt_weights(material)
    with pytest.raises(ValueError, match="evaluated by 'cloud'"):
        Evaluator(blind, material)
    with pytest.raises(ValueError, match="to be evaluated by 'cloud'"):
        BlindEvaluator(blind.plan, material, weights, name="clinic")
    plain_material = DataOwner(plain.plan).public_material()
    with pytest.raises(ValueError, match="names no third party"):
        BlindEvaluator(plain.plan, plain_material, weights, name="cloud")
    with pytest.raises(ValueError, match="compiled without parties"):
        plain.encrypt_weights(plain_material)
    with pytest.raises(MessageError):
        blind.encrypt_weights(plain_material)
    other = DataOwner(blind.plan).public_material()
    with pytest.raises(MessageError, match="authentication"):
        BlindEvaluator(blind.plan, other, weights, name="cloud")


def test_what_would_show_weights_is_refused() -> None:
    cubic = nn.Sequential(nn.Linear(4, 4), Polynomial([0, 1, 0, 1.0]), nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayerError, match=r"1 \(Polynomial\) has degree 3"):
        compile_for(cubic, (4,))
    with pytest.raises(ValueError, match="1 image a query"):
        compile_model(
            linear(4), input_shape=(4,), input_range=(0.0, 1.0), batch_size=2, parties=PARTIES
        )


def test_the_plan_tells_no_more_than_magnitudes() -> None:
    """Two models of one architecture, one with signs turned and connections cut."""
    plans = []
    for change in (False, True):
        model = nn.Sequential(
            nn.Linear(9, 20), Polynomial([0.1, 0.5, 0.3]), nn.Linear(20, 7), Square()
        )
        model.append(nn.Linear(7, 3))
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.uniform_(-0.2, 0.2)
            model[2].weight[3, 4] = 0.0 if change else 1e-6
            if change:
                model[4].weight *= -1
                model[4].bias *= -1
        plans.append(json.loads(compile_for(model, (9,)).plan.to_json()))
    assert plans[0].pop("model_version") != plans[1].pop("model_version")
    assert plans[0].pop("predicted_ms") > 0
    assert plans[1].pop("predicted_ms") > 0
    assert plans[0] == plans[1]


def test_the_version_of_hidden_weights_confirms_no_guess() -> None:
    versions = {compile_for(linear(4), (4,)).plan.model_version for _ in range(2)}
    assert len(versions) == 2


def test_weights_are_encrypted_afresh_and_answers_re_randomised() -> None:
    compiled = compile_for(linear(4), (4,))
    plan = compiled.plan
    owner = DataOwner(plan)
    material = owner.public_material()
    one, two = (compiled.encrypt_weights(material) for _ in range(2))
    bodies = (np.frombuffer(m[HEAD:-MAC_BYTES], dtype="<u8") for m in (one, two))
    assert not np.any(np.equal(*bodies))
    evaluator = BlindEvaluator(plan, material, one, name="cloud")
    _, body = open_message(
        owner.encrypt([0.0, 1.0, 0.5, 0.25]),
        Tag.QUERY,
        plan,
        plan.digest,
        lambda _: evaluator._session_key,
    )
    # All else is deterministic: without the encryption of zero the answers would be equal.
    answers = [evaluator._encoded.answer(body, evaluator._keys) for _ in range(2)]
    first, second = (np.frombuffer(a[: 8 * plan.degree], dtype="<u8") for a in answers)
    assert not np.any(first == second)


@pytest.mark.parametrize("how", ["flip", "cut", "swap", "residue", "secret"])
def test_altered_weights_are_refused(how: str) -> None:
    compiled = compile_for(linear(4), (4,))
    plan = compiled.plan
    owner = DataOwner(plan)
    material = owner.public_material()
    weights = compiled.encrypt_weights(material)

    def signed(at: int, content: bytes) -> bytes:
        mutant = bytearray(weights)
        mutant[at : at + len(content)] = content
        key = material[HEAD : HEAD + 32]
        body = bytes(mutant[:-MAC_BYTES])
        return body + hmac.new(key, body, hashlib.sha256).digest()

    secret = owner._secret.residues[0].tobytes()
    mutants: dict[str, Callable[[], bytes]] = {
        "flip": lambda: weights[:200] + bytes([weights[200] ^ 1]) + weights[201:],
        "cut": lambda: weights[:-1],
        "swap": lambda: owner.encrypt([0.0] * 4),
        "residue": lambda: signed(HEAD, b"\xff" * 8),
        # The second polynomial of the first ciphertext.
        "secret": lambda: signed(HEAD + 8 * plan.degree, secret),
    }
    words = {
        "flip": "authentication",
        "cut": "bytes",
        "swap": "bytes",
        "residue": "below its prime",
        "secret": "secret key",
    }[how]
    with pytest.raises(MessageError, match=words):
        BlindEvaluator(plan, material, mutants[how](), name="cloud")
