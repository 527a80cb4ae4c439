"""What a round computes: weights, dropouts, clipping, metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from privacy.accounting import Poisson, read_ledger
from privacy.mechanisms import ContinuousGaussian, LatticeGaussian
from strategies import (
    CappedWeights,
    FlatClipping,
    Population,
)
from strategies.model_schema import ModelSchema
from tests.strategies.federation import (
    ask,
    grid_of,
    idle,
    model,
    nobody_of,
    noiseless,
    released,
    sent,
)


def test_uniform_weights_average_over_the_population(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    nodes = ask(strategy, grid_of(4), model())
    (w,) = released(strategy, sent(nodes, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}))
    np.testing.assert_allclose(w, [0.25, 0, 0], rtol=1e-4)


def test_capped_weights_are_the_declared_estimator(tmp_path: Path) -> None:
    """Σ min(n/ŵ, 1) Δ / W, whatever the counts of those who came."""
    examples = {1: 5.0, 2: 10.0, 3: 1000.0, 4: 1.0}
    strategy = noiseless(tmp_path, weighting=CappedWeights(cap=10, total_weight=3.2))
    nodes = ask(strategy, grid_of(4), model())
    told = {n: 0.1 * n for n in nodes}
    replies = sent(nodes, told, lambda n: {"num-examples": examples[n]})
    expected = (0.5 * 0.1 + 1 * 0.2 + 1 * 0.3 + 0.1 * 0.4) / 3.2
    np.testing.assert_allclose(released(strategy, replies)[0][0], expected, rtol=1e-4)


def test_the_denominator_does_not_know_who_came(tmp_path: Path) -> None:
    """With all, some or nobody there, a client moves the model by the same."""
    for present in ([1], [1, 2], [1, 2, 3, 4]):
        folder = tmp_path / str(len(present))
        folder.mkdir()
        strategy = noiseless(folder)
        nodes = ask(strategy, grid_of(4), model())
        (w,) = released(strategy, sent(nodes, {n: 0.4 * (n == 1) for n in present}))
        np.testing.assert_allclose(w, [0.1, 0, 0], rtol=1e-4)


def test_an_empty_cohort_is_a_round_like_any_other(tmp_path: Path) -> None:
    """It is paid, noised and released: that nobody came must not show."""
    strategy = noiseless(tmp_path, noise_multiplier=1.0)
    ask(strategy, nobody_of(4), model((1000,)))
    (w,) = released(strategy, [])
    assert 0.2 < w.std() < 0.3  # z·S/N = 1/4
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 1


def test_a_zero_update_leaves_the_model(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    result = strategy.start(grid_of(4, idle), model((5,), (2, 2)), num_rounds=3)
    assert not any(a.any() for a in result.arrays.to_numpy_ndarrays())


def test_offline_members_are_not_replaced(tmp_path: Path) -> None:
    """Poisson draws over all; the drawn who are away simply contribute nothing."""
    strategy = noiseless(tmp_path, population=200, sampling=Poisson(0.5))
    grid = grid_of(200)
    asked = [len(ask(strategy, grid, model(), r)) for r in range(1, 21)]
    grid.offline = set(range(1, 151))
    fewer = [len(ask(strategy, grid, model(), r)) for r in range(21, 41)]
    assert 90 < np.mean(asked) < 110
    assert 20 < np.mean(fewer) < 30  # not drawn again from those who are there


def test_an_unknown_node_is_ignored_where_the_population_is_listed(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, population=Population.connected(grid_of(4)))
    assert set(ask(strategy, grid_of(4), model())) == {1, 2, 3, 4}
    assert set(ask(strategy, grid_of(9), model(), 2)) == {1, 2, 3, 4}


def test_removing_one_client_moves_a_sum_by_at_most_the_norm(tmp_path: Path) -> None:
    """Whoever it is, whenever it is away, and wherever the others come from."""

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        return [np.full_like(a, [9.0, -9.0, 9.0, -9.0][partition]) for a in arrays]

    def total(absent: set[int]) -> Any:
        (folder := tmp_path / "-".join(map(str, absent or {0}))).mkdir()
        grid = grid_of(4, update)
        grid.offline = absent
        nodes = noiseless(folder, population=4, min_available_nodes=1)
        return 4 * nodes.start(grid, model((1,)), num_rounds=1).arrays.to_numpy_ndarrays()[0]

    everyone = total(set())
    for absent in range(1, 5):
        assert np.linalg.norm(everyone - total({absent})) <= 1 + 1e-6


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_both_mechanisms_release_the_same_sum(mechanism: Any, tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, mechanism=mechanism, clipping=FlatClipping(0.5))
    nodes = ask(strategy, grid_of(4), model())
    (w,) = released(strategy, sent(nodes, {1: 0.1, 2: -9.0, 3: 0.3}))
    np.testing.assert_allclose(w, [(0.1 - 0.5 + 0.3) / 4, 0, 0], rtol=1e-3)
    assert strategy.report().mechanism == mechanism.name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_a_record_holds_what_flower_itself_would_write(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    schema = ModelSchema(ArrayRecord({"w": Array(np.zeros(shape, dtype))}))
    (array,) = schema.record([values]).values()
    assert vars(array) == vars(Array(values))
