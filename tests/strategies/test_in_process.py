"""Populations, streams of replies and the in-process grid."""

import gc
import logging
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from privacy.accounting import read_ledger
from strategies import InProcessGrid, Metrics, Population, node_identity, run_in_process
from strategies.errors import PopulationExceededError
from strategies.population import ClientRegistry
from strategies.replies import stream_replies
from tests.strategies.federation import client_app, grid_of, idle, model, noiseless


def node(number: int, key: bytes = b"", at: str = "") -> NodeInfo:
    return NodeInfo(node_id=number, public_key=key, registered_at=at)


# Population -----------------------------------------------------------------------------------


def test_a_client_that_registers_again_is_not_a_second_client() -> None:
    """With keys, the newest registration stands for it; two places are never taken."""
    register = ClientRegistry(3)
    first, _ = register.locate([node(1, b"a", "1"), node(2, b"b", "2")])
    again, ignored = register.locate([node(9, b"a", "5"), node(1, b"a", "1"), node(2, b"b", "2")])
    assert first == {0: 1, 1: 2}
    assert again == {0: 9, 1: 2}
    assert ignored == 0


def test_newcomers_beyond_a_number_are_refused_and_those_who_come_back_are_not() -> None:
    register = ClientRegistry(2)
    register.locate([node(1, b"a", "1"), node(2, b"b", "1")])
    assert register.locate([node(9, b"a", "2")]) == ({0: 9}, 0)
    with pytest.raises(PopulationExceededError, match="population is 2"):
        register.locate([node(9, b"a", "2"), node(3, b"c", "2")])


def test_a_listed_population_knows_its_own(tmp_path: Path) -> None:
    keys = [b"alice", b"bob"]
    population = Population(tuple(node_identity(node(0, key)) for key in keys))
    register = ClientRegistry(population)
    found, ignored = register.locate([node(7, b"eve"), node(8, b"bob"), node(9)])
    assert list(found.values()) == [8]
    assert ignored == 2
    path = tmp_path / "population.json"
    population.save(path)
    assert Population.load(path).identities == population.identities
    assert Population.load(path) == population
    for text in ("", "[]", '{"format": "other"}', '{"format": "bloomseal-population-1"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a population"):
            Population.load(path)
    with pytest.raises(ValueError, match="twice"):
        Population(("a", "a"))
    with pytest.raises(ValueError, match="at least one"):
        Population(())


def test_the_connected_can_be_frozen(tmp_path: Path) -> None:
    population = Population.connected(grid_of(5))
    strategy = noiseless(tmp_path, population=population)
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid_of(9)))
    assert sorted(m.metadata.dst_node_id for m in messages) == [1, 2, 3, 4, 5]


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
    try:
        result = strategy.start(grid, model((3,)), num_rounds=2)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    (line,) = {message for message in caplog.messages if "min_available_nodes" in message}
    assert "which ε does not count" in line
    assert grid.looks_while_away == 3
    (weights,) = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(weights, 1.0, atol=1e-5)  # four clients in both rounds
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


# Streaming ------------------------------------------------------------------------------------


class Slow(InProcessGrid):
    """A reply can be pulled the third time it is asked for; some cannot be decoded."""

    def __init__(self, *args: Any, undecodable: Iterable[int] = (), **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.asked: dict[str, int] = {}
        self.undecodable = set(undecodable)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for identifier in message_ids:
            self.asked[identifier] = self.asked.get(identifier, 0) + 1
            if self.asked[identifier] >= 3:
                message = self._waiting.get(identifier)
                if message is not None and message.metadata.dst_node_id in self.undecodable:
                    raise ValueError("unexpected set of children")
                found += super().pull_messages([identifier])
        return found


def messages_to(nodes: int) -> list[Message]:
    config = ConfigRecord({"server-round": 1})
    content = RecordDict({"arrays": model((2,)), "config": config})
    return [Message(content, node + 1, "train") for node in range(nodes)]


class Noting(InProcessGrid):
    """Notes when each message would expire; reads what it is given twice, as Flower's grid does."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.expire = [m.metadata.created_at + m.metadata.ttl for m in messages]
        return super().push_messages(messages)


def test_a_message_expires_with_the_round_it_is_of() -> None:
    """A node that was away does not train for rounds that are over."""
    grid = Noting(client_app(idle), 3)
    before = time.time()
    replies = list(stream_replies(grid, iter(messages_to(3)), timeout=1000.0))
    assert len(replies) == 3
    assert all(before + 1000 <= moment <= time.time() + 1000 for moment in grid.expire)


def test_replies_come_one_by_one_and_all() -> None:
    grid = Slow(client_app(idle), 5)
    replies = list(stream_replies(grid, messages_to(5)))
    assert sorted(r.metadata.src_node_id for r in replies) == [1, 2, 3, 4, 5]


def test_a_reply_that_cannot_be_decoded_costs_nobody_else() -> None:
    grid = Slow(client_app(idle), 5, undecodable=[2])
    replies = list(stream_replies(grid, messages_to(5)))
    assert sorted(r.metadata.src_node_id for r in replies) == [1, 3, 4, 5]


def test_the_missing_are_given_up_after_the_timeout() -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return []

    assert list(stream_replies(Silent(client_app(idle), 2), messages_to(2), timeout=0.05)) == []


def test_a_broken_network_ends_the_round_before_anything_is_paid(tmp_path: Path) -> None:
    class Broken(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ConnectionError("gone")

    strategy = noiseless(tmp_path, noise_multiplier=5.0)
    with pytest.raises(ConnectionError):
        strategy.start(Broken(client_app(idle), 4), model(), num_rounds=1)
    assert strategy.epsilon() == 0


@pytest.mark.parametrize("clients", [4, 40])
def test_memory_does_not_grow_with_the_cohort(clients: int, tmp_path: Path) -> None:
    """A round over clients whose replies are made as they are pulled: at most 8 models at once.

    Four are the server's (``benchmarks/aggregation.py`` measures them); the others are this
    process's clients, who hold the model, their update and its bytes.
    """
    size = 200_000
    grid = grid_of(clients, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    strategy = noiseless(tmp_path, population=clients)
    arrays = model((size,))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    strategy.start(grid, arrays, num_rounds=1)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 8 * 4 * size + 8e6


# The in-process grid --------------------------------------------------------------------------


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
