"""What goes wrong in deployments, done to real processes over loopback, with TLS and node keys."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower_app.__main__ import main
from flower_app.commands.deploy_demo import write_node_folders
from flower_app.data import Split
from flower_app.processes.certificates import make_certificates
from flower_app.processes.deployment import Deployment, Node
from flower_app.processes.flower_processes import RunFailedError
from flower_app.processes.watchdog import kill_below
from privacy.accounting import LedgerContents, read_ledger
from strategies.checkpoint import Checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

PLENTY = 16  # rounds, of a run that is not meant to end before it is broken off
PATIENCE = 600.0  # seconds after which something that must happen has not
NAMES = ["honest", "garbler", "mortal", "sleeper"]

# A SuperNode's owner can run any ClientApp instead of the one that was sent: this one answers
# with NaN, then with the wrong shape, then with a pickle that would leave a trace if opened, and
# so on in turn.
GARBLING_CLIENTAPP = """
import importlib, os, pickle
from pathlib import Path
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
flwr_clientapp()
"""


# This one runs what it was sent, but hangs for as long as its owner's file says so.
HANGING_CLIENTAPP = """
import importlib, os, time
from pathlib import Path
from flwr.supernode.cli import flwr_clientapp

module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
made = module.get_load_client_app_fn

def make(**options):
    load = made(**options)
    def load_late(*what):
        while Path(os.environ["HOLD"]).exists():
            time.sleep(0.1)
        return load(*what)
    return load_late

module.get_load_client_app_fn = make
flwr_clientapp()
"""


def within(seconds: float, condition: Callable[[], Any]) -> Any:
    """What a condition gives once it is true; it must become so in this time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.1)
    return found


def in_training(node: Node, run: int) -> bool:
    """Whether a node's ClientApp runs for a message of this run."""
    said = node.log.read_text().rpartition(f"[RUN {run}]\n")[2]
    return "Start `flwr-clientapp` process" in said and "Sending" not in said


def round_of(checkpoint: Path) -> int:
    return Checkpoint.load(checkpoint).round if checkpoint.exists() else 0


def settings(results: Path, **more: Any) -> dict[str, Any]:
    return {
        "deployed": True,
        "population": len(NAMES),
        "sampling-rate": 1.0,
        "rounds": PLENTY,
        "noise-multiplier": 4.0,
        "epsilon": 20.0,
        "record-epsilon": 5.0,
        "round-timeout": PATIENCE,
        "encrypted-test-images": 0,
        "results-dir": str(results),
    } | {name.replace("_", "-"): value for name, value in more.items()}


def start(deployment: Deployment, **more: Any) -> int:
    """Start a run and return its id."""
    return int(deployment.ask(*deployment.run_command(settings(**more))[1:])["run-id"])


def resume(deployment: Deployment, folder: Path, **more: Any) -> int:
    """Go on, as an operator would, with a run once all nodes are there; the run's new id."""
    config = tomllib.loads((folder / "resume.toml").read_text())
    config |= {"min-available-nodes": len(NAMES)}
    config |= {name.replace("_", "-"): value for name, value in more.items()}
    return int(deployment.ask(*deployment.run_command(config)[1:])["run-id"])


def results_of(results: Path) -> Path:
    """The folder of a run, once it has one."""
    return Path(within(PATIENCE, lambda: next(iter(results.glob("2*-*")), None)))


def operator_log(folder: Path) -> str:
    return (folder.parent / "operator-logs" / f"{folder.name}.log").read_text()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with Deployment(folder) as deployment:
        deployment.start_superlink()
        yield deployment
    assert not any(deployment.processes(name.name) for name in folder.iterdir())


def lines(folder: Path, number: int, text: str) -> list[str]:
    """The operator log's lines about a round's training with this text."""
    said = operator_log(folder).splitlines()
    return [each for each in said if f"round {number}, train:" in each and text in each]


