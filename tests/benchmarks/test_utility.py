"""The utility benchmark: who holds what, its gradients, its loop, its page."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import Row, Spread
from benchmarks.utility import report
from benchmarks.utility.cells import BANDED, CELLS, GEYER_SHARDS, TURNS
from benchmarks.utility.clients import Holdings, label_sorted
from benchmarks.utility.models import Linear, Network
from benchmarks.utility.rounds import Setting, noise_multiplier, train
from privacy.accounting import Budget, Full, GaussianRelease, epsilon
from privacy.mechanisms import SeededRandomness

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("shards", "copies"), [(20, 1), (20, 5)])
def test_each_image_is_with_as_many_clients_as_promised(shards: int, copies: int) -> None:
    labels = np.repeat(np.arange(10), 30)
    holdings = label_sorted(labels, shards=shards, copies=copies, draw=RNG)
    assert holdings.shards.shape == (20, 15)
    assert holdings.clients.shape == (shards * copies // 2, 2)
    rows, counts = np.unique(holdings.shards[holdings.clients], return_counts=True)
    assert rows.tolist() == list(range(300))
    assert set(counts) == {copies}
    assert all(len(set(labels[shard])) == 1 for shard in holdings.shards)


def test_gradients_are_those_of_the_models_of_the_application() -> None:
    labels = RNG.integers(0, 10, (3, 7))
    for name, inputs in (
        ("hog-linear", RNG.normal(size=(3, 7, 392)).astype(np.float32)),
        ("cnn", RNG.random((3, 7, 1, 28, 28)).astype(np.float32)),
    ):
        network = Network(name, inputs, labels)
        model = Linear(inputs, labels) if name == "hog-linear" else network
        weights = network.first() + RNG.normal(size=network.first().size).astype(np.float32) / 9
        shards = np.array([0, 2])
        result = model.gradients(weights, shards)
        for shard, gradient in zip(shards, result, strict=True):
            parameters = network._set(weights)
            loss = cross_entropy(
                network._model(torch.from_numpy(inputs[shard])), torch.from_numpy(labels[shard])
            )
            expected = torch.cat([g.ravel() for g in torch.autograd.grad(loss, parameters)])
            np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-4, atol=1e-6)
        flat = inputs.reshape(21, *inputs.shape[2:])
        assert model.accuracy(weights, flat, labels.ravel()) == network.accuracy(
            weights, flat, labels.ravel()
        )


def test_without_noise_a_round_is_the_mean_of_clipped_steps() -> None:
    inputs = RNG.normal(size=(4, 5, 392)).astype(np.float32)
    model = Linear(inputs, RNG.integers(0, 10, (4, 5)))
    holdings = Holdings(np.zeros((4, 5), np.int64), np.array([[0, 1], [2, 3], [0, 3]]))
    gradients = model.gradients(model.first(), np.arange(4))
    steps = -gradients[holdings.clients].mean(axis=1)
    norms = np.linalg.norm(steps, axis=1)
    norm = float(np.sort(norms)[1]) * 1.001  # one of the three is clipped
    steps *= np.minimum(1, norm / norms)[:, None]
    result = train(
        model,
        holdings,
        Setting(1.0, 1, norm, 2.0, momentum=0.0),
        noise_multiplier=0.0,
        randomness=SeededRandomness(0),
    )
    np.testing.assert_allclose(result, 2.0 * steps.mean(axis=0), atol=2e-5)


def test_every_cell_is_whole_and_spends_its_budget_and_no_more() -> None:
    for cell in CELLS + TURNS:
        assert cell.shards * cell.copies == 2 * cell.clients
        assert cell.copies == 1 or cell.shards == GEYER_SHARDS
    assert len({cell.case for cell in CELLS + TURNS}) == len(CELLS + TURNS)
    setting, budget = Setting(1.0, 60, 0.015, 200), Budget(epsilon=8.0, delta=1e-3)
    z = noise_multiplier(setting, budget)
    spent = epsilon({GaussianRelease(z, setting.sampling): 60}, delta=1e-3)
    assert 7.99 < spent <= 8.0
    in_turns = next(cell for cell in TURNS if cell.protocol == BANDED)
    z = noise_multiplier(in_turns.setting, in_turns.budget)
    ten = epsilon({GaussianRelease(z, Full()): 10}, delta=1e-5)  # of a hundred rounds
    assert in_turns.budget.epsilon - 0.01 < ten <= in_turns.budget.epsilon


def test_the_page_shows_what_was_run_and_names_what_was_not(tmp_path) -> None:
    cell = CELLS[0]
    rows = [
        Row(cell.case, "test accuracy", "of 1", Spread(0.97, 0.96, 0.98, 3), Spread.of([0.78])),
        Row(cell.case, "noise multiplier", "z", Spread.of([3.7])),
        Row(cell.case, "rounds", "T", Spread.of([60.0])),
        Row(cell.case, "sampling rate", "q", Spread.of([1.0])),
    ]
    result = report.figures({"rows": [row.as_dict() for row in rows]})
    shown = report.table(result)
    assert "| 0.9700 | 0.9600 to 0.9800 | 3 | 0.78 |" in shown
    assert CELLS[1].case in shown.split("Not run: ")[1]
    row = Row(TURNS[0].case, "test accuracy", "of 1", Spread(0.97, 0.96, 0.98, 3))
    z = Row(TURNS[0].case, "noise multiplier", "z", Spread.of([1.5]))
    turns = report.turns_table(report.figures({"rows": [row.as_dict(), z.as_dict()]}))
    assert "| hog-linear | 8 | 0.9700 (0.9600 to 0.9800), z = 1.500 |  |" in turns
    report.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
