"""What the tests of the strategies share: small federations, and replies made by hand."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from privacy.accounting import read_ledger
from strategies import Budget, DPFedAvg, Full, InProcessGrid
from strategies.errors import BudgetError

Vector = Any
Update = Callable[[int, int, list[Vector]], list[Vector]]


def model(*shapes: tuple[int, ...], dtype: Any = np.float32) -> ArrayRecord:
    """A model of zeros."""
    return ArrayRecord([np.zeros(shape, dtype) for shape in shapes or ((3,),)])


def client_app(
    update: Update, *, examples: Callable[[int], float] = lambda _: 1.0, mods: Sequence[Mod] = ()
) -> ClientApp:
    """Clients that move the model by ``update(partition, round, arrays)``."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        names = list(message.content["arrays"])
        before = message.content["arrays"].to_numpy_ndarrays()
        after = [
            np.asarray(a + u)
            for a, u in zip(before, update(partition, number, before), strict=True)
        ]
        record = ArrayRecord(dict(zip(names, ArrayRecord(after).values(), strict=True)))
        metrics = MetricRecord({"num-examples": examples(partition)})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        value = float(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": 1, "loss": value})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def idle(partition: int, number: int, arrays: list[Vector]) -> list[Vector]:
    """An update of zeros."""
    return [np.zeros_like(a) for a in arrays]


def grid_of(nodes: int, update: Update = idle) -> InProcessGrid:
    """A grid of clients that move the model by ``update``."""
    return InProcessGrid(client_app(update), nodes)


def nobody_of(nodes: int) -> InProcessGrid:
    """A grid none of whose nodes is connected: every cohort is empty."""
    grid = grid_of(nodes)
    grid.offline = set(range(1, nodes + 1))
    return grid


def noiseless(folder: Path, **settings: Any) -> DPFedAvg:
    """A strategy without noise over everyone, so that results can be told exactly."""
    usual: dict[str, Any] = {
        "population": 4,
        "sampling": Full(),
        "clipping": 1.0,
        "noise_multiplier": 0.0,
        "budget": Budget(math.inf, 1e-5),
        "ledger": folder / "ledger.jsonl",
    }
    return DPFedAvg(**(usual | settings))


def ask(
    strategy: DPFedAvg, grid: InProcessGrid, arrays: ArrayRecord, number: int = 1
) -> dict[int, Message]:
    """Configure a round; the messages by node, delivered but not answered."""
    messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    grid.push_messages(messages)
    return {message.metadata.dst_node_id: message for message in messages}


def answer(
    message: Message,
    arrays: Sequence[Vector] | ArrayRecord,
    metrics: Mapping[str, Any] | None = None,
) -> Message:
    """A well-formed reply that carries these arrays."""
    record = arrays if isinstance(arrays, ArrayRecord) else ArrayRecord(list(arrays))
    told = MetricRecord(dict({"num-examples": 1.0} if metrics is None else metrics))
    return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=message)


def released(strategy: DPFedAvg, replies: Sequence[Message], number: int = 1) -> list[Vector]:
    """Aggregate by hand; the new model's arrays."""
    record, _ = strategy.aggregate_train(number, replies)
    assert record is not None
    return list(record.to_numpy_ndarrays())


STEP = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
MOVE = np.full((2, 3), 0.1, np.float32)


def private(folder: Path, **settings: Any) -> DPFedAvg:
    return noiseless(folder, **({"noise_multiplier": 20.0} | settings))


def spent(folder: Path) -> float:
    return read_ledger(folder / "ledger.jsonl").epsilon(1e-5)


def sent(nodes: dict[int, Any], values: dict[int, float], metrics: Any = None) -> list[Any]:
    """Replies of one number each."""
    return [
        answer(nodes[n], [np.array([v, 0, 0], np.float32)], metrics and metrics(n))
        for n, v in values.items()
    ]


def raising(message: Message) -> Message:
    return Message(Error(2, "secret words of the client's"), reply_to=message)


def messages_to(nodes: int) -> list[Message]:
    config = ConfigRecord({"server-round": 1})
    content = RecordDict({"arrays": model((2,)), "config": config})
    return [Message(content, node + 1, "train") for node in range(nodes)]


def two_arrays() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "n": Array(np.array(7))})


def honest(message: Message) -> Message:
    record = ArrayRecord({"w": Array(MOVE.copy()), "n": Array(np.array(9))})
    return answer(message, record, {"num-examples": 10.0, "loss": 1.0})


def refused(strategy: DPFedAvg, grid: Any = STEP, rounds: int = 4) -> BudgetError:
    """How ``start`` refuses a run: nobody was asked, nothing was evaluated."""
    looked: list[int] = []
    with pytest.raises(BudgetError) as told:
        strategy.start(grid, model(), num_rounds=rounds, evaluate_fn=lambda n, _: looked.append(n))
    assert not looked
    return told.value
