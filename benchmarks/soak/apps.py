"""The soak's app: clients that fail at random, a server that watches its memory. Also shipped."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from strategies import BandedMF, Budget, Checkpointing, CyclicGroups, DPFedAvg, Poisson

PARAMETERS = 10_000
RATE, EPSILON, DELTA = 0.1, 8.0, 1e-5
GROUPS = 10  # where clients take turns, with correlated noise
FAILING = 0.2  # of the clients that are asked, each round anew
FAULTS = ("raises", "NaN", "another shape", "cut short")

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move the model a little, or fail in one of the ways."""
    fault = random.choice(FAULTS) if random.random() < FAILING else ""  # noqa: S311
    if fault == "raises":
        raise RuntimeError("out of memory")
    ((name, sent),) = message.content.array_records["arrays"].items()
    moved = sent.numpy() + np.float32(1e-4)
    if fault == "NaN":
        moved[0] = np.nan
    array = Array(moved[:-1] if fault == "another shape" else moved)
    if fault == "cut short":
        array = Array(array.dtype, array.shape, array.stype, array.data[:-100])
    content = RecordDict({"arrays": ArrayRecord({name: array})})
    content["metrics"] = MetricRecord({"num-examples": 1})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write down what each round left in memory and in the ledger."""
    folder, rounds = Path(str(context.run_config["folder"])), int(context.run_config["rounds"])
    in_turns = "in-turns" in context.run_config
    strategy = DPFedAvg(
        population=len(list(grid.get_node_ids())),
        sampling=CyclicGroups(GROUPS) if in_turns else Poisson(RATE),
        mechanism=BandedMF(GROUPS) if in_turns else None,
        clipping=0.01,
        budget=Budget(epsilon=EPSILON, delta=DELTA),
        ledger=folder / "ledger.jsonl",
        checkpointing=Checkpointing(folder / "checkpoint.safetensors"),
    )
    megabytes: list[float] = []
    started = time.process_time()

    def note(number: int, arrays: ArrayRecord) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    start = ArrayRecord({"weights": Array(np.zeros(PARAMETERS, np.float32))})
    result = strategy.start(grid, start, num_rounds=rounds, evaluate_fn=note)
    report = strategy.report()
    document = {
        "rounds": report.rounds,
        "epsilon": report.epsilon,
        "noise_multiplier": report.noise_multiplier,
        "megabytes": megabytes,
        "seconds": time.process_time() - started,
        "moved": float(np.mean(result.arrays["weights"].numpy())),
    }
    part = folder / "soak.json.part"
    part.write_text(json.dumps(document))
    part.rename(folder / "soak.json")
