"""What a round computes: weights, dropouts, clipping, metrics."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from privacy.accounting import GaussianRelease, Poisson, read_ledger
from privacy.mechanisms import ContinuousGaussian, LatticeGaussian
from strategies import (
    AdaptiveClipping,
    CappedWeights,
    DPFedAvg,
    FixedSize,
    FlatClipping,
    Full,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    PerLayerClipping,
    Population,
    ServerAdam,
    ServerSGD,
    ServerYogi,
)
from strategies.errors import PopulationExceededError
from tests.strategies.federation import (
    answer,
    ask,
    client_app,
    grid_of,
    idle,
    model,
    nobody_of,
    noiseless,
    released,
)


def sent(nodes: dict[int, Any], values: dict[int, float], metrics: Any = None) -> list[Any]:
    """Replies of one number each."""
    return [
        answer(nodes[n], [np.array([v, 0, 0], np.float32)], metrics and metrics(n))
        for n, v in values.items()
    ]


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


def test_more_clients_than_places_are_refused_before_the_first_round(tmp_path: Path) -> None:
    """Else one client's leaving would let another in, and the sum move by 2 S."""
    strategy = noiseless(tmp_path, population=4)
    with pytest.raises(PopulationExceededError, match="population is 4, but more clients"):
        strategy.start(grid_of(5), model(), num_rounds=1)
    with pytest.raises(PopulationExceededError):
        ask(strategy, grid_of(5), model())
    assert not read_ledger(tmp_path / "ledger.jsonl").records


@pytest.mark.parametrize(
    ("early", "late", "rounds"),
    [
        ({5}, set(), 2),  # a fifth comes beside four
        ({5}, {1}, 2),  # and for one that has left: were that one not there, it had a place
        ({1, 5}, {5}, 5),  # the fourth place was free
    ],
)
def test_one_client_too_many_later_ends_the_run_with_what_it_has(
    early: set[int], late: set[int], rounds: int, tmp_path: Path
) -> None:
    grid = InProcessGrid(client_app(lambda p, r, a: [np.full_like(x, 0.1) for x in a]), 5)
    grid.offline = early

    def change(number: int, arrays: ArrayRecord) -> None:
        if number == 2:
            grid.offline = late

    strategy = noiseless(tmp_path, population=4, min_available_nodes=1)
    result = strategy.start(grid, model(), num_rounds=5, evaluate_fn=change)
    assert result.privacy is not None
    assert result.privacy.rounds == rounds
    assert (result.privacy.stopped is None) == (rounds == 5)
    if rounds == 2:
        assert "more clients than that have connected" in str(result.privacy.stopped)
        np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], 0.2, rtol=1e-4)


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


def test_per_layer_norms_hold_apart(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, clipping=PerLayerClipping({"0": 0.3, "1": 0.4}))
    assert strategy.clipping.norm == pytest.approx(0.5)
    nodes = ask(strategy, grid_of(4), model((3,), (2,)))
    replies = [
        answer(m, [np.full(3, 9, np.float32), np.zeros(2, np.float32)]) for m in nodes.values()
    ]
    a, b = released(strategy, replies)
    assert np.linalg.norm(a) == pytest.approx(0.3, rel=1e-4)
    assert not b.any()


def test_per_layer_names_are_checked() -> None:
    clipping = PerLayerClipping({"conv": 1.0, "conv.2": 2.0, "fc": 3.0})
    assert clipping.geometry(["conv.1", "conv.2.weight", "fc"]).group_of == (0, 1, 2)
    with pytest.raises(ValueError, match="'bn'"):
        clipping.geometry(["bn", "conv", "conv.2", "fc"])
    with pytest.raises(ValueError, match="fc"):
        clipping.geometry(["conv", "conv.2"])


def adaptive_round(folder: Path, far: int, **settings: Any) -> tuple[DPFedAvg, Any]:
    clipping = AdaptiveClipping(initial_norm=1.0, quantile=0.5, **settings)
    strategy = noiseless(folder, population=8, clipping=clipping)
    nodes = ask(strategy, grid_of(8), model())
    values = {n: (5.0 if n <= far else 0.1) for n in nodes}
    return strategy, released(strategy, sent(nodes, values))


