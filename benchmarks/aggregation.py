"""Clip and sum a round's replies: DPFedAvg, Flower's private wrapper and plain FedAvg."""

import gc
import itertools
import logging
import math
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace

from benchmarks.harness import Log, Row, Spread, interleave
from privacy.mechanisms import (
    ClippingGeometry,
    ContinuousGaussian,
    LatticeGaussian,
    SumMechanism,
    SystemRandomness,
)
from strategies import Budget, DPFedAvg, Full, InProcessGrid

CASES = {"100 x 1M": (100, 10**6), "1000 x 100k": (1000, 10**5), "20 x 10M": (20, 10**7)}
QUICK = {"20 x 1M": (20, 10**6), "100 x 100k": (100, 10**5)}
VARIED = (("10 x 100k", 10, 10**5), ("10 x 1M", 10, 10**6), ("50 x 1M", 50, 10**6))
WRAPPER = "flwr DifferentialPrivacyServerSideFixedClipping(FedAvg)"
FEDAVG = "flwr FedAvg"
NORM = 1.0


class _ClipAndSum(DifferentialPrivacyServerSideFixedClipping):
    """Flower's wrapper without its noise, which is timed apart."""

    def _add_noise_to_aggregated_arrays(self, aggregated_arrays: ArrayRecord) -> ArrayRecord:
        return aggregated_arrays


