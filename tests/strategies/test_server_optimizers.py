"""Server optimizers step as published."""

import math
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord

from strategies import (
    Checkpointing,
    ServerAdam,
    ServerOptimizer,
    ServerSGD,
    ServerYogi,
)
from strategies.checkpoint import Checkpoint
from tests.strategies.federation import (
    grid_of,
    model,
    noiseless,
)


def test_server_optimizers_step_as_published() -> None:
    """Reddi et al. 2021, algorithm 2, by hand for one number."""
    u1, u2, start = np.array([0.3]), np.array([-0.1]), np.array([1.0])
    sgd = ServerSGD(0.5, momentum=0.9)
    (x,) = sgd.step([start], [u1.copy()])
    (x,) = sgd.step([x], [u2.copy()])
    assert x[0] == pytest.approx(1 + 0.5 * 0.3 + 0.5 * (0.9 * 0.3 - 0.1))
    for optimizer, second in (
        (ServerAdam(0.1), lambda v, u: 0.99 * v + 0.01 * u * u),
        (ServerYogi(0.1), lambda v, u: v - 0.01 * u * u * np.sign(v - u * u)),
    ):
        x, m, v = 1.0, 0.0, 1e-6
        (found,) = optimizer.step([start], [u1.copy()])
        (found,) = optimizer.step([found], [u2.copy()])
        for u in (0.3, -0.1):
            m, v = 0.9 * m + 0.1 * u, second(v, u)
            x += 0.1 * m / (math.sqrt(v) + 1e-3)
        assert found[0] == pytest.approx(x)


def test_the_iterates_are_averaged(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, optimizer=ServerSGD(iterate_average=0.5))
    seen: list[float] = []

    def look(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(float(arrays.to_numpy_ndarrays()[0][0]))
        return MetricRecord({"x": seen[-1]})

    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    result = strategy.start(grid, model((1,)), num_rounds=3, evaluate_fn=look)
    np.testing.assert_allclose(seen, [0, 0.1, 0.15, 0.225], rtol=1e-4)
    assert float(result.arrays.to_numpy_ndarrays()[0][0]) == pytest.approx(0.225, rel=1e-4)


def test_the_average_of_a_float16_model_moves_as_that_of_a_float32_one(tmp_path: Path) -> None:
    """A step of the average is a thousandth of what is left, which half precision rounds away."""
    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.01) for x in a])

    def averaged(dtype: type[np.floating]) -> list[float]:
        folder = tmp_path / dtype.__name__
        folder.mkdir()
        path = folder / "checkpoint"
        found = []
        for rounds in (20, 40):  # the second goes on from the checkpoint of the first
            strategy = noiseless(
                folder,
                optimizer=ServerSGD(iterate_average=0.999),
                checkpointing=Checkpointing(path, resume=True),
            )
            result = strategy.start(grid, ArrayRecord([np.ones(3, dtype)]), num_rounds=rounds)
            (array,) = result.arrays.to_numpy_ndarrays()
            assert array.dtype == dtype
            found.append(float(array[0]))
        return found

    half, single = averaged(np.float16), averaged(np.float32)
    assert single[1] - single[0] > 5e-3
    np.testing.assert_allclose(half, single, atol=1e-3)  # half precision has steps of 1e-3 there


@pytest.mark.parametrize(
    "optimizer", [ServerSGD(momentum=0.9, iterate_average=0.9), ServerAdam(), ServerYogi()]
)
def test_what_is_kept_between_rounds_of_a_float16_model_is_wider(
    optimizer: ServerOptimizer, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    strategy = noiseless(tmp_path, optimizer=optimizer, checkpointing=Checkpointing(path))
    strategy.start(grid_of(4), ArrayRecord([np.ones(3, np.float16)]), num_rounds=1)
    checkpoint = Checkpoint.load(path)
    kept = checkpoint.slot("optimizer") | checkpoint.slot("average")
    assert kept
    assert {array.dtype for array in kept.values()} == {np.dtype(np.float32)}
