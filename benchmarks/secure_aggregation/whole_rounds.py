"""One round of the strategy under secure aggregation, end to end in one process.

Real clients with the mod, the real strategy and its ledger; only the transport is gone. Each case
runs in a process of its own, so that its memory is its own.
"""

import logging
import math
import multiprocessing
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from benchmarks.harness import Log, Row, Spread, memory_of_process
from privacy.secure_aggregation import Adversary, ClientPolicy
from strategies import (
    Budget,
    DPFedAvg,
    Full,
    InProcessGrid,
    SecureAggregation,
    SecureAggregationMod,
)

CASES = ((100, 100_000), (100, 1_000_000), (1_000, 100_000), (1_000, 1_000_000))
DROPOUT = 0.05
_CURIOUS = Adversary(max_corrupt_fraction=0.05)


@dataclass(frozen=True)
class Measured:
    """One round's cost: seconds of the processor, bytes, and the process's memory at most."""

    clients: list[float]
    server: float
    wall: float
    up: list[float]
    down: list[float]
    exchanges: int
    megabytes: float


class MeasuredGrid(InProcessGrid):
    """A grid that times its nodes and weighs messages; some vanish when they are to train."""

    def __init__(self, app: ClientApp, nodes: int, *, vanish: int) -> None:
        super().__init__(app, nodes)
        self._vanish = vanish
        self.seconds: dict[int, float] = defaultdict(float)
        self.up, self.down, self.asked = Counter[int](), Counter[int](), Counter[int]()

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.asked[node] += 1
        self.down[node] += weight(message.content)
        if node <= self._vanish and message.content.array_records:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        started = time.process_time()
        reply = super()._work(message)
        self.seconds[node] += time.process_time() - started
        self.up[node] += weight(reply.content)
        return reply


def weight(content: RecordDict) -> int:
    """Bytes of the arrays and of the protocol's messages."""
    arrays = sum(len(a.data) for r in content.array_records.values() for a in r.values())
    values = (value for r in content.config_records.values() for value in r.values())
    return arrays + sum(len(value) for value in values if isinstance(value, bytes))


def clients_app() -> ClientApp:
    """Clients that move every parameter alike."""
    policy = ClientPolicy(min_clients=3, adversary=_CURIOUS)
    app = ClientApp(mods=[SecureAggregationMod(policy)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        moved = [
            a + np.float32(1e-3)
            for a in message.content.array_records["arrays"].to_numpy_ndarrays()
        ]
        metrics = MetricRecord({"num-examples": 1.0})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def play(clients: int, parameters: int) -> Measured:
    """One round of so many clients, of whom 5 % vanish after they shared their secrets."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    secure = SecureAggregation(
        min_clients=clients // 2,
        adversary=_CURIOUS,
        max_dropout_fraction=DROPOUT,
        dropout_probability=DROPOUT / 2,
    )
    with tempfile.TemporaryDirectory() as folder:
        strategy = DPFedAvg(
            population=clients,
            sampling=Full(),
            clipping=1.0,
            noise_multiplier=1.0,
            budget=Budget(math.inf, 1e-5),
            ledger=Path(folder) / "ledger.jsonl",
            secure_aggregation=secure,
        )
        vanish = int(DROPOUT * clients)
        grid = MeasuredGrid(clients_app(), clients, vanish=vanish)
        model = ArrayRecord([np.zeros(parameters, np.float32)])
        wall, processor = time.perf_counter(), time.process_time()
        result = strategy.start(grid, model, num_rounds=1)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if result.privacy is None or result.privacy.secure_aggregation is None:
        raise ArithmeticError("the run does not say that it aggregated securely")
    if result.privacy.secure_aggregation.aborted_rounds:
        raise ArithmeticError("the round was not opened")
    stayed = range(vanish + 1, clients + 1)
    return Measured(
        clients=[grid.seconds[node] for node in stayed],
        server=processor - sum(grid.seconds.values()),
        wall=wall,
        up=[float(grid.up[node]) for node in stayed],
        down=[float(grid.down[node]) for node in stayed],
        exchanges=max(grid.asked.values()),
        megabytes=memory_of_process("VmHWM") / 1e6,
    )


def whole_round_rows(log: Log) -> list[Row]:
    """Each case once; the largest takes minutes."""
    rows = []
    for clients, parameters in CASES:
        case = f"strategy end to end, {clients:,} clients x {parameters:,} parameters, 5 % dropouts"
        log(case)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            measured = pool.submit(play, clients, parameters).result()
        total = sum(measured.up) + sum(measured.down)
        rows += [
            Row(case, "a client", "CPU s", Spread.of(measured.clients)),
            Row(case, "all clients", "CPU s", Spread.of([sum(measured.clients)])),
            Row(case, "server", "CPU s", Spread.of([measured.server])),
            Row(case, "all in one process", "s", Spread.of([measured.wall])),
            Row(case, "bytes up, a client", "B", Spread.of(measured.up)),
            Row(case, "bytes down, a client, model included", "B", Spread.of(measured.down)),
            Row(case, "bytes both ways, all clients", "GB", Spread.of([total / 1e9])),
            Row(case, "exchanges", "", Spread.of([float(measured.exchanges)])),
            Row(case, "memory of the process at most", "MB", Spread.of([measured.megabytes])),
        ]
    return rows
