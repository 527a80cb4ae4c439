"""Clients that fail, decline or are silent: what is logged, and when the run ends."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from privacy.accounting import read_ledger
from privacy.secure_aggregation import Adversary
from strategies import (
    Budget,
    Checkpointing,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    Poisson,
    PublicMetrics,
    SecureAggregation,
    decline,
)
from strategies.errors import NoUsableReplyError
from tests.strategies.federation import (
    answer,
    ask,
    client_app,
    grid_of,
    model,
    noiseless,
    raising,
    released,
    spent,
)


def failing(when: Callable[[int, int], bool]) -> ClientApp:
    """Clients that move the model by 0.1, and raise ``when(partition, round)`` says so."""

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        if when(partition, number):
            raise ValueError("secret")
        return [np.full_like(a, 0.1) for a in arrays]

    return client_app(update)


def test_a_run_whose_clients_all_fail_ends_before_it_pays(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, noise_multiplier=None, budget=Budget(2.0, 1e-5))
    grid = InProcessGrid(failing(lambda p, r: True), 4)
    with pytest.raises(NoUsableReplyError, match=r"round 1: .*raised an exception.*not paid"):
        strategy.start(grid, model(), num_rounds=5)
    assert not read_ledger(tmp_path / "ledger.jsonl").records


def declining(reason: str, *, crash: int | None = None) -> ClientApp:
    """Clients that decline; one of them raises instead."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == crash:
            raise RuntimeError(reason)
        return decline(message, reason)

    return app


@pytest.mark.parametrize("crash", [None, 0])
def test_clients_that_decline_are_distinguished_from_clients_that_fail(
    crash: int | None, tmp_path: Path, console: list[str]
) -> None:
    """Their words are in the operator's log alone, cut and on one line."""
    grid = InProcessGrid(declining("enough\nis enough " * 100, crash=crash), 2)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(handler)
    remedy = "ask the nodes for what their owners allow" if crash is None else "mend the clients"
    try:
        with pytest.raises(NoUsableReplyError, match=remedy) as ended:
            noiseless(tmp_path, population=2).start(grid, model(), num_rounds=3)
    finally:
        logger.removeHandler(handler)
    dropped = [line for line in console if "dropped a reply" in line]
    assert sum("the node declines" in line for line in dropped) == 1
    assert sum("raised an exception" in line for line in dropped) == (crash is not None)
    assert not any("enough" in line for line in dropped)
    assert "enough" not in str(ended.value)
    words = [line for line in seen if "the node declined: 'enough\\nis enough" in line]
    assert len(words) == (2 if crash is None else 1)
    assert all(len(line) < 500 and "\n" not in line for line in words)


def test_a_run_whose_clients_fail_later_keeps_its_model_and_the_budget_left(
    tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path)
    grid = InProcessGrid(failing(lambda p, r: r > 2), 4)
    result = strategy.start(grid, model(), num_rounds=9)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], 0.2, rtol=1e-4)
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    assert "round 3: no reply was usable" in result.privacy.stopped
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2
    assert any(line.startswith("Stopping: round 3") for line in console)
    assert console[-1].startswith("Ended early: ")
    again = strategy.start(InProcessGrid(failing(lambda p, r: False), 4), model(), num_rounds=2)
    assert again.privacy is not None
    assert again.privacy.stopped is None
    assert console[-1].startswith("Finished: ")


def test_a_run_without_a_usable_reply_says_what_its_first_rounds_cost(tmp_path: Path) -> None:
    """One client alone ends no run, so that a round is paid before the second fails."""
    strategy = noiseless(tmp_path, noise_multiplier=2.0, min_available_nodes=0)
    grid = InProcessGrid(failing(lambda p, r: True), 4)
    grid.offline = {2, 3, 4}

    def connect_the_second(number: int, arrays: ArrayRecord) -> None:
        if number == 1:
            grid.offline = {3, 4}

    with pytest.raises(NoUsableReplyError, match=r"round 2.* was not paid.* were: ε is ") as ended:
        strategy.start(grid, model(), num_rounds=4, evaluate_fn=connect_the_second)
    assert f"ε is {spent(tmp_path):.6g}" in str(ended.value)
    assert [r.round for r in read_ledger(tmp_path / "ledger.jsonl").records] == [1]


class _BrokenError(Exception):
    """What ends a run in its middle."""


def _resumed(folder: Path, failing_from: int, *, broken_after: int) -> Any:
    """A run of clients that fail from a round on, resumed after another round."""

    def break_off(number: int, arrays: ArrayRecord) -> None:
        if number == broken_after:
            raise _BrokenError

    settings = {"checkpointing": Checkpointing(folder / "checkpoint"), "population": 8}
    grid = InProcessGrid(failing(lambda p, r: r >= failing_from), 8)
    with pytest.raises(_BrokenError):
        noiseless(folder, **settings).start(grid, model(), num_rounds=9, evaluate_fn=break_off)
    resumed = noiseless(
        folder, **settings | {"checkpointing": Checkpointing(resume=folder / "checkpoint")}
    )
    return resumed.start(grid, model(), num_rounds=9)


def test_a_resumed_run_whose_clients_fail_keeps_the_model_that_it_resumed(tmp_path: Path) -> None:
    """As an uninterrupted one. To begin again would throw away what was learned and paid."""
    result = _resumed(tmp_path, 3, broken_after=2)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], 0.2, rtol=1e-4)
    assert "round 3: no reply was usable" in result.privacy.stopped
    assert result.privacy.rounds == 2
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


