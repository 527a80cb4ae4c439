"""What 10,000 to 1,000,000 registered clients cost the server: messages, memory, accounting."""

import gc
import logging
import math
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from benchmarks.harness import Log, Row, Spread
from privacy.accounting import Budget, GaussianRelease, Poisson, calibrate_noise_multiplier, epsilon
from privacy.mechanisms import SystemRandomness
from strategies import DPFedAvg, InProcessGrid

PARAMETERS = 3920  # of the app's default model
RATE = 0.01
ROUNDS = 1000
KEY_BYTES = 215  # a P-384 public key, as SuperNodes show it


class Registered(InProcessGrid):
    """So many nodes with keys, all of them connected."""

    def __init__(self, clients: int) -> None:
        super().__init__(ClientApp(), 1)
        key = SystemRandomness().bytes(KEY_BYTES - 8)
        self._all = [
            NodeInfo(
                node_id=(number + 2) << 40,  # as long as the ids that a SuperLink draws
                public_key=key + number.to_bytes(8, "big"),
                status="online",
                registered_at="2026-01-01T00:00:00.000000+00:00",
                last_activated_at="2026-01-01T00:00:00.000000+00:00",
                online_until=1.8e9,
                heartbeat_interval=30.0,
            )
            for number in range(clients)
        ]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All of them."""
        return self._all


def model(value: float) -> ArrayRecord:
    """The app's model, or an update of it."""
    return ArrayRecord({"weights": Array(np.full(PARAMETERS, value, np.float32))})


def answers(messages: list[Message]) -> Iterator[Message]:
    """A reply to each message, made when it is asked for and forgotten afterwards."""
    update = model(1e-4)
    for message in messages:
        metrics = MetricRecord({"num-examples": 50})
        content = RecordDict({"arrays": update, "metrics": metrics})
        yield Message(content, reply_to=message)


def seconds_of_a_round(strategy: DPFedAvg, grid: Registered) -> tuple[float, float, int]:
    """CPU seconds to find, draw and address the cohort, and to sum its replies; its size."""
    started = time.process_time()
    messages = list(strategy.configure_train(1, model(0.0), ConfigRecord(), grid))
    configured = time.process_time()
    strategy.aggregate_train(1, answers(messages))
    return configured - started, time.process_time() - configured, len(messages)


def bytes_of_a_round(strategy: DPFedAvg, grid: Registered) -> tuple[int, int]:
    """What stays allocated for the population, and the peak above that in a round."""
    gc.collect()
    tracemalloc.start()
    messages = list(strategy.configure_train(1, model(0.0), ConfigRecord(), grid))
    strategy.aggregate_train(1, answers(messages))
    _, peak = tracemalloc.get_traced_memory()
    del messages
    gc.collect()
    resident, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return resident, peak - resident


def rows_of(clients: int, folder: Path, log: Log) -> list[Row]:
    """All figures for a population of this size."""
    case = f"N = {clients:,}, q = {RATE:g}"
    budget, sampling = Budget(3.0, 0.1 / clients), Poisson(RATE)
    rows = []

    def row(metric: str, unit: str, *values: float) -> None:
        rows.append(Row(case, metric, unit, Spread.of(list(values))))

    def strategy(name: str) -> DPFedAvg:
        return DPFedAvg(
            population=clients,
            sampling=sampling,
            clipping=0.02,
            noise_multiplier=1.0,
            budget=Budget(math.inf, budget.delta),
            ledger=folder / f"{clients}-{name}.jsonl",
        )

    log(f"{case}: a round")
    grid = Registered(clients)
    rounds = [seconds_of_a_round(strategy(str(turn)), grid) for turn in range(3)]
    drawing, summed, cohorts = zip(*rounds, strict=True)
    row("find, draw and address the cohort", "CPU s", *drawing)
    row("check, bound, sum and noise the replies", "CPU s", *summed)
    row("messages a round, both ways", "", *(2 * size for size in cohorts))
    resident, peak = bytes_of_a_round(strategy("memory"), grid)
    row("memory that the population takes between rounds", "MB", resident / 1e6)
    row("memory that a round takes on top, at most", "MB", peak / 1e6)
    row(
        "list of nodes, fetched each time it is looked at",
        "MB",
        sum(n.ByteSize() for n in grid.get_nodes()) / 1e6,
    )
    (message,) = list(answers([Message(RecordDict({"arrays": model(0.0)}), 7, "train")]))
    size = sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
    row("bytes a reply", "bytes", size)
    del grid

    log(f"{case}: accounting for {ROUNDS} rounds at δ = {budget.delta:g}")
    started = time.process_time()
    z = calibrate_noise_multiplier(sampling=sampling, rounds=ROUNDS, budget=budget)
    calibrated = time.process_time()
    # Not the very noise that was calibrated: that ε is remembered.
    spent = epsilon({GaussianRelease(1.001 * z, sampling): ROUNDS}, delta=budget.delta)
    row(f"calibrate the noise for {ROUNDS} rounds", "CPU s", calibrated - started)
    row(f"ε of {ROUNDS} rounds", "CPU s", time.process_time() - calibrated)
    row("that noise", "z", z)
    row("ε with a thousandth more", "", spent)
    return rows


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure each size of population; the largest takes about a gigabyte."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clients in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
            rows += rows_of(clients, Path(folder), log)
    return rows