def replies_used(folder: Path, number: int) -> int:
    """How many replies were used in a round."""
    (line,) = lines(folder, number, "replies used")
    return int(re.search(r"(\d+) replies used", line)[1])  # type: ignore[index]


def missed(folder: Path, number: int, node: int) -> bool:
    """Whether a round got no word of this node's own."""
    (line,) = lines(folder, number, "silent nodes")
    return str(node) in line.partition("silent nodes")[2]


def slowest_round(folder: Path, numbers: range) -> float:
    """How many seconds the slowest of these rounds took."""

    def moment(line: str) -> datetime:
        return datetime.fromisoformat(line.partition(",")[0])

    return max(
        (
            moment(lines(folder, number, "replies used")[0])
            - moment(lines(folder, number, "drew")[0])
        ).total_seconds()
        for number in numbers
    )


@dataclass(frozen=True)
class Story:
    """A run in which much went wrong, and what was seen of it.

    Attributes
    ----------
    folder : Path
        The results folder, in which the run went on after the ServerApp was killed.
    killed : int
        The round in which a node was killed.
    kept : int
        The last round that was released before the ServerApp was killed.
    """

    folder: Path
    killed: int
    kept: int
    ledger_before: bytes
    ledger: Path
    trace: Path
    deployment: Deployment
    charges: tuple[int, int]
    refusal: str

    @property
    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return found

    @property
    def contents(self) -> LedgerContents:
        return read_ledger(self.ledger)

    @property
    def rounds_after_the_hang(self) -> range:
        return range(self.kept + 2, PLENTY + 1)


def charges(node: Node) -> int:
    """How many charges stand in a node's own ledger."""
    return len(read_ledger(node.state / "record-ledger.jsonl").records)


