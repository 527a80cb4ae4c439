"""Noise that a thread draws ahead is the noise that would have been drawn without it."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from privacy.mechanisms import Randomness, SeededRandomness, SystemRandomness, add_gaussian
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    PoissonBatches,
    PublicCount,
    train,
)
from privacy.training import _noise_ahead as _ahead

SIZES = [10, 3 * _ahead._WORTH_A_THREAD]  # without a thread, and with one


@pytest.mark.parametrize("size", SIZES)
def test_every_step_draws_afresh_and_in_order(size: int) -> None:
    randomness, again = SeededRandomness(1), SeededRandomness(1)
    with _ahead.NoiseAhead(size, sigma=2.0, randomness=randomness) as noise:
        for _ in range(3):
            assert (randomness.bernoulli(0.5, 5) == again.bernoulli(0.5, 5)).all()
            noise.begin()
            expected = np.zeros(size)
            add_gaussian(expected, sigma=2.0, randomness=again)
            taken = noise.take()
            np.testing.assert_array_equal(taken, expected)
            taken += 1e9  # what a step leaves there is not in the next one's noise


@pytest.mark.parametrize("size", SIZES)
def test_noise_is_taken_once(size: int) -> None:
    with _ahead.NoiseAhead(size, sigma=1.0, randomness=SystemRandomness()) as noise:
        with pytest.raises(RuntimeError, match="no noise"):
            noise.take()
        noise.begin()
        with pytest.raises(RuntimeError, match="not taken"):
            noise.begin()
        noise.take()
        with pytest.raises(RuntimeError, match="no noise"):
            noise.take()


class _Failing(Randomness):
    """The operating system's, until it fails in the second step's noise."""

    private = True

    def __init__(self) -> None:
        self._large = 0

    def bytes(self, count: int) -> bytes:
        self._large += count > 10_000
        if self._large > 5 and threading.current_thread() is not threading.main_thread():
            raise OSError("no randomness left")
        return SystemRandomness().bytes(count)


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(100, 100)


def _train(model: nn.Module, randomness: Randomness) -> None:
    generator = torch.Generator().manual_seed(0)
    train(
        model,
        (torch.rand(20, 100, generator=generator), torch.arange(20)),
        loss=cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        protection=ClipAndNoise(
            clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=PublicCount()
        ),
        batches=PoissonBatches(steps=6, sampling_rate=0.5),
        ledger=ClientLedger(dataset="made up"),
        randomness=randomness,
        physical_batch_size=4,
    )


def test_a_seed_gives_the_same_model_with_and_without_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(_ahead, "_WORTH_A_THREAD", least)
        models.append(_model())
        _train(models[-1], SeededRandomness(7))
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)
    assert not torch.equal(models[0].weight, _model().weight)


def test_no_thread_is_left_and_its_error_reaches_the_caller() -> None:
    before = threading.active_count()
    _train(_model(), SystemRandomness())
    assert threading.active_count() == before
    with pytest.raises(OSError, match="no randomness left"):
        _train(_model(), _Failing())
    assert threading.active_count() == before
