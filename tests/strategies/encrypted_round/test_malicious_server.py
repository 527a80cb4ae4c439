"""What one image does to a node's count, whatever the server answers: the claim, attacked.

The server has the session key, the first thing in the public material, and so may seal any
ciphertext of the round under any number. Images and labels of neighbours differ in one image; which
images are drawn, and in what order, depends on neither.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.accounting import Full, GaussianRelease, epsilon, read_ledger
from privacy.inference import CompiledModel, Evaluator, compile_model
from privacy.inference.messages import Tag, open_message, seal_message
from privacy.inference.public_keys import open_material
from strategies.encrypted_round import NoisedAccuracy
from strategies.encrypted_round.messages import Questions
from strategies.encrypted_round.node import count_right_answers, make_questions, private_folder

IMAGES = 20
Server = Callable[[CompiledModel, Questions], Sequence[bytes]]


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    """Class 1 where the first pixel is above a half, class 0 otherwise."""
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        layer.weight[1, 0] = 2.0
    return compile_model(nn.Sequential(layer), input_shape=(6,), input_range=(0.0, 1.0))


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image is the one that differs: what holds for every order holds for this one."""

    def first(_: Any, population: Sequence[int], count: int) -> list[int]:
        return list(population)[:count]

    monkeypatch.setattr(random.SystemRandom, "sample", first)


def follows(compiled: CompiledModel, asked: Questions) -> list[bytes]:
    evaluator = Evaluator(compiled, asked.material)
    return [evaluator.evaluate(query) for query in asked.queries]


def first_for_all(compiled: CompiledModel, asked: Questions) -> list[bytes]:
    """Evaluates the first question's ciphertext under every question's number."""
    plan, evaluator = compiled.plan, Evaluator(compiled, asked.material)
    key, _ = open_material(asked.material, plan, plan.digest)
    opened = [open_message(q, Tag.QUERY, plan, plan.digest, lambda _: key) for q in asked.queries]
    first = bytes(opened[0][1])
    return [
        evaluator.evaluate(seal_message(Tag.QUERY, plan, plan.digest, number, first, key))
        for number, _ in opened
    ]


def moved(compiled: CompiledModel, server: Server, folder: Path) -> int:
    """By how much the first image moves the node's count."""
    private_folder(folder)
    counts = []
    for pixel in (0.0, 1.0):
        images, labels = np.zeros((IMAGES, 6)), np.zeros(IMAGES, dtype=np.int64)
        images[0, 0] = pixel
        asked = make_questions(compiled.plan, images, labels, images=IMAGES, folder=folder)
        right, of = count_right_answers(server(compiled, asked), folder=folder)
        assert of == IMAGES
        counts.append(right)
    return abs(counts[0] - counts[1])


def epsilon_of(report: NoisedAccuracy, sensitivity: int) -> float:
    return epsilon([GaussianRelease(report.noise / sensitivity, Full())], delta=report.delta)


def test_a_server_that_follows_the_protocol_sees_what_the_ledger_charges(
    compiled: CompiledModel, tmp_path: Path
) -> None:
    report = NoisedAccuracy()
    change = moved(compiled, follows, tmp_path / "node")
    assert change == 1
    report.release(1, IMAGES, tmp_path / "node", name="run 7")
    ledger = read_ledger(tmp_path / "node" / "report-ledger.jsonl")
    assert epsilon_of(report, change) <= ledger.epsilon(report.delta) <= report.epsilon
    (record,) = ledger.records
    assert record.run == "run 7, against a server that computes each answer from its own question"


def test_a_malicious_server_sees_what_malicious_epsilon_says(
    compiled: CompiledModel, tmp_path: Path
) -> None:
    """One image decides every answer: ε of one report is the wrong number here."""
    report = NoisedAccuracy()
    change = moved(compiled, first_for_all, tmp_path)
    assert change == IMAGES
    assert report.epsilon < epsilon_of(report, change) <= report.malicious_epsilon(IMAGES)


def test_epsilon_against_a_malicious_server_grows_with_the_images_asked_about() -> None:
    """The figures of the threat model."""
    report = NoisedAccuracy()
    assert report.malicious_epsilon(1) <= report.epsilon
    assert 14.4 < report.malicious_epsilon(10) < 14.5
    assert 472 < report.malicious_epsilon(100) < 473
    with pytest.raises(ValueError, match="images"):
        report.malicious_epsilon(0)