@pytest.fixture(scope="module")
def story(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Four nodes: one always lies, one joins late, and one is killed in training.

    Then the ServerApp is killed in mid-round. The killed node, which was refused at first, is
    started until it is let in, as a service manager would, and the run is resumed from its
    checkpoint. In its first round the late joiner hangs.
    """
    base = tmp_path_factory.mktemp("story")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (240, 28, 28), dtype=np.uint8)
    split = Split(images, generator.integers(0, 10, 240).astype(np.int64))
    folders = write_node_folders(base / "data", split, NAMES, images=60)
    nodes = {
        name: deployment.new_node(
            name,
            folder,
            config='min-clients=3 max-corrupt-fraction=0.0 secure-aggregation="off" '
            "max-record-epsilon=5.0 allow-unnoised-training=true",
        )
        for name, folder in folders.items()
    }
    garbling = own_client_app(deployment, base / "garbling", GARBLING_CLIENTAPP) | {
        "TRACE": str(base / "trace"),
        "TURNS": str(base / "turns"),
    }
    hold = base / "hold"
    hanging = own_client_app(deployment, base / "hanging", HANGING_CLIENTAPP) | {"HOLD": str(hold)}
    for node in nodes.values():
        deployment.register(node)
    running = {
        name: deployment.start_node(nodes[name], variables=garbling if name == "garbler" else None)
        for name in NAMES
        if name != "sleeper"
    }
    deployment.wait_until_online(*running)

    ledger = base / "ledger.jsonl"
    first = base / "first"
    run = start(deployment, results=first, ledger=str(ledger))
    folder = results_of(first)
    checkpoint = folder / "checkpoint.safetensors"
    within(PATIENCE, lambda: round_of(checkpoint) >= 1)
    deployment.start_node(nodes["sleeper"], variables=hanging)
    within(PATIENCE, lambda: "3 replies used" in operator_log(folder))

    within(PATIENCE, lambda: in_training(nodes["mortal"], run))
    os.killpg(running["mortal"].pid, signal.SIGKILL)
    running["mortal"].wait()
    killed = round_of(checkpoint) + 1
    charges_before = charges(nodes["mortal"])
    refused = deployment.start_node(nodes["mortal"])  # the SuperLink has not missed it yet
    within(PATIENCE, lambda: refused.poll() is not None)
    refusal = nodes["mortal"].log.read_text()

    within(PATIENCE, lambda: round_of(checkpoint) >= killed)
    within(PATIENCE, lambda: in_training(nodes["honest"], run))
    (server_app,) = [
        pid for pid, command in deployment.processes("superlink").items() if "serverapp" in command
    ]
    os.kill(server_app, signal.SIGKILL)
    within(PATIENCE, lambda: server_app not in deployment.processes("superlink"))
    kept = round_of(checkpoint)
    ledger_before = ledger.read_bytes()

    start_until_let_in(deployment, nodes["mortal"])
    hold.touch()
    run = resume(
        deployment,
        folder,
        # The one round that hangs costs this; the others' replies must come within it.
        round_timeout=10.0 + 4 * slowest_round(folder, range(1, killed)),
    )
    within(PATIENCE, lambda: round_of(checkpoint) > kept)
    hold.unlink()
    assert within(PATIENCE, lambda: _finished_status(deployment, run)) == "finished:completed"
    return Story(
        folder=folder,
        killed=killed,
        kept=kept,
        ledger_before=ledger_before,
        ledger=ledger,
        trace=base / "trace",
        deployment=deployment,
        charges=(charges_before, charges(nodes["mortal"])),
        refusal=refusal,
    )


def start_until_let_in(deployment: Deployment, node: Node) -> None:
    """Start a node again and again, as systemd does, until the SuperLink lets it in."""
    lives = _lives(node)
    for _ in range(100):
        process = deployment.start_node(node)
        within(PATIENCE, lambda: process.poll() is not None or _lives(node) > lives)  # noqa: B023
        if process.poll() is None:
            return
    raise AssertionError("never let in")


def _lives(node: Node) -> int:
    return node.log.read_text().count("SuperNode ID")


def own_client_app(deployment: Deployment, folder: Path, program: str) -> dict[str, str]:
    """The environment of a SuperNode whose owner runs this program instead of Flower's."""
    folder.mkdir()
    script = folder / "flwr-clientapp"
    script.write_text(f"#!{sys.executable}\n{program}")
    script.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), deployment.operator["PATH"]])}


def test_a_node_that_joins_late_takes_part(story: Story) -> None:
    assert "3 connected, asking 3" in lines(story.folder, 1, "drew")[0]
    used = [replies_used(story.folder, number) for number in range(1, story.killed)]
    assert max(used) == 3
    joined = used.index(3) + 1
    assert "4 connected, asking 4" in lines(story.folder, joined, "drew")[0]


def test_a_node_killed_in_training_costs_its_reply_and_comes_back(story: Story) -> None:
    mortal = story.deployment.node_ids["mortal"]
    assert missed(story.folder, story.killed, mortal)
    assert story.killed in [record.round for record in story.contents.records]
    assert "Failed to activate SuperNode" in story.refusal, "the SuperLink had missed it already"
    assert not all(
        missed(story.folder, number, mortal) for number in range(story.kept + 1, story.kept + 3)
    )


def test_a_restarted_node_goes_on_with_its_own_ledger(story: Story) -> None:
    before, after = story.charges
    assert 0 < before < after
    state = story.deployment.folder / "mortal" / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "record-ledger.jsonl").stat().st_mode) == 0o600


def test_a_hanging_node_is_given_up_at_the_timeout_and_may_answer_later_rounds(
    story: Story,
) -> None:
    sleeper = story.deployment.node_ids["sleeper"]
    assert missed(story.folder, story.kept + 1, sleeper)
    # Three: the killed node and the hanging one are both back.
    assert 3 in [replies_used(story.folder, number) for number in story.rounds_after_the_hang]


