"""Populations, streams of replies and the in-process grid."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from strategies import InProcessGrid, Metrics, run_in_process
from tests.strategies.federation import client_app, grid_of, messages_to, model, noiseless


def test_the_same_as_a_plain_loop() -> None:
    """FedAvg over real apps equals the loop it describes, to the last bits."""
    clients, rounds = 6, 4
    targets = np.random.default_rng(0).normal(size=(clients, 5)).astype(np.float32)
    counts = np.arange(1.0, clients + 1)

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        return [np.float32(0.5) * (targets[partition] - arrays[0])]

    app = client_app(update, examples=lambda p: float(counts[p]))
    found: list[Any] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(grid, model((5,)), num_rounds=rounds)
        found.append((result.arrays.to_numpy_ndarrays()[0], context.run_config["tone"]))

    grid = run_in_process(server, app, num_nodes=clients, run_config={"tone": "low"})
    expected = np.zeros(5)
    for _ in range(rounds):
        moved = expected + 0.5 * (targets - expected)
        expected = (counts[:, None] * moved).sum(axis=0) / counts.sum()
    np.testing.assert_allclose(found[0][0], expected, rtol=1e-6)
    assert found[0][1] == "low"
    assert grid.context(3).node_config == {"partition-id": 2, "num-partitions": 6}


def test_what_a_nodes_app_raises_is_logged_once_a_kind_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if number < 3:
            raise RuntimeError(f"my bug, seen by {number}")
        if number < 5:
            raise RuntimeError("another line")
        if number < 6:
            return None  # type: ignore[return-value]
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, 8)
    caplog.set_level(logging.ERROR)
    for _ in range(3):
        sent = [Message(RecordDict(), node, "train") for node in range(1, 9)]
        replies = list(grid.send_and_receive(sent))
        assert sum(reply.has_error() for reply in replies) == 6
    logged = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in logged if record.exc_info] == [
        "my bug, seen by 0",
        "another line",
        "the ClientApp returned NoneType, not a Message",
    ]
    assert "in train\n    raise RuntimeError(f" in caplog.text


def test_nodes_of_a_run_in_process_are_configured_as_their_owners_say() -> None:
    server, app = ServerApp(), ClientApp()
    seen: list[dict[str, Any]] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert not any(
            reply.has_error()
            for reply in grid.send_and_receive([Message(RecordDict(), 2, "train")])
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(dict(context.node_config))
        return Message(RecordDict(), reply_to=message)

    run_in_process(server, app, num_nodes=2, node_config=lambda k: {"dataset-name": f"ward-{k}"})
    assert seen == [{"partition-id": 1, "num-partitions": 2, "dataset-name": "ward-1"}]


def test_what_a_node_keeps_stays_with_it() -> None:
    """State lasts from message to message; what a node does to its copy is not seen by others."""
    app = ClientApp()
    seen: list[tuple[int, list[str]]] = []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = int(context.state["count"]["n"]) + 1 if "count" in context.state else 1
        context.state["count"] = MetricRecord({"n": count})
        seen.append((count, sorted(message.content["arrays"])))
        message.content["arrays"].clear()
        message.content["config"]["server-round"] = 99
        del message.content["config"]
        return Message(RecordDict({"arrays": model()}), reply_to=message)

    grid = InProcessGrid(app, 2, node_config=lambda p: {"colour": "red" if p else "blue"})
    for _ in range(2):
        messages = messages_to(2)
        assert not any(r.has_error() for r in grid.send_and_receive(messages))
        assert list(messages[0].content["arrays"]) == ["0"]
        assert messages[0].content["config"]["server-round"] == 1
    assert [count for count, _ in seen] == [1, 1, 2, 2]
    assert all(names == ["0"] for _, names in seen)
    assert grid.context(2).node_config["colour"] == "red"


def test_clients_that_break_answer_with_an_error() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 1:
            raise KeyError("lost")
        return None  # type: ignore[return-value]

    grid = InProcessGrid(app, 3)
    grid.offline = {3}
    replies = list(grid.send_and_receive(messages_to(3)))
    assert [r.has_error() for r in replies] == [True, True, True]
    assert "lost" in replies[0].error.reason
    assert "not a Message" in replies[1].error.reason
    assert "offline" in replies[2].error.reason
    assert list(grid.get_node_ids()) == [1, 2]
    with pytest.raises(ValueError, match="num_nodes"):
        InProcessGrid(app, 0)


def test_evaluation_runs_too(tmp_path: Path) -> None:
    from strategies import PublicMetrics

    strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=PublicMetrics()))
    result = strategy.start(grid_of(4), ArrayRecord([np.zeros(2, np.float32)]), num_rounds=2)
    assert [m["loss"] for m in result.evaluate_metrics_clientapp.values()] == [1.5, 1.5]
    assert "Privacy" in repr(result)