@pytest.mark.parametrize("far", [0, 2, 4, 8])
def test_the_adaptive_norm_follows_the_quantile(far: int, tmp_path: Path) -> None:
    strategy, (w,) = adaptive_round(tmp_path, far)
    assert w[0] == pytest.approx((far * 1.0 + (8 - far) * 0.1) / 8, rel=1e-3)  # clipped to 1.0
    unclipped = 1 - far / 8
    assert strategy.clipping.norm == pytest.approx(math.exp(-0.2 * (unclipped - 0.5)), rel=1e-3)


def test_the_norm_that_clips_is_the_norm_its_noise_is_sized_for(tmp_path: Path) -> None:
    """Also while it shrinks and grows: every round's noise is z_Δ times that round's norm."""
    clipping = AdaptiveClipping(initial_norm=1.0, learning_rate=1.5, count_noise=4.0)
    strategy = noiseless(tmp_path, population=8, clipping=clipping, noise_multiplier=2.0)
    z_update = (2.0**-2 - 8.0**-2) ** -0.5
    size = 20_000
    norms = []
    for number in range(1, 6):
        norm = strategy.clipping.norm
        norms.append(norm)
        ask(strategy, nobody_of(8), model((size,)), number)
        (w,) = released(strategy, [], number)
        expected = z_update * norm / 8
        # The variance of 20,000 draws is χ²: ±6 standard errors, 2·10⁻⁹ a round.
        assert abs(w.var() / expected**2 - 1) < 6 * math.sqrt(2 / size)
    assert max(norms) / min(norms) > 1.5
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(2.0, Full())] * 5


def test_an_absurd_step_of_the_norm_is_held() -> None:
    clipping = AdaptiveClipping(initial_norm=1.0, learning_rate=1e6)
    clipping.follow(-1e9)
    assert clipping.norm == 1e12
    clipping.follow(1e9)
    clipping.follow(1e9)
    assert clipping.norm == 1e-12


def test_too_little_noise_on_the_count_is_refused(tmp_path: Path) -> None:
    clipping = AdaptiveClipping(count_noise=0.5)
    strategy = noiseless(tmp_path, clipping=clipping, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="count_noise"):
        ask(strategy, grid_of(4), model())


def test_train_metrics_are_dropped_by_default(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    nodes = ask(strategy, grid_of(4), model())
    replies = sent(nodes, dict.fromkeys(nodes, 0.0), lambda n: {"num-examples": 1, "loss": 3.0})
    assert strategy.aggregate_train(1, replies)[1] is None
    assert strategy.metrics.fraction_evaluate == 0
    assert list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid_of(4))) == []


def test_noised_metrics_are_averages_with_noise_and_are_paid(tmp_path: Path) -> None:
    """Out-of-range, missing and unreadable values count as the range's edge or middle."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 10.0), "acc": (0.0, 1.0)}, noise_multiplier=0.01)
    strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=rule))
    told: dict[int, Any] = {
        1: {"loss": 4.0, "acc": 1.0},
        2: {"loss": 1e30, "acc": float("nan")},
        3: {"loss": -(10**400), "acc": [1.0]},
        4: {},
    }
    messages = list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid_of(4)))
    grid = grid_of(4)
    grid.push_messages(messages)
    replies = [answer(m, model(), told[m.metadata.dst_node_id]) for m in messages]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx((4 + 10 + 0 + 5) / 4, abs=0.3)
    assert metrics["acc"] == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4, abs=0.03)
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(0.01, Full())]


def test_noised_train_metrics_share_the_rounds_noise(tmp_path: Path) -> None:
    """One cohort, one event: the update's noise grows by what the metrics take."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=2.0)
    strategy = noiseless(tmp_path, noise_multiplier=1.0, metrics=Metrics(train=rule))
    size = 20_000
    ask(strategy, nobody_of(4), model((size,)))
    record, metrics = strategy.aggregate_train(1, [])
    assert record is not None
    assert metrics is not None
    expected = (1 - 2.0**-2) ** -0.5 / 4
    variance = record.to_numpy_ndarrays()[0].var()
    assert abs(variance / expected**2 - 1) < 6 * math.sqrt(2 / size)  # fails once in 5·10⁸
    events = [r.event for r in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(1.0, Full())]