def model(parameters: int, fill: Callable[[int], Any]) -> ArrayRecord:
    """Six arrays of very different sizes that together have so many parameters."""
    sizes = [parameters // 2, parameters // 4, parameters // 8, 1000, 10]
    sizes.append(parameters - sum(sizes))
    return ArrayRecord({f"layer{i}": Array(fill(size)) for i, size in enumerate(sizes)})


def zeros(size: int) -> Any:
    """The model's own arrays."""
    return np.zeros(size, np.float32)


class Round:
    """One round's messages, answered over and over by the same clients."""

    def __init__(self, clients: int, parameters: int, folder: Path) -> None:
        generator = np.random.default_rng(0)

        def draw(size: int) -> Any:
            return generator.standard_normal(size, dtype=np.float32)

        self.clients = clients
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.arrays = model(parameters, zeros)
        self.updates = [model(parameters, draw) for _ in range(clients)]
        self.grid = InProcessGrid(ClientApp(), clients)
        self.names = itertools.count()

    def replies(self, asked: Iterable[Message]) -> list[Message]:
        """Fresh messages around the same arrays: the wrapper changes what it is given."""
        return [
            Message(
                RecordDict({"arrays": update, "metrics": MetricRecord({"num-examples": 10})}),
                reply_to=message,
            )
            for message, update in zip(asked, self.updates, strict=True)
        ]

    def asked(self, strategy: Any) -> list[Message]:
        """A configured round."""
        messages = list(strategy.configure_train(1, self.arrays, ConfigRecord(), self.grid))
        self.grid.push_messages(messages)
        return messages

    def ours(self, mechanism: SumMechanism) -> DPFedAvg:
        """DPFedAvg without noise, over everyone."""
        return DPFedAvg(
            population=self.clients,
            sampling=Full(),
            clipping=NORM,
            noise_multiplier=0.0,
            budget=Budget(math.inf, 1e-5),
            mechanism=mechanism,
            ledger=self.folder / f"{next(self.names)}.jsonl",
        )


def timed(round_: Round, mechanisms: dict[str, SumMechanism]) -> dict[str, Callable[[], object]]:
    """Each way of aggregating; what is prepared for it is prepared in advance of its turn."""
    prepared: dict[str, Callable[[], object]] = {}

    def prepare(name: str) -> None:
        if name in mechanisms:
            strategy: Any = round_.ours(mechanisms[name])
        else:
            strategy = FedAvg(fraction_evaluate=0.0)
            if name == WRAPPER:
                strategy = _ClipAndSum(strategy, 1.0, NORM, round_.clients)
        replies = round_.replies(round_.asked(strategy))
        prepared[name] = lambda: strategy.aggregate_train(1, replies)

    names = [*mechanisms, WRAPPER, FEDAVG]

    def way(name: str) -> Callable[[], object]:
        return lambda: prepared.pop(name)()

    prepare_all = {name: (lambda n=name: prepare(n)) for name in names}
    return {f"prepare {n}": prepare_all[n] for n in names} | {n: way(n) for n in names}


def peak(round_: Round, mechanism: SumMechanism) -> float:
    """The most memory a whole noisy round takes above the messages, in models.

    What the messages sent weigh is taken from ``FedAvg``, which keeps nothing beside them.
    """
    strategy = DPFedAvg(
        population=round_.clients,
        sampling=Full(),
        clipping=NORM,
        noise_multiplier=1.0,
        budget=Budget(math.inf, 1e-5),
        mechanism=mechanism,
        ledger=round_.folder / f"{next(round_.names)}.jsonl",
    )
    plain = FedAvg(fraction_evaluate=0.0)
    round_.asked(plain)
    gc.collect()
    tracemalloc.start()
    asked = round_.asked(plain)
    sent = tracemalloc.get_traced_memory()[0]
    del asked
    gc.collect()
    tracemalloc.stop()
    tracemalloc.start()
    asked = round_.asked(strategy)
    without = tracemalloc.get_traced_memory()[0]
    replies = round_.replies(asked)
    messages = tracemalloc.get_traced_memory()[0] - without
    tracemalloc.reset_peak()
    strategy.aggregate_train(1, replies)
    most = tracemalloc.get_traced_memory()[1] - messages - sent
    tracemalloc.stop()
    return most / sum(len(array.data) for array in round_.arrays.values())


def noise_rows(parameters: int, repetitions: int) -> list[Row]:
    """Seconds of noise for a million parameters: each mechanism, and Flower's."""
    reference = [np.zeros(parameters, np.float32)]

    def release(mechanism: SumMechanism) -> object:
        return mechanism.open(
            reference,
            ClippingGeometry((NORM,), (0,)),
            noise_multiplier=1.0,
            randomness=SystemRandomness(),
        ).release()

    theirs = [np.zeros(parameters, np.float32)]
    times = interleave(
        {
            "exact": lambda: release(LatticeGaussian()),
            "continuous": lambda: release(ContinuousGaussian()),
            "flwr": lambda: add_gaussian_noise_inplace(theirs, 1.0),
        },
        repetitions=repetitions,
    )
    return [
        Row(f"{name}, 1M parameters", "noise", "s", times[name], times["flwr"], "flwr np.random")
        for name in ("exact", "continuous")
    ]


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure all cases."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    mechanisms: dict[str, SumMechanism] = {
        "lattice": LatticeGaussian(),
        "continuous": ContinuousGaussian(),
    }
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (clients, parameters) in (QUICK if quick else CASES).items():
            log(f"{case}: making the messages")
            round_ = Round(clients, parameters, folder)
            log(f"{case}: timing")
            times = interleave(timed(round_, mechanisms), repetitions=3 if quick else 7)
            for mechanism in mechanisms:
                for peer in (WRAPPER, FEDAVG):
                    rows.append(
                        Row(
                            f"{case}, {mechanism}",
                            "clip and sum",
                            "s",
                            times[mechanism],
                            times[peer],
                            peer,
                        )
                    )
            del times
            peak(round_, LatticeGaussian())  # what is imported and cached the first time
            log(f"{case}: memory")
            for label, mechanism_ in mechanisms.items():
                most = Spread.of([peak(round_, mechanism_)])
                rows.append(Row(f"{case}, {label}", "peak above the messages", "models", most))
        log("noise")
        rows += noise_rows(10**5 if quick else 10**6, 3 if quick else 7)
        log("memory by cohort")
        for case, clients, parameters in VARIED:
            round_ = Round(clients, parameters, folder)
            for label, mechanism_ in mechanisms.items():
                most = Spread.of([peak(round_, mechanism_)])
                rows.append(Row(f"{case}, {label}", "peak, cohort varied", "models", most))
    return rows
