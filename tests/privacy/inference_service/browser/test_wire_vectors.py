"""Python and JavaScript compute the test vectors of the wire format, and read each other."""

import json
from typing import Any

import numpy as np
import pytest
from torch import nn

from privacy.inference import Evaluator, MeasurementOwner, Square, compile_model
from privacy.inference.ckks import Ring, SecretKey, expand
from privacy.inference.messages import Reader, Tag, open_message, rebind
from privacy.inference.owner.secret_state import SecretState
from tools import wire_vectors

WRITTEN = json.loads(wire_vectors.FILE.read_text())


def alike(one: Any, other: Any) -> bool:
    """Equal, doubles to a few units of their last places."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-9, atol=1e-12))
    return bool(one == other)


@pytest.mark.parametrize("entry", sorted(WRITTEN))
def test_python_computes_the_vectors(entry: str) -> None:
    computed = json.loads(json.dumps(wire_vectors.vectors()))
    assert alike(computed[entry], WRITTEN[entry])


def test_javascript_computes_the_vectors(modules: Any) -> None:
    computed = modules.evaluate(
        "async (given) => (await import('/vectors.js')).computed(given)", WRITTEN
    )
    assert [entry for entry in WRITTEN if not alike(computed[entry], WRITTEN[entry])] == []


def test_a_query_made_in_the_browser_is_read_by_python_and_an_answer_by_the_browser(
    modules: Any,
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), Square(), nn.Linear(8, 3))
    compiled = compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0))
    plan = compiled.plan
    x = [0.5, -0.25, 1.0, -1.0, 0.0, 0.75]
    binding = wire_vectors.BINDING
    material, query = map(
        bytes.fromhex,
        modules.evaluate(
            "async (given) => (await import('/vectors.js')).messages(...given)",
            [plan.to_json(), wire_vectors.SESSION_KEY.hex(), [x], binding.hex()],
        ),
    )
    ring = Ring(plan.degree, plan.prime_bits)
    secret = wire_vectors.secret_of(plan.degree).astype(np.float64)
    places = tuple(range(len(ring.primes)))
    residues = ring.transformed(secret, places).astype(np.uint64)

    # What Python's owner would have encrypted.
    _, body = open_message(query, Tag.QUERY, plan, plan.digest, lambda _: wire_vectors.SESSION_KEY)
    reader = Reader(body)
    primes = ring.primes[: plan.levels]
    read = []
    for _ in range(plan.ciphertexts):
        first = reader.residues(primes, plan.degree)
        second = expand(reader.raw(32), primes, plan.degree)
        pair = ring.ciphertext(np.stack([first, second]), 2.0**plan.input_scale_bits)
        read.append(SecretKey(ring, residues).decrypt(pair))
    taps = plan.taps
    placed = np.append(x, 0.0)[np.where(taps < 0, -1, taps)]
    expected = placed[0] + (1j * placed[1] if len(placed) > 1 else 0)
    # Errors of variance 21/2, and rounding; from 6,144 complex slots, 5 standard deviations.
    noise = (np.array(read) - expected) * 2.0**plan.input_scale_bits
    variance = np.square(np.abs(noise)).mean() / plan.degree
    assert abs(variance / (21 / 2 + 1 / 12) - 1) < 5 / np.sqrt(noise.size)

    # Its keys evaluate; Python and the browser decrypt the answer.
    answer = Evaluator(compiled, rebind(material, wire_vectors.SESSION_KEY)).evaluate(query)
    state = SecretState(wire_vectors.SESSION_KEY, residues, 1, 0, {0: 1})
    owner = MeasurementOwner.from_secret_state(plan, state.to_bytes(plan.digest))
    logits = owner.logits(answer)
    assert np.abs(logits - compiled.predict(np.array([x]))).max() < 2.0**plan.worst_error_bits
    released = modules.evaluate("(bytes) => owner.decrypt(new Uint8Array(bytes))", list(answer))
    assert released["labels"] == [int(logits.argmax())]
    assert released["logits"] is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0.0, 0.7, -0.9, 5.1, -1e-50, -99.9], [0.1, 0.9, 0.3, 59.9, 1e-50, -0.1]),
        (-0.3, 0.1),
        (0.7, 0.9),
    ],
)
def test_a_site_declares_decimal_ends_and_the_browser_takes_the_plan_as_python_does(
    modules: Any, low: Any, high: Any
) -> None:
    plan = compile_model(nn.Linear(6, 3), input_shape=(6,), input_range=(low, high)).plan
    accept = "async ([text, contract]) => (await import('/vectors.js')).accepted(text, contract)"
    contract = {"inputShape": [6], "inputRange": [low, high], "classes": 3}
    assert modules.evaluate(accept, [plan.to_json(), contract]) == "accepted"
    contract["inputRange"] = [low, np.multiply(high, 1 + 2.0**-22).tolist()]
    assert "in another range" in modules.evaluate(accept, [plan.to_json(), contract])
