"""Rounds a second where clients do next to nothing: the in-process grid and Flower's own."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.harness import Log, Row, Spread
from flower_app.processes.flower_processes import superlink
from strategies import run_in_process

NODES = 50
PEER = "flwr run, Ray simulation"

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Add one to ten numbers: some ten microseconds."""
    (arrays,) = message.content.array_records.values()
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    content["arrays"] = ArrayRecord([array + 1 for array in arrays.to_numpy_ndarrays()])
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over everyone; writes the time of each round down."""
    rounds, seconds = int(context.run_config["rounds"]), []
    before = time.perf_counter()

    def note(number: int, arrays: ArrayRecord) -> None:
        nonlocal before
        now = time.perf_counter()
        if number:
            seconds.append(now - before)
        before = now

    start = ArrayRecord([np.zeros(10, np.float32)])
    result = FedAvg(fraction_evaluate=0.0, min_available_nodes=NODES).start(
        grid, start, num_rounds=rounds, evaluate_fn=note
    )
    document = {"seconds": seconds, "model": result.arrays.to_numpy_ndarrays()[0].tolist()}
    part = Path(f"{context.run_config['times']}.part")
    part.write_text(json.dumps(document))
    part.rename(str(context.run_config["times"]))


def in_process(rounds: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each round here, and the model at the end."""
    times = folder / "ours.json"
    config = {"rounds": rounds, "times": str(times)}
    run_in_process(server, client, num_nodes=NODES, run_config=config)
    document = json.loads(times.read_text())
    return document["seconds"], document["model"]


def simulated(rounds: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each round under ``flwr run`` with Ray, and the model at the end."""
    app, home, times = folder / "app", folder / "home", folder / "theirs.json"
    app.mkdir()
    home.mkdir()
    apps = Path(__file__).read_text().split("def in_process(")[0]
    ours = ("from benchmarks.", "from strategies ", "from flower_app.")
    lines = (line for line in apps.splitlines() if not line.startswith(ours))
    (app / "apps.py").write_text("\n".join(lines) + "\n")
    (app / "pyproject.toml").write_text(
        '[project]\nname = "nothing"\nversion = "1.0.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "benchmark"\n'
        '[tool.flwr.app.components]\nserverapp = "apps:server"\nclientapp = "apps:client"\n'
        f'[tool.flwr.app.config]\nrounds = {rounds}\ntimes = "{times}"\n'
    )
    federation = f"num-supernodes={NODES} init-args-num-cpus={os.cpu_count()}"
    with superlink(home) as environment:
        stream = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("flwr")),
                *("run", str(app), "local", "--stream", "--federation-config", federation),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 300 + 5 * rounds
            while not times.exists() and time.monotonic() < deadline:
                time.sleep(0.5)  # the stream may linger after the run has ended
        finally:
            stream.terminate()
            stream.wait()
    document = json.loads(times.read_text())
    return document["seconds"], document["model"]


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure both, and see that they end with the same model."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rounds = 5 if quick else 30
    with tempfile.TemporaryDirectory() as name:
        log("in this process")
        ours, here = in_process(rounds, Path(name))
        log("with flwr run: Ray starts for some seconds, which are not counted")
        theirs, there = simulated(rounds, Path(name))
    if not np.allclose(here, there, rtol=0, atol=1e-5):
        raise RuntimeError(f"the two grids end with other models: {here} and {there}")
    return [
        Row(
            f"{NODES} clients, FedAvg",
            "rounds a second",
            "1/s",
            Spread.of([1 / seconds for seconds in ours[1:]]),
            Spread.of([1 / seconds for seconds in theirs[1:]]),  # the first starts the workers
            PEER,
            larger_is_better=True,
        )
    ]