@pytest.mark.parametrize("reason", ["NaN", "another shape", "not a numpy array"])
def test_garbage_is_dropped_and_the_run_goes_on(story: Story, reason: str) -> None:
    garbler = story.deployment.node_ids["garbler"]
    said = (operator_log(story.folder)).splitlines()
    assert any(f"dropped the reply of node {garbler}" in line and reason in line for line in said)
    assert not story.trace.exists(), "a pickle from a node was opened"


def test_a_killed_serverapp_resumes_with_its_ledger_intact(story: Story) -> None:
    assert story.ledger.read_bytes().startswith(story.ledger_before)
    last = story.rounds_after_the_hang[-1]
    client_level = story.metrics["privacy"]["client_level"]
    assert client_level["rounds"] == last
    paid = [record.round for record in story.contents.records]
    assert sorted(set(paid)) == list(range(1, last + 1))
    assert paid[: story.kept] == list(range(1, story.kept + 1))
    assert paid[-1] == last
    assert len({record.run for record in story.contents.records}) == 1


def test_after_all_that_epsilon_is_exact(story: Story) -> None:
    client_level = story.metrics["privacy"]["client_level"]
    assert client_level["epsilon"] == story.contents.epsilon(1e-5, accountant="pld")
    assert client_level["population"] == len(NAMES)


@dataclass(frozen=True)
class Together:
    """Two runs at once, and a third that wanted the first one's ledger.

    Attributes
    ----------
    short : Path
        The folder of the one that ended first.
    refused : str
        What the third said.
    kept : int
        The last round that the long one released before the SuperLink was killed.
    resumed : Path
        Its folder after it was resumed under a new SuperLink.
    ledger_before : bytes
        Its ledger when the SuperLink was killed.
    """

    short: Path
    refused: str
    kept: int
    resumed: Path
    ledger: Path
    ledger_before: bytes


@pytest.fixture(scope="module")
def together(
    deployment: Deployment, story: Story, tmp_path_factory: pytest.TempPathFactory
) -> Together:
    base = tmp_path_factory.mktemp("together")
    ledger = base / "ledger.jsonl"
    listed = base / "clients.json"
    keys = [str(deployment.folder / name / "key" / "node.pub") for name in NAMES]
    assert main(["population", str(listed), *keys]) == 0
    shared = {
        "results": base / "results",
        "record_epsilon": 0.0,
        "population": 0,
        "population_file": str(listed),
    }
    owned = shared | {"ledger": str(ledger)}

    long = start(deployment, **owned)
    checkpoint = folder_of(base / "results", long) / "checkpoint.safetensors"
    within(PATIENCE, checkpoint.exists)
    short = start(deployment, **shared, rounds=1)
    third = start(deployment, **owned)
    assert within(PATIENCE, lambda: _finished_status(deployment, third)) == "finished:failed"
    assert within(PATIENCE, lambda: _finished_status(deployment, short)) == "finished:completed"
    assert _finished_status(deployment, long) is None

    within(PATIENCE, lambda: round_of(checkpoint) >= 1)
    # The ServerApp too, as a service manager does: left to itself it may wait for ever for an
    # object that it was fetching (Flower 1.42).
    kill_below(deployment.folder / "superlink")
    deployment.superlink.wait()
    kept = round_of(checkpoint)
    ledger_before = ledger.read_bytes()
    deployment.start_superlink()
    resumed = resume(deployment, checkpoint.parent)
    assert within(PATIENCE, lambda: _finished_status(deployment, resumed)) == "finished:completed"
    return Together(
        short=folder_of(base / "results", short),
        refused=deployment.flwr("log", str(third), "--show"),
        kept=kept,
        resumed=checkpoint.parent,
        ledger=ledger,
        ledger_before=ledger_before,
    )


def folder_of(results: Path, run: int) -> Path:
    """The folder of one of several runs, once it has one."""
    pattern = f"2*-{run % 2**32:08x}"
    return Path(within(PATIENCE, lambda: next(iter(results.glob(pattern)), None)))


