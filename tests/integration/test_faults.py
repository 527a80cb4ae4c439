"""What goes wrong in deployments, done to real processes over loopback, with TLS and node keys."""

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower_app.data import Split
from flower_app.deploy import Deployment, Node
from flower_app.deploy_demo import write_node_folders
from flower_app.deploy_keys import make_certificates
from flower_app.launch import RunFailed
from privacy.accounting import LedgerContents, read_ledger
from strategies import Checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROUNDS = 3
HANGING_TIMEOUT = 45.0  # what the hanging node costs; the others must answer within it
NAMES = ["honest", "garbler", "mortal", "sleeper"]

# A SuperNode's owner can run any ClientApp instead of the one that was sent: this one answers
# with NaN, then with the wrong shape, then with a pickle that would leave a trace if opened.
GARBLING_CLIENTAPP = """
import importlib, os, pickle
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp

class Trap:
    def __reduce__(self):
        return open, (os.environ["TRACE"], "w")

app = ClientApp()

@app.train()
def train(message, context):
    (sent,) = message.content.array_records.values()
    kind = min(message.content["config"]["server-round"], 3)
    def spoil(array):
        values = array.numpy()
        if kind == 1:
            return Array(np.full_like(values, np.nan))
        if kind == 2:
            return Array(np.zeros((2, 2), np.float32))
        data = pickle.dumps(Trap()) + b"." * values.nbytes
        return Array(array.dtype, array.shape, array.stype, data)
    spoilt = ArrayRecord({name: spoil(array) for name, array in sent.items()})
    return Message(RecordDict({"arrays": spoilt}), reply_to=message)

module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
module.get_load_client_app_fn = lambda **_: lambda *_: app
flwr_clientapp()
"""


def within(seconds: float, condition: Callable[[], Any]) -> Any:
    """What a condition gives once it is true; it must become so in this time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.1)
    return found


def in_training(node: Node, number: int) -> bool:
    """Whether a node's ClientApp runs for the message with this number, counted from 1."""
    said = node.log.read_text()
    return (
        said.count("Start `flwr-clientapp` process") == number
        and said.count("Sent successfully") == number - 1
    )


def round_of(checkpoint: Path) -> int:
    return Checkpoint.load(checkpoint).round if checkpoint.exists() else 0


def settings(results: Path, **more: Any) -> dict[str, Any]:
    return {
        "deployed": True,
        "population": len(NAMES),
        "sampling-rate": 1.0,
        "rounds": ROUNDS,
        "noise-multiplier": 2.0,
        "epsilon": 20.0,
        "record-epsilon": 5.0,
        "round-timeout": 240.0,
        "encrypted-images": 0,
        "results-dir": str(results),
    } | {name.replace("_", "-"): value for name, value in more.items()}


def start(deployment: Deployment, **more: Any) -> int:
    """Start a run and return its id."""
    return int(deployment.ask(*deployment.run_command(settings(**more))[1:])["run-id"])


def results_of(results: Path) -> Path:
    """The folder of a run, once it has one."""
    return Path(within(120, lambda: next(iter(results.glob("2*-*")), None)))


def operator_log(folder: Path) -> str:
    return (folder.parent / "operator-logs" / f"{folder.name}.log").read_text()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with Deployment(folder) as deployment:
        deployment.start_superlink()
        yield deployment
    assert not any(deployment.processes(name.name) for name in folder.iterdir())


@dataclass(frozen=True)
class Story:
    """A run in which much went wrong, and what was seen of it."""

    before: Path
    after: Path
    ledger_before: bytes
    ledger: Path
    trace: Path
    deployment: Deployment
    charges: tuple[int, int]
    restarts: int

    @property
    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.after / "metrics.json").read_text())
        return found

    @property
    def contents(self) -> LedgerContents:
        return read_ledger(self.ledger)

    def line(self, folder: Path, number: int, text: str) -> str:
        """The operator log's one line about a round's training with this text."""
        lines = operator_log(folder).splitlines()
        (found,) = [each for each in lines if f"round {number}, train:" in each and text in each]
        return found


def charges(node: Node) -> int:
    """How many charges stand in a node's own ledger."""
    document = json.loads((node.state / "record-ledger.json").read_text())
    return sum(sum(page["steps"]) for page in document["ledgers"].values())