def test_a_run_resumed_before_its_first_round_has_nothing_to_keep(tmp_path: Path) -> None:
    with pytest.raises(NoUsableReplyError, match="Nothing was learned yet"):
        _resumed(tmp_path, 1, broken_after=0)


def test_one_client_alone_never_ends_a_run_nor_do_empty_rounds(tmp_path: Path) -> None:
    """Rounds that ask nobody, or only one that fails, are paid like any other."""
    strategy = noiseless(tmp_path, population=50, min_available_nodes=1, noise_multiplier=5.0)
    grid = InProcessGrid(failing(lambda p, r: True), 50)
    for number, offline in enumerate((set(range(2, 51)), set(range(1, 51))) * 3, start=1):
        grid.offline = offline
        ask(strategy, grid, model(), number)
        messages = ask(strategy, grid, model(), number)
        released(strategy, [raising(m) for m in messages.values()], number)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 6


def test_clients_that_are_only_late_are_not_reported_but_end_the_run(
    tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path)
    ask(strategy, grid_of(4), model())
    with pytest.raises(NoUsableReplyError, match="nobody answered in time"):
        strategy.aggregate_train(1, [])
    assert not any("dropped" in line for line in console)


@pytest.mark.parametrize("noised", [True, False])
def test_evaluation_that_nobody_can_answer_is_neither_asked_again_nor_paid(
    noised: bool, tmp_path: Path, console: list[str]
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, message.content["arrays"])

    rule: Any = PublicMetrics()
    if noised:
        rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=1.0)
    strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=rule))
    result = strategy.start(InProcessGrid(app, 4), model(), num_rounds=3)
    assert not result.evaluate_metrics_clientapp
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3
    (line,) = [line for line in console if "Nobody is asked to evaluate" in line]
    assert "raised an exception" in line


def test_clients_without_the_mod_end_a_secure_run_before_it_is_paid(
    tmp_path: Path, console: list[str]
) -> None:
    secure = SecureAggregation(
        min_clients=3,
        adversary=Adversary(max_corrupt_fraction=0.0),
        dropout_probability=0.0,
        stage_timeout=5.0,
    )
    strategy = noiseless(tmp_path, population=6, secure_aggregation=secure, noise_multiplier=5.0)
    with pytest.raises(NoUsableReplyError, match=r"round 1: .*SecureAggregationMod.*not paid"):
        strategy.start(grid_of(6), model(), num_rounds=9)
    assert not read_ledger(tmp_path / "ledger.jsonl").records
    (line,) = [line for line in console if "dropped a reply" in line]
    assert "mods=[SecureAggregationMod(" in line
    assert "docs/how-to/secure-aggregation.md" in line
    assert any("Secure aggregation: " in s and "needs SecureAggregationMod" in s for s in console)


def test_a_node_that_goes_is_logged_once_and_not_which(tmp_path: Path, console: list[str]) -> None:
    strategy = noiseless(tmp_path, population=40, sampling=Poisson(0.5))
    grid = grid_of(40)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(handler)
    try:
        for number, offline in enumerate(({}, {31}, {31, 37}, {}, {31}), start=1):
            grid.offline = set(offline)
            ask(strategy, grid, model(), number)
    finally:
        logger.removeHandler(handler)
    (line,) = [line for line in console if "has gone" in line]
    assert "31" not in line
    gone = [line.rpartition(": ")[2] for line in seen if "have gone" in line]
    assert gone == ["[31]", "[37]", "[31]"]


@pytest.mark.parametrize(
    ("population", "nodes", "warned"), [(1000, 20, 1), (41, 20, 1), (40, 20, 0), (4, 4, 0)]
)
def test_a_population_most_of_which_is_absent_is_logged_once_and_without_a_number(
    population: int, nodes: int, warned: int, tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path, population=population)
    strategy.start(grid_of(nodes), model(), num_rounds=3)
    told = [line for line in console if "Less than half of the population" in line]
    assert len(told) == warned
    for line in told:
        assert f"of {population} is connected" in line
        assert str(nodes) not in line
        assert "min_available_nodes" in line


def test_a_run_waits_before_it_judges_who_is_absent(
    tmp_path: Path, console: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that are still connecting, as long as the run waits for them, are not absent."""
    strategy = noiseless(tmp_path, population=20, min_available_nodes=12)
    grid = grid_of(20)
    grid.offline = set(range(1, 19))
    monkeypatch.setattr("time.sleep", lambda _: grid.offline.clear())  # a second later
    strategy.start(grid, model(), num_rounds=1)
    assert any("Waiting until 12 nodes" in line for line in console)
    assert not any("Less than half" in line for line in console)


@pytest.mark.parametrize(("silent", "last"), [(False, 2), (True, 5)])
def test_small_cohorts_end_a_run_by_few_drops_or_many_silences(
    silent: bool, last: int, tmp_path: Path
) -> None:
    """After what was used, five clients whose replies are dropped; or twenty who say nothing."""
    strategy = noiseless(tmp_path, population=40)
    grid = grid_of(40)
    grid.offline = set(range(2, 41))
    for number in range(1, 20):
        messages = ask(strategy, grid, model(), number)
        replies = [] if silent else [raising(m) for m in messages.values()]
        if number == 1:
            replies = [answer(m, model()) for m in messages.values()]
        record, _ = strategy.aggregate_train(number, replies)
        if record is None:
            break
        first = 2 + (number - 1) * 5  # five others next
        grid.offline = set(range(1, 41)) - set(range(first, first + 5))
    assert number == last
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == last - 1
    assert "no reply was usable" in str(strategy.report().stopped)
