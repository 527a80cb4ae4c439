"""What a worker sees is uniformly random, whatever the question and the model.

Each test of uniformity raises a false alarm with probability 10^-9 or less: a chi-square test of
bytes has 255 degrees of freedom a place, and its bound is their upper quantile at 10^-9 over the
number of tests.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms.randomness import KeyStream
from privacy.shared_inference import SharedModel, compile_model, material, ring
from privacy.shared_inference.ring import Ring, quantised
from privacy.shared_inference.worker import answer_body
from tests.privacy.shared_inference.parties import Protocol, session
from tests.privacy.shared_inference.shared_models import made

_FALSE_ALARM = 1e-9
_ROUNDS = 300


def compiled(name: str, answer: str = "logits", *, public: bool = False) -> SharedModel:
    shape, model = made(name)
    given = {"input_shape": shape, "input_range": (-1, 1), "answer": answer, "batch_size": 8}
    return compile_model(model, **given, public_model=public)


def seen(protocol: Protocol, inputs: np.ndarray, rounds: int = _ROUNDS) -> list[np.ndarray]:
    """Each message of a conversation, over many conversations: (rounds, bytes)."""
    integers = quantised(inputs, protocol.plan.input_bits)
    listed = []
    for _ in range(rounds):
        protocol.opened.clear()
        protocol.run(integers)
        listed.append([np.frombuffer(message, np.uint8) for message in protocol.opened])
    return [np.stack(messages) for messages in zip(*listed, strict=True)]


def alarms(messages: list[np.ndarray]) -> list[str]:
    """Statistics that uniform bytes, fresh in every conversation, do not show."""
    tests = 9 * len(messages)
    bound = stats.chi2.isf(_FALSE_ALARM / (2 * tests), 255)
    raised = []
    for number, values in enumerate(messages):
        places = 8 if values.shape[1] % 8 == 0 else 1  # of a word; bits that are opened have none
        words = values.reshape(len(values), -1, places)
        change = words[1:] ^ words[:-1]
        for kind, drawn in (("bytes", words), ("changes", change)):
            for place in range(places):
                counts = np.bincount(drawn[..., place].ravel(), minlength=256)
                expected = counts.sum() / 256
                if expected >= 5 and ((counts - expected) ** 2).sum() / expected > bound:
                    raised.append(f"message {number}: {kind} at {place}")
    return raised


INPUTS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
    "lowest": lambda shape: np.full(shape, -1.0),
    "zeros": np.zeros,
    "noise": lambda shape: np.random.default_rng(0).uniform(-1, 1, shape),
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", ["relu", "squares", "pools", "curves"])
def test_messages_are_uniform_for_every_input(name: str, inputs: str) -> None:
    model = compiled(name)
    protocol = Protocol(model.plan, model.weights)
    chosen = INPUTS[inputs]((8, *model.plan.input_shape))
    messages = seen(protocol, chosen)
    # Both shares of the answer add up to it; each alone is as random as the rest.
    assert alarms(messages) == []


@pytest.mark.parametrize("name", ["pools", "residual"])
def test_messages_are_uniform_where_the_workers_know_the_model(name: str) -> None:
    model = compiled(name, public=True)
    protocol = Protocol(model.plan, model.weights)
    assert alarms(seen(protocol, np.zeros((8, *model.plan.input_shape)))) == []


def test_shares_of_an_answer_tell_the_answer_alone_whatever_the_weights() -> None:
    """The data owner sees both; of a model that the workers know they would be W times a mask."""
    model = compiled("linear", public=True)
    for weights in (np.zeros_like(model.weights), model.weights << np.uint64(8)):
        protocol = Protocol(model.plan, weights)
        assert alarms(seen(protocol, np.zeros((8, 12)))) == []


def test_the_masked_model_is_uniform() -> None:
    """As the model owner's messages have it, over many providers."""
    model = compiled("relu")
    bytes_of = [session(model).alice._weights.masked for _ in range(_ROUNDS)]
    assert alarms([np.stack([masked.view(np.uint8) for masked in bytes_of])]) == []


class _Broken(ring.Stream):
    """A stream whose masks are worse than random."""

    way = ""

    def take(self, *shape: int) -> Ring:
        drawn = super().take(*shape)
        if self.way == "fixed":
            return np.full(shape, 12345, np.uint64)
        if self.way == "short":
            return drawn >> np.uint64(20)
        if self.way == "biased":
            return drawn | np.uint64(1)
        return drawn


class _SameKey(KeyStream):
    """The same key for every question."""

    def __init__(self, key: bytes) -> None:
        super().__init__(bytes(32))


@pytest.mark.parametrize("way", ["fixed", "short", "biased", "reused"])
def test_the_statistics_see_masks_that_are_worse(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled("relu")
    protocol = Protocol(model.plan, model.weights)
    if way == "reused":
        monkeypatch.setattr(ring, "KeyStream", _SameKey)
    else:
        monkeypatch.setattr(_Broken, "way", way)
        monkeypatch.setattr(material, "Stream", _Broken)
    assert alarms(seen(protocol, np.zeros((8, *model.plan.input_shape)))) != []


def test_a_class_is_told_and_no_logit() -> None:
    """The bits of an answer that go to the data owner are those that hold the class."""
    model = compiled("relu", "class")
    protocol = Protocol(model.plan, model.weights)
    inputs = quantised(np.zeros((8, 10)), model.plan.input_bits)
    total = protocol.run(inputs)
    assert (total >> np.uint64(40)).any() or (total > 3).any()  # it holds the logit too
    body = np.frombuffer(answer_body(model.plan, total), "<u4")
    assert body.max() < 4
    assert np.array_equal(body, total[0] & np.uint64(3))


def test_the_sequence_and_the_sizes_of_messages_depend_on_the_plan_alone() -> None:
    model = compiled("pools")
    protocol = Protocol(model.plan, model.weights)
    sizes = set()
    for make in INPUTS.values():
        messages = seen(protocol, make((8, *model.plan.input_shape)), rounds=2)
        sizes.add(tuple(message.shape[1] for message in messages))
    (listed,) = sizes
    exchanged = listed[1:-2]
    assert len(exchanged) == 3 * model.plan.exchanges
    assert sum(exchanged) == 3 * model.plan.exchanged_bytes