@pytest.fixture(scope="module")
def story(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Four nodes. In round 2 one is killed in training and one hangs; one always lies.

    After that round the ServerApp is killed. The killed node is started again and again until
    it is let in, as a service manager would, and the run is resumed from its checkpoint.
    """
    base = tmp_path_factory.mktemp("story")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (240, 28, 28), dtype=np.uint8)
    split = Split(images, generator.integers(0, 10, 240).astype(np.int64))
    folders = write_node_folders(base / "data", split, NAMES, images=60)
    nodes = {name: deployment.new_node(name, folder) for name, folder in folders.items()}
    programs = base / "programs"
    programs.mkdir()
    script = programs / "flwr-clientapp"
    script.write_text(f"#!{sys.executable}\n{GARBLING_CLIENTAPP}")
    script.chmod(0o755)
    garbling = {
        "PATH": os.pathsep.join([str(programs), deployment.operator["PATH"]]),
        "TRACE": str(base / "trace"),
    }
    running = {}
    for name, node in nodes.items():
        deployment.register(node)
        running[name] = deployment.start_node(
            node, variables=garbling if name == "garbler" else None
        )
    deployment.wait_until_online(*NAMES)

    ledger = base / "ledger.jsonl"
    first = base / "first"
    start(deployment, results=first, ledger=str(ledger), round_timeout=HANGING_TIMEOUT)
    before = results_of(first)
    checkpoint = before / "checkpoint.safetensors"

    within(240, lambda: round_of(checkpoint) >= 1)
    struck: set[str] = set()

    def both_struck() -> bool:
        for name, number in (("mortal", signal.SIGKILL), ("sleeper", signal.SIGSTOP)):
            if name not in struck and in_training(nodes[name], 2):
                os.killpg(running[name].pid, number)
                struck.add(name)
        return len(struck) == 2

    within(240, both_struck)
    running["mortal"].wait()
    charges_before = charges(nodes["mortal"])
    within(240, lambda: round_of(checkpoint) >= 2)
    os.killpg(running["sleeper"].pid, signal.SIGCONT)
    (server_app,) = [
        pid for pid, command in deployment.processes("superlink").items() if "serverapp" in command
    ]
    os.kill(server_app, signal.SIGKILL)
    within(60, lambda: server_app not in deployment.processes("superlink"))
    ledger_before = ledger.read_bytes()

    restarts = restarts_until_let_in(deployment, nodes["mortal"])
    second = base / "second"
    start(deployment, results=second, ledger=str(ledger), resume=str(checkpoint))
    after = results_of(second)
    within(600, lambda: (after / "metrics.json").exists())
    within(60, lambda: (second / "latest").exists())
    return Story(
        before=before,
        after=after,
        ledger_before=ledger_before,
        ledger=ledger,
        trace=base / "trace",
        deployment=deployment,
        charges=(charges_before, charges(nodes["mortal"])),
        restarts=restarts,
    )


def restarts_until_let_in(deployment: Deployment, node: Node) -> int:
    """Start a node again and again, as systemd does, until the SuperLink lets it in."""
    lives = _lives(node)
    for restarts in range(1, 100):
        process = deployment.start_node(node)
        within(120, lambda: process.poll() is not None or _lives(node) > lives)  # noqa: B023
        if process.poll() is None:
            return restarts
    raise AssertionError("never let in")


def _lives(node: Node) -> int:
    return node.log.read_text().count("SuperNode ID")


def test_a_node_killed_in_training_costs_its_reply_and_comes_back(story: Story) -> None:
    mortal = str(story.deployment.node_ids["mortal"])
    assert mortal in story.line(story.before, 2, "silent nodes")
    assert story.restarts > 1, "it was let in before the SuperLink had missed it"
    assert mortal not in story.line(story.after, ROUNDS, "silent nodes")


def test_a_restarted_node_goes_on_with_its_own_ledger(story: Story) -> None:
    before, after = story.charges
    assert 0 < before < after
    state = story.deployment.folder / "mortal" / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "record-ledger.json").stat().st_mode) == 0o600


def test_a_hanging_node_is_given_up_at_the_timeout_and_may_answer_later_rounds(
    story: Story,
) -> None:
    sleeper = str(story.deployment.node_ids["sleeper"])
    assert sleeper in story.line(story.before, 2, "silent nodes")
    assert sleeper not in story.line(story.after, ROUNDS, "silent nodes")
    assert "3 replies used" in story.line(story.after, ROUNDS, "silent nodes")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(1, "NaN"), (2, "cut short"), (ROUNDS, "not a numpy array")],
)
def test_garbage_is_dropped_and_the_run_goes_on(story: Story, number: int, reason: str) -> None:
    folder = story.before if number <= 2 else story.after
    garbler = story.deployment.node_ids["garbler"]
    assert reason in story.line(folder, number, f"dropped the reply of node {garbler}")
    assert not story.trace.exists(), "a pickle from a node was opened"


def test_a_killed_serverapp_resumes_with_its_ledger_intact(story: Story) -> None:
    assert story.ledger.read_bytes().startswith(story.ledger_before)
    client_level = story.metrics["privacy"]["client_level"]
    assert client_level["rounds"] == ROUNDS
    paid = [record.round for record in story.contents.records]
    assert paid[:2] == [1, 2]
    assert paid[-1] == ROUNDS
    assert len({record.run for record in story.contents.records}) == 1


def test_after_all_that_epsilon_is_exact(story: Story) -> None:
    client_level = story.metrics["privacy"]["client_level"]
    assert client_level["epsilon"] == story.contents.epsilon(1e-5, accountant="pld")
    assert client_level["population"] == len(NAMES)


@pytest.fixture(scope="module")
def strangers(deployment: Deployment) -> "dict[str, tuple[Node, subprocess.Popen[bytes]]]":
    """Nodes that must not be let in, all started at once."""
    other = make_certificates(deployment.folder / "other-certificates")
    trust = ("--root-certificates", str(deployment.certificates.authority))
    nodes = {
        name: deployment.new_node(name, deployment.folder)
        for name in ("keyless", "unregistered", "misled")
    }
    deployment.register(nodes["misled"])
    keys = {
        name: ("--auth-supernode-private-key", str(node.key.private))
        for name, node in nodes.items()
    }
    options = {
        "keyless": trust,
        "unregistered": (*trust, *keys["unregistered"]),
        "misled": ("--root-certificates", str(other.authority), *keys["misled"]),
    }
    return {
        name: (node, deployment.start_node(node, options=options[name]))
        for name, node in nodes.items()
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("keyless", "SuperNode authentication is enabled"),
        ("unregistered", "Failed to activate SuperNode"),
        ("misled", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_a_stranger_is_refused(
    deployment: Deployment,
    strangers: "dict[str, tuple[Node, subprocess.Popen[bytes]]]",
    name: str,
    reason: str,
) -> None:
    """A node without a key, with a key nobody registered, before a SuperLink it must not trust."""
    node, process = strangers[name]
    within(240, lambda: process.poll() is not None)
    assert process.returncode != 0
    assert reason in node.log.read_text()
    assert name not in deployment.online()


def test_an_operator_refuses_a_superlink_with_a_wrong_certificate(deployment: Deployment) -> None:
    other = make_certificates(deployment.folder / "wrong-certificates")
    home = Path(deployment.operator["FLWR_HOME"])
    kept = (home / "config.toml").read_text()
    trusted = str(deployment.certificates.authority)
    (home / "config.toml").write_text(kept.replace(trusted, str(other.authority)))
    try:
        with pytest.raises(RunFailed, match="Connection to the SuperLink is unavailable"):
            deployment.online()
    finally:
        (home / "config.toml").write_text(kept)
    deployment.online()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def test_a_full_disk_stops_the_run_before_it_releases(
    deployment: Deployment, story: Story, small_disk: Path, tmp_path: Path
) -> None:
    ledger = small_disk / "ledger.jsonl"
    # The population is the first node that was registered: the honest one.
    run = start(deployment, results=tmp_path, ledger=str(ledger), rounds=40, population=1)
    folder = results_of(tmp_path)
    checkpoint = folder / "checkpoint.safetensors"
    within(240, lambda: round_of(checkpoint) >= 1)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    status = within(240, lambda: _finished_status(deployment, run))
    assert status == "finished:failed"
    paid = read_ledger(ledger).records
    assert [record.round for record in paid] == list(range(1, len(paid) + 1))
    assert round_of(checkpoint) == len(paid), "a model was released that was not paid for"
    assert not (folder / "metrics.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert os.strerror(errno.ENOSPC) in deployment.flwr("log", str(run), "--show")


def _finished_status(deployment: Deployment, run: int) -> str | None:
    (found,) = deployment.ask("list", "--run-id", str(run))["runs"]
    return str(found["status"]) if found["status"].startswith("finished") else None