def test_metrics_that_spend_more_than_the_round_are_refused(tmp_path: Path) -> None:
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=0.5)
    strategy = noiseless(tmp_path, noise_multiplier=1.0, metrics=Metrics(train=rule))
    with pytest.raises(ValueError, match="noised metrics"):
        ask(strategy, grid_of(4), model())


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=1.0)
    fixed = FixedSize(2, 4)
    for settings, reason in (
        ({"noise_multiplier": None}, "budget.epsilon is inf"),
        ({"population": 0}, "population"),
        ({"sampling": FixedSize(2, 5)}, "population of 5"),
        ({"sampling": fixed, "clipping": AdaptiveClipping()}, "adaptive"),
        (
            {"sampling": fixed, "metrics": Metrics(fraction_evaluate=0.5, evaluate=rule)},
            "evaluation",
        ),
        ({"clipping": 0.0}, "clipping norm"),
        ({"weighting": CappedWeights(cap=1, total_weight=5)}, "total_weight"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
    ):
        with pytest.raises(ValueError, match=reason):
            noiseless(tmp_path, **settings)
    for fraction in (0.5, 1.5, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"metrics\.fraction_evaluate"):
            Metrics(fraction_evaluate=fraction, evaluate=None if fraction == 0.5 else rule)
    for optimizer in (ServerSGD, ServerAdam):
        with pytest.raises(ValueError, match="iterate_average"):
            optimizer(iterate_average=1.0)
    for ranges in ({}, {"a": (1.0, 1.0)}, {"a": (-1e308, 1e308)}, {"a": (0.0, math.inf)}):
        with pytest.raises(ValueError, match="range"):
            NoisedMetrics(ranges=ranges, noise_multiplier=1.0)


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


def test_flowers_own_loop_drives_it_too(tmp_path: Path) -> None:
    """Whoever calls the stock ``Strategy.start`` gets the same models."""
    from flwr.serverapp.strategy import Strategy

    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    result = Strategy.start(noiseless(tmp_path), grid, model((2,)), num_rounds=3)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], [0.3, 0.3], rtol=1e-4)


def test_the_public_log_tells_nothing_of_clients(tmp_path: Path) -> None:
    """Rounds with all, some and no clients there log the same lines, everywhere but in one log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("", "flwr")]
    for logger in loggers:
        logger.addHandler(handler)
    told = []
    try:
        for offline in (set(), {1, 2}, {3}):
            folder = tmp_path / str(len(told))
            folder.mkdir()
            grid = grid_of(4, lambda p, r, a: [np.full_like(x, 9.0 * p) for x in a])
            grid.offline = offline
            lines.clear()
            noiseless(folder).start(grid, model(), num_rounds=2)
            told.append([line.replace(str(folder), "") for line in lines])
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert told[0] == told[1] == told[2]
    assert any("round 2/2" in line for line in told[0])


def test_the_callers_objects_are_left_alone(tmp_path: Path) -> None:
    """Two runs from one strategy, or with one optimizer, begin alike."""
    optimizer = ServerSGD(momentum=0.9)
    clipping = AdaptiveClipping(initial_norm=1.0)
    strategy = noiseless(tmp_path, optimizer=optimizer, clipping=clipping)
    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    results = [
        strategy.start(grid, model((1,)), num_rounds=3).arrays.to_numpy_ndarrays()[0][0]
        for _ in range(2)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert clipping.norm == 1.0
    assert optimizer.state_dict() == {}
    runs = {record.run for record in read_ledger(tmp_path / "ledger.jsonl").records}
    assert len(runs) == 2


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_both_mechanisms_release_the_same_sum(mechanism: Any, tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, mechanism=mechanism, clipping=FlatClipping(0.5))
    nodes = ask(strategy, grid_of(4), model())
    (w,) = released(strategy, sent(nodes, {1: 0.1, 2: -9.0, 3: 0.3}))
    np.testing.assert_allclose(w, [(0.1 - 0.5 + 0.3) / 4, 0, 0], rtol=1e-3)
    assert strategy.report().mechanism == mechanism.name
