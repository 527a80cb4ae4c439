"""Runs on a deployment: started, watched and resumed, with ClientApps of the nodes' owners."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import psutil

from flower_app.processes.deployment import Deployment, Node
from flower_app.report.outcome import read_outcome
from strategies.checkpoint import Checkpoint
from tests.integration import forking_superexec
from tests.integration.app_commands import wait_until

# The owner of a SuperNode can run any ClientApp instead of the one that was sent. This one replies
# with NaN, then with another shape, then with a pickle that would leave a trace if opened, in turn.
GARBLING = """
import importlib, os, pickle
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

class Trap:
    def __reduce__(self):
        return open, (os.environ["TRACE"], "w")

app = ClientApp()

@app.train()
def train(message, context):
    (sent,) = message.content.array_records.values()
    turns = Path(os.environ["TURNS"])
    turn = len(turns.read_text()) if turns.exists() else 0
    turns.write_text("." * (turn + 1))
    def spoil(array):
        values = array.numpy()
        if turn % 3 == 0:
            return Array(np.full_like(values, np.nan))
        if turn % 3 == 1:
            return Array(np.zeros((2, 2), np.float32))
        data = pickle.dumps(Trap()) + b"." * values.nbytes
        return Array(array.dtype, array.shape, array.stype, data)
    spoilt = ArrayRecord({name: spoil(array) for name, array in sent.items()})
    return Message(RecordDict({"arrays": spoilt}), reply_to=message)

module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
module.get_load_client_app_fn = lambda **_: lambda *_: app
"""

# This one runs what was sent, but not while the file GATE exists: its gate is shut. A SuperNode
# works on one message at a time, so that those behind wait too.
GATED = """
import importlib, os, time
from pathlib import Path

module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
make_load = module.get_load_client_app_fn

def make_gated_load(**options):
    load = make_load(**options)
    def gated_load(*arguments):
        while Path(os.environ["GATE"]).exists():
            time.sleep(0.1)
        return load(*arguments)
    return gated_load

module.get_load_client_app_fn = make_gated_load
"""


def forking(folder: Path, program: str = "") -> dict[str, str]:
    """The environment of a SuperNode or SuperLink that forks its apps; its owner's program first.

    The program stands in the place of Flower's where it changes ``run_clientapp``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "flower-superexec"
    module = forking_superexec.__file__
    script.write_text(
        f"#!{sys.executable}\n{program}\n"
        f"import runpy\nrunpy.run_path({module!r}, run_name='__main__')\n"
    )
    script.chmod(0o755)
    path = (str(folder), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return {"PATH": os.pathsep.join(path)}


def start_superlink(deployment: Deployment) -> None:
    """Start a SuperLink that forks its ServerApps."""
    deployment.start_superlink(variables=forking(deployment.folder / "forking"))


def apps_of(deployment: Deployment, party: str) -> list[psutil.Process]:
    """The forked apps of a SuperNode or the SuperLink that run now."""
    forks = [
        psutil.Process(pid)
        for pid, command in deployment.processes(party).items()
        if "flower-superexec" in command
    ]
    return [each for each in forks if each.ppid() in {other.pid for other in forks}]


def start(deployment: Deployment, settings: dict[str, Any]) -> int:
    """Start a run and return its id."""
    return int(deployment.ask(*deployment.run_command(settings)[1:])["run-id"])


def resume(deployment: Deployment, folder: Path, **changes: Any) -> int:
    """Resume a run as an operator would, and return its new id."""
    settings = tomllib.loads((folder / "resume.toml").read_text())
    return start(deployment, settings | {k.replace("_", "-"): v for k, v in changes.items()})


def status(deployment: Deployment, run: int) -> str:
    """Flower's status of a run, as in ``finished:failed``."""
    (listed,) = deployment.ask("list", "--run-id", str(run))["runs"]
    return str(listed["status"])


def ending(deployment: Deployment, run: int) -> str:
    """The status of a run once it has finished."""

    def has_ended() -> bool:
        outcome = read_outcome(deployment.folder / "outcomes", run)
        return outcome is not None and outcome.state != "running"

    # Flower is asked last: each question starts a command, which takes seconds of a processor.
    wait_until(has_ended)
    return wait_until(lambda: (last := status(deployment, run)).startswith("finished") and last)


def folder_of(results: Path, run: int) -> Path:
    """The folder of a run, once it has one."""
    return wait_until(lambda: next(iter(results.glob(f"2*-{run % 2**32:08x}")), None))


def round_of(folder: Path) -> int:
    """The last round that a run released."""
    checkpoint = folder / "checkpoint.safetensors"
    return Checkpoint.load(checkpoint).round if checkpoint.exists() else 0


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def in_training(node: Node, run: int) -> bool:
    """Whether a node's ClientApp runs for a message of this run."""
    since_last_message = node.log.read_text().rpartition(f"[RUN {run}]\n")[2]
    return (
        "Start `flwr-clientapp` process" in since_last_message
        and "Sending" not in since_last_message
    )


def operator_log(folder: Path) -> str:
    """The operator's log of a run; empty before its first line."""
    log = folder.parent / "operator-logs" / f"{folder.name}.log"
    return log.read_text() if log.exists() else ""


def training_lines(folder: Path, number: int, text: str) -> list[str]:
    """The operator log's lines about a round's training with this text."""
    lines = operator_log(folder).splitlines()
    return [line for line in lines if f"round {number}, train:" in line and text in line]


def replies_used(folder: Path, number: int) -> int:
    """How many replies were used in a round."""
    (line,) = training_lines(folder, number, "replies used")
    return int(re.search(r"(\d+) replies used", line)[1])  # type: ignore[index]


def was_silent(folder: Path, number: int, node: int) -> bool:
    """Whether a round ended without a reply of this node's own."""
    (line,) = training_lines(folder, number, "silent nodes")
    return str(node) in line.partition("silent nodes")[2]
