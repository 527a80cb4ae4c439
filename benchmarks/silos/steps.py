"""A step's seconds and bytes: the strategy and its silos, with every message, in one process."""

import logging
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from torch import nn

from benchmarks.harness import Row, Spread
from benchmarks.silos.arms import RECORDS, Data
from flower_app.models.build import build_model
from privacy.accounting import Budget
from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import DataPolicy, Persons, SiloStep, silo_sum
from strategies import DistributedDPSGD, InProcessGrid, ServerSGD, SiloTask, answer_silo

NORM, NOISE, RATE = 0.5, 1.0, 0.02
PEER = "the same sums alone, neither masked nor sent"


@dataclass(frozen=True)
class StepCost:
    """What a step takes.

    Attributes
    ----------
    seconds : Spread
        Of one processor, with every message.
    alone : Spread
        Likewise of the same sums, neither masked nor sent.
    carried : float
        Bytes to and from one silo.
    """

    seconds: Spread
    alone: Spread
    carried: float

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Self:
        """What ``as_dict`` gave."""
        seconds, alone = (Spread(**figures[name]) for name in ("seconds", "alone"))
        return cls(seconds, alone, figures["carried"])

    def rows(self, name: str, silos: int) -> list[Row]:
        """The benchmark's rows."""
        case = f"{name}, {silos} silos, {RECORDS:,} records, p = {RATE:g}"
        details = {"model": name, "silos": silos}
        carried = Spread.of([self.carried])
        return [
            Row(
                case,
                "processor time of a step",
                "s",
                self.seconds,
                self.alone,
                PEER,
                False,
                details,
            ),
            Row(case, "bytes of a silo in a step", "B", carried, details=details),
        ]


def measure(name: str, data: Data, silos: int, *, steps: int) -> StepCost:
    """Processor seconds of a step, and the bytes it moves to and from a silo.

    All silos work in turn. The data are divided evenly; the first step is not counted.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    inputs, labels = data.train
    persons = [Persons((inputs[part::silos], labels[part::silos])) for part in range(silos)]
    with tempfile.TemporaryDirectory() as folder:
        seconds, carried = _with_messages(name, persons, Path(folder), steps=steps)
    return StepCost(seconds, _sums_alone(name, persons, steps=steps), carried / silos)


def _with_messages(
    name: str, persons: list[Persons], folder: Path, *, steps: int
) -> tuple[Spread, float]:
    """Seconds of a step, and bytes of all silos together in one."""
    silos, carried = len(persons), 0
    model = build_model(name)
    app = ClientApp()

    @app.train()
    def take_part(message: Message, context: Context) -> Message:
        nonlocal carried
        silo = int(context.node_config["partition-id"])
        task = SiloTask(
            model=model, loss=nn.functional.cross_entropy, persons=lambda: persons[silo]
        )
        policy = DataPolicy(
            dataset=str(silo), max_epsilon=1e6, max_delta=1e-3, unit="row", min_silos=3
        )
        reply = answer_silo(message, context, task=lambda: task, policy=policy)
        for each in (message, reply):
            carried += recorddict_to_proto(each.content).ByteSize()
        return reply

    strategy = DistributedDPSGD(
        silos=FewSilos(silos),
        persons=sum(map(len, persons)),
        unit="row",
        sampling_rate=RATE,
        clipping_norm=NORM,
        noise_multiplier=NOISE,
        budget=Budget(math.inf, 1e-5),
        optimizer=ServerSGD(learning_rate=1.0),
        ledger=folder / "ledger.jsonl",
    )
    ends = []

    def note(number: int, arrays: ArrayRecord) -> None:
        ends.append((time.process_time(), carried))

    start = ArrayRecord(build_model(name).state_dict())
    strategy.start(InProcessGrid(app, silos), start, num_rounds=steps + 1, evaluate_fn=note)
    times, bytes_by_then = zip(*ends[1:], strict=True)
    secure = strategy.report().secure_aggregation
    if len(ends) != steps + 2 or secure is None or secure.aborted_rounds:
        raise RuntimeError(f"{len(ends) - 1} of {steps + 1} steps were played, or some not opened")
    seconds = [end - begin for begin, end in pairwise(times)]
    return Spread.of(seconds), (bytes_by_then[-1] - bytes_by_then[0]) / steps


def _sums_alone(name: str, persons: list[Persons], *, steps: int) -> Spread:
    model, few = build_model(name), FewSilos(len(persons))
    step = SiloStep(
        mechanism=SiloGaussian(few.min_silos, few.colluders),
        clipping_norm=NORM,
        noise_multiplier=NOISE,
        sampling_rate=RATE,
        persons=RECORDS,
    )
    times = []
    for _ in range(steps + 1):
        started = time.process_time()
        for silo in persons:
            silo_sum(model, silo, loss=nn.functional.cross_entropy, step=step, ledger=None)
        times.append(time.process_time() - started)
    return Spread.of(times[1:])
