"""Server optimizers step as published."""

import math
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord

from strategies import (
    ServerAdam,
    ServerSGD,
    ServerYogi,
)
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