def test_two_runs_at_once_keep_to_themselves(together: Together) -> None:
    metrics = json.loads((together.short / "metrics.json").read_text())
    assert metrics["privacy"]["client_level"]["rounds"] == 1
    (paid,) = read_ledger(together.short / "privacy-ledger.jsonl").records
    (other,) = {record.run for record in read_ledger(together.ledger).records}
    assert paid.run != other
    assert replies_used(together.short, 1) == 3
    # The clients were listed by their keys.
    assert metrics["privacy"]["client_level"]["population"] == len(NAMES)


def test_a_ledger_in_use_is_refused_to_a_second_run(together: Together) -> None:
    assert "is held by another run" in together.refused
    assert str(together.ledger) in together.refused


def test_a_killed_superlink_comes_back_with_its_nodes_and_the_run_is_resumed(
    together: Together,
) -> None:
    """The registrations are in its database; nobody touched the SuperNodes."""
    assert together.ledger.read_bytes().startswith(together.ledger_before)
    last = PLENTY
    metrics = json.loads((together.resumed / "metrics.json").read_text())
    assert metrics["privacy"]["client_level"]["rounds"] == last
    contents = read_ledger(together.ledger)
    assert metrics["privacy"]["client_level"]["epsilon"] == contents.epsilon(1e-5, accountant="pld")
    assert max(replies_used(together.resumed, n) for n in (last - 1, last)) == 3


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
    within(PATIENCE, lambda: process.poll() is not None)
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
        with pytest.raises(RunFailedError, match="Connection to the SuperLink is unavailable"):
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
    run = start(deployment, results=tmp_path, ledger=str(ledger), record_epsilon=0.0)
    folder = results_of(tmp_path)
    checkpoint = folder / "checkpoint.safetensors"
    within(PATIENCE, lambda: round_of(checkpoint) >= 1)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    status = within(PATIENCE, lambda: _finished_status(deployment, run))
    assert status == "finished:failed"
    paid = read_ledger(ledger).records
    assert [record.round for record in paid] == list(range(1, len(paid) + 1))
    assert round_of(checkpoint) == len(paid), "a model was released that was not paid for"
    assert not (folder / "metrics.json").exists()
    assert not (folder / "model.safetensors").exists()
    said = deployment.flwr("log", str(run), "--show")
    assert os.strerror(errno.ENOSPC) in said
    assert f"the ledger {ledger} cannot be written" in said
    assert f"round {len(paid) + 1} was not released" in said


def test_secure_aggregation_opens_the_sum_of_those_who_keep_to_it(
    deployment: Deployment, story: Story, tmp_path: Path
) -> None:
    """Each node keeps its secrets in its own folder, as no context outlives a message here."""
    run = start(
        deployment,
        results=tmp_path,
        rounds=1,
        record_epsilon=0.0,
        min_available_nodes=len(NAMES),
        secure_aggregation="honest-but-curious",
        minimum_cohort=3,
        dropout=0.25,
        corrupt=0.0,
        client_dropout=0.0,
    )
    assert within(PATIENCE, lambda: _finished_status(deployment, run)) == "finished:completed"
    folder = results_of(tmp_path)
    assert "opened the sum of 3 clients" in operator_log(folder), "the garbler's is not in it"
    told = json.loads((folder / "metrics.json").read_text())["privacy"]["client_level"]
    assert told["secure_aggregation"]["aborted_rounds"] == []
    kept = {name: deployment.folder / name / "state" / "secure-aggregation.state" for name in NAMES}
    assert {name for name, file in kept.items() if file.exists()} == {*NAMES} - {"garbler"}
    for name in {*NAMES} - {"garbler"}:
        assert stat.S_IMODE(kept[name].stat().st_mode) == 0o600


def _finished_status(deployment: Deployment, run: int) -> str | None:
    (found,) = deployment.ask("list", "--run-id", str(run))["runs"]
    return str(found["status"]) if found["status"].startswith("finished") else None
