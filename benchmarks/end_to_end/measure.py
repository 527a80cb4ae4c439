"""Our app and the plain one under ``flwr run`` and in one process, timed round by round."""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import ServerApp

from benchmarks.end_to_end import plain_app
from benchmarks.harness import Log, Row, Spread
from flower_app import client_app, server_app
from flower_app.processes.flower_processes import program, superlink
from flower_app.settings import Settings, write_run_config
from strategies import InProcessGrid

ROOT = Path(__file__).parents[2]
RATE = 0.1
PEER = "plain FedAvg app, flwr run"
_PATIENCE = 600.0


def run(*, quick: bool, log: Log) -> list[Row]:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    nodes, rounds, repetitions = (200, 5, 1) if quick else (1000, 15, 2)
    rows = []
    for model in ("hog-linear",) if quick else ("hog-linear", "cnn"):
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(repetitions):
            ours += _ours(model, nodes, rounds)
            log(f"{model}: this app, {nodes} clients, {rounds} rounds")
            theirs += _theirs(model, nodes, rounds)
            log(f"{model}: plain FedAvg")
        case = f"{model}, {nodes} clients, q={RATE:g}"
        details = {"model": model, "cohort": RATE * nodes, "nodes": nodes}
        rows.append(
            Row(
                case, "time of a round", "s", Spread.of(ours), Spread.of(theirs), PEER,
                details=details,
            )
        )  # fmt: skip
        sent, plain = _bytes(model)
        for direction in ("to a client", "from a client"):
            rows.append(
                Row(
                    case,
                    f"bytes {direction} a round",
                    "B",
                    Spread.of([float(sent[direction])]),
                    Spread.of([float(plain[direction])]),
                    PEER,
                )
            )
    return rows


def _settings(model: str, rounds: int, results: Path) -> dict[str, Any]:
    return {
        "model": model,
        "rounds": rounds,
        "sampling-rate": RATE,
        "encrypted-test-images": 0,
        "results-dir": str(results),
    }


def _ours(model: str, nodes: int, rounds: int) -> list[float]:
    """Seconds of each round but the first, in which Ray starts its workers."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name) / "results"
        overrides = _settings(model, rounds, results)
        _flwr_run(ROOT, overrides, nodes, Path(name), results / "latest" / "metrics.json")
        (log,) = (results / "operator-logs").iterdir()
        begun = [
            datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")
            for line in log.read_text().splitlines()
            if re.search(r"round \d+, train: drew", line)
        ]
    return [(b - a).total_seconds() for a, b in pairwise(begun[1:])]


def _theirs(model: str, nodes: int, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as name:
        app, times = Path(name) / "app", Path(name) / "times.json"
        app.mkdir()
        (app / "plain_app.py").write_text(Path(plain_app.__file__).read_text())
        config = Settings().as_config() | _settings(model, rounds, Path(name))
        config["times"] = str(times)
        lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
        (app / "pyproject.toml").write_text(
            '[project]\nname = "plain"\nversion = "1.0.0"\ndependencies = []\n'
            '[tool.flwr.app]\npublisher = "benchmark"\n[tool.flwr.app.components]\n'
            'serverapp = "plain_app:server"\nclientapp = "plain_app:client"\n'
            "[tool.flwr.app.config]\n" + "\n".join(lines) + "\n"
        )
        _flwr_run(app, {}, nodes, Path(name), times)
        seconds: list[float] = json.loads(times.read_text())
    return seconds[1:-1]


def _flwr_run(
    app: Path, overrides: dict[str, Any], nodes: int, folder: Path, awaited: Path
) -> None:
    """Run an app in simulation until it has written a file.

    Raises
    ------
    RuntimeError
        If it ends, or ten minutes pass, without it; with its last words.
    """
    home = folder / "home"
    home.mkdir()
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": os.cpu_count(),
    }
    command = [
        *(program("flwr"), "run", str(app), "local", "--stream"),
        *("--federation-config", " ".join(f"{k}={v}" for k, v in federation.items())),
        *("--run-config", str(write_run_config(overrides, folder / "run.toml"))),
    ]
    words = folder / "words.log"
    # The plain app imports ours, from this tree.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with superlink(home) as environment, words.open("wb") as output:
        stream = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + _PATIENCE
            while not awaited.exists() and time.monotonic() < deadline:
                if stream.poll() is not None and not awaited.exists():
                    time.sleep(1)
                    break
                time.sleep(0.5)  # the stream may linger after the run has ended
        finally:
            stream.terminate()
            stream.wait()
    if not awaited.exists():
        raise RuntimeError(f"the run wrote no {awaited.name}: {words.read_text()[-1500:]}")


class _WeighingGrid(InProcessGrid):
    """Weighs what crosses it."""

    def __init__(self, app: ClientApp, nodes: int, config: dict[str, Any]) -> None:
        super().__init__(app, nodes, run_config=config)
        self.largest = {"to a client": 0, "from a client": 0}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        for message in pushed:
            self._weigh("to a client", message)
        return super().push_messages(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if not reply.has_error():
                self._weigh("from a client", reply)
            yield reply

    def _weigh(self, direction: str, message: Message) -> None:
        size = recorddict_to_proto(message.content).ByteSize()
        self.largest[direction] = max(self.largest[direction], size)


def _bytes(model: str) -> tuple[dict[str, int], dict[str, int]]:
    """The largest message each way of one round, ours and the plain app's."""
    sizes = []
    apps = ((server_app.app, client_app.app), (plain_app.server, plain_app.client))
    for serve, client in apps:
        with tempfile.TemporaryDirectory() as name:
            config = _settings(model, 2, Path(name)) | {"times": f"{name}/times.json"}
            sizes.append(_weighed(serve, client, config))
    return sizes[0], sizes[1]


def _weighed(serve: ServerApp, client: ClientApp, config: dict[str, Any]) -> dict[str, int]:
    ours = {k: v for k, v in config.items() if k != "times" or serve is plain_app.server}
    grid = _WeighingGrid(client, 100, ours)
    serve(grid, Context(grid.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), ours))
    return grid.largest
