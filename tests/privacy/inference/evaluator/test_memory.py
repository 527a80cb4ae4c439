"""The memory that encoded weights take is known before it is taken, and refused where it lacks."""

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest
from torch import nn

from privacy.inference import CompiledModel, Square, ThreeParties, compile_model
from privacy.inference.errors import CannotPlanError
from tests.privacy.inference.inference_models import tutorial_cnn


def dense(*, batch_size: int = 1) -> CompiledModel:
    model = nn.Sequential(
        nn.Linear(64, 32), Square(), nn.Linear(32, 16), Square(), nn.Linear(16, 4)
    )
    return compile_model(model, input_shape=(64,), input_range=(0.0, 1.0), batch_size=batch_size)


def convolutional() -> CompiledModel:
    return compile_model(tutorial_cnn(), input_shape=(1, 28, 28), input_range=(0.0, 1.0))


def affine() -> CompiledModel:
    return compile_model(nn.Linear(784, 10), input_shape=(784,), input_range=(0.0, 1.0))


@pytest.mark.parametrize("make", [dense, convolutional, affine])
def test_bytes_of_encoded_weights_are_those_that_are_taken(
    make: Callable[[], CompiledModel],
) -> None:
    compiled = make()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    _ = compiled.encoded
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    taken = after - before
    assert compiled.evaluator_bytes == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_weights_that_do_not_fit_are_refused(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = dense(batch_size=batch_size)
    free = compiled.evaluator_bytes - 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with pytest.raises(CannotPlanError, match=r"MB of memory, and .* MB are free; make the model"):
        _ = compiled.encoded


def test_encrypted_weights_take_what_their_message_does() -> None:
    parties = ThreeParties("a", "b", "c")
    model = nn.Sequential(nn.Linear(64, 8), Square(), nn.Linear(8, 4))
    plan = compile_model(model, input_shape=(64,), input_range=(0.0, 1.0), parties=parties)
    assert plan.evaluator_bytes == plan.plan.weights_bytes > 0
