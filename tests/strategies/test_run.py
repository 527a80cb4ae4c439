"""A run waits for its clients, and ends early with what it has."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.proto.node_pb2 import NodeInfo

from privacy.accounting import (
    GaussianRelease,
    Poisson,
    epsilon,
    read_ledger,
)
from strategies import (
    Budget,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    Population,
)
from strategies.errors import (
    PopulationExceededError,
)
from tests.strategies.federation import (
    ask,
    client_app,
    grid_of,
    model,
    noiseless,
    private,
)


def test_the_budget_stops_the_run_and_keeps_the_last_model(tmp_path: Path) -> None:
    """Round 4 of 9 would pass ε: it and the rest send nothing, and the result says so."""
    limit = epsilon({GaussianRelease(20.0, Poisson(1.0)): 3}, delta=1e-5) * 1.0001
    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    sent: list[int] = []
    push = grid.push_messages
    grid.push_messages = lambda m: sent.append(len(list(m))) or push(m)  # type: ignore
    models: list[ArrayRecord] = []

    def look(number: int, arrays: ArrayRecord) -> MetricRecord:
        models.append(arrays)
        return MetricRecord({"round": number})

    rule = NoisedMetrics(ranges={"loss": (0.0, 4.0)}, noise_multiplier=1e5)
    result = private(
        tmp_path, budget=Budget(limit, 1e-5), metrics=Metrics(fraction_evaluate=1.0, evaluate=rule)
    ).start(grid, model(), num_rounds=9, evaluate_fn=look)
    assert sent == [4, 4] * 3
    assert result.arrays is models[-1]
    assert len(models) == 4
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    assert "round 4" in result.privacy.stopped
    assert result.privacy.rounds == 3
    assert result.privacy.epsilon <= limit
    assert len(result.evaluate_metrics_clientapp) == 3


def test_the_stock_hooks_stop_as_well(tmp_path: Path) -> None:
    strategy = private(tmp_path, budget=Budget(1e-3, 1e-5))
    grid = grid_of(4)
    assert list(strategy.configure_train(1, model(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_train(1, []) == (None, None)
    assert list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_evaluate(1, []) is None
    assert not read_ledger(tmp_path / "ledger.jsonl").records


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


class Away(InProcessGrid):
    """After the first round all nodes but one are away, until somebody has looked twice."""

    looks_while_away = 0

    def get_nodes(self) -> Iterable[NodeInfo]:
        if self.offline:
            self.looks_while_away += 1
            if self.looks_while_away > 2:
                self.offline = set()
        return super().get_nodes()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if not self.looks_while_away and not self._waiting:
            self.offline = {2, 3, 4}
        return replies


def test_a_round_waits_until_enough_of_the_population_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Strangers do not count; a round that waits has not been paid, and the console says so."""
    logging.getLogger("flwr").addHandler(caplog.handler)
    grid = Away(client_app(lambda *_: [np.full(3, 0.5, np.float32)]), 9)
    four = Population(tuple(f"node:{number}" for number in range(1, 5)))
    strategy = noiseless(tmp_path, population=four, min_available_nodes=3)
    result = strategy.start(grid, model((3,)), num_rounds=2)
    (line,) = {message for message in caplog.messages if "min_available_nodes" in message}
    assert "which ε does not count" in line
    assert grid.looks_while_away == 3
    (weights,) = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(weights, 1.0, atol=1e-5)  # four clients in both rounds
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2
