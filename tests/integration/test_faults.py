"""Faults of a deployment, made in real processes over loopback, with TLS and node keys."""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower_app.__main__ import main
from flower_app.commands.deploy_demo import write_node_folders
from flower_app.data import Split
from flower_app.errors import RunFailedError
from flower_app.processes.certificates import make_certificates
from flower_app.processes.deployment import Deployment, Node
from flower_app.processes.watchdog import kill_below
from privacy.accounting import GroupRelease, LedgerContents, read_ledger
from privacy.correlated_noise import NoiseInstance
from tests.integration.app_commands import PATIENCE, wait_until
from tests.integration.deployed_runs import (
    GARBLING,
    GATED,
    apps_of,
    ending,
    folder_of,
    forking,
    in_training,
    metrics_of,
    operator_log,
    replies_used,
    resume,
    round_of,
    start,
    start_superlink,
    status,
    training_lines,
    was_silent,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

NAMES = ["honest", "garbler", "mortal", "sleeper"]
ROUNDS = 5
HANG = 30.0  # seconds after which a hanging node is given up; the others may be late too


def settings(results: Path, **more: Any) -> dict[str, Any]:
    return {
        "deployed": True,
        "population": len(NAMES),
        "sampling-rate": 1.0,
        "rounds": ROUNDS,
        "noise-multiplier": 4.0,
        "epsilon": 20.0,
        "record-epsilon": 0.0,
        "round-timeout": PATIENCE,
        "encrypted-test-images": 0,
        "results-dir": str(results),
    } | {name.replace("_", "-"): value for name, value in more.items()}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with Deployment(folder) as deployment:
        start_superlink(deployment)
        yield deployment
    assert not any(deployment.processes(name.name) for name in folder.iterdir())


@dataclass(frozen=True)
class Story:
    """A run in which much went wrong, and another beside it.

    Attributes
    ----------
    folder : Path
        The results folder of the run, resumed after its ServerApp and after the SuperLink was
        killed.
    beside : Path
        That of the other run, of one round.
    refusal_of_ledger : str
        The log of a third run, which was given the first one's ledger.
    refusal_of_node : str
        The log of the killed node, started again before the SuperLink had missed it.
    node_killed : int
        The round in which a node was killed.
    released : tuple of int
        The last rounds that were released before the ServerApp and before the SuperLink was killed.
    paid : tuple of bytes
        The ledger at these two moments.
    charges : tuple of int
        How many charges stood in the killed node's own ledger then, and at the end.
    """

    deployment: Deployment
    nodes: dict[str, Node]
    folder: Path
    beside: Path
    refusal_of_ledger: str
    refusal_of_node: str
    node_killed: int
    released: tuple[int, int]
    paid: tuple[bytes, bytes]
    ledger: Path
    charges: tuple[int, int]
    trace: Path

    @property
    def client_level(self) -> dict[str, Any]:
        claimed: dict[str, Any] = metrics_of(self.folder)["privacy"]["client_level"]
        return claimed

    @property
    def contents(self) -> LedgerContents:
        return read_ledger(self.ledger)


@pytest.fixture(scope="module")
def story(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Four nodes, of which one always lies, one joins late, one is killed, and one is honest.

    Gates of the nodes hold a round until something else has happened.
    """
    base = tmp_path_factory.mktemp("story")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (240, 28, 28), dtype=np.uint8)
    split = Split(images, generator.integers(0, 10, 240).astype(np.int64))
    folders = write_node_folders(base / "data", split, NAMES, images=60)
    policy = (
        'min-clients=3 max-corrupt-fraction=0.0 secure-aggregation="off" max-record-epsilon=5.0 '
        "allow-unnoised-training=true"
    )
    nodes = {
        name: deployment.new_node(name, folder, config=policy) for name, folder in folders.items()
    }
    gates = {name: base / f"{name}.gate" for name in NAMES}
    client_apps = {
        name: forking(base / name, GATED) | {"GATE": str(gate)} for name, gate in gates.items()
    }
    client_apps["garbler"] = forking(base / "garbling", GARBLING) | {
        "TRACE": str(base / "trace"),
        "TURNS": str(base / "turns"),
    }
    for node in nodes.values():
        deployment.register(node)
    running = {
        name: deployment.start_node(nodes[name], variables=client_apps[name])
        for name in NAMES
        if name != "sleeper"
    }
    deployment.wait_until_online(*running)

    # Round 1 waits for the honest node until the other runs have begun and the late node is there.
    gates["honest"].touch()
    gates["sleeper"].touch()
    results = base / "results"
    ledger = base / "ledger.jsonl"
    clients = listed(base, *nodes.values())
    other = start(deployment, settings(results, **clients, rounds=1, record_epsilon=0.5))
    beside = folder_of(results, other)
    wait_until(lambda: training_lines(beside, 1, "drew"))
    owned = settings(results, **clients, ledger=str(ledger), record_epsilon=5.0)
    run = start(deployment, owned)
    folder = folder_of(results, run)
    wait_until(lambda: training_lines(folder, 1, "drew"))
    third = start(deployment, owned)
    deployment.start_node(nodes["sleeper"], variables=client_apps["sleeper"])
    deployment.wait_until_online("sleeper")
    assert ending(deployment, third) == "finished:failed"

    # Round 2 waits for the late node until the other run has ended, and loses the mortal one.
    gates["honest"].unlink()
    wait_until(lambda: round_of(folder) >= 1)
    gates["mortal"].touch()
    assert ending(deployment, other) == "finished:completed"
    assert not status(deployment, run).startswith("finished")
    wait_until(lambda: in_training(nodes["mortal"], run))
    node_killed = round_of(folder) + 1
    os.killpg(running["mortal"].pid, signal.SIGKILL)
    running["mortal"].wait()
    gates["mortal"].unlink()
    gates["sleeper"].unlink()
    charges_then = charges(nodes["mortal"])
    refused = deployment.start_node(nodes["mortal"])
    wait_until(lambda: refused.poll() is not None)
    refusal_of_node = nodes["mortal"].log.read_text()
    wait_until(lambda: round_of(folder) >= node_killed)

    # The ServerApp is killed in mid-round; in the first round after it the late node hangs.
    wait_until(lambda: in_training(nodes["honest"], run))
    kill_server_app(deployment)
    first_life = round_of(folder), ledger.read_bytes()
    start_until_let_in(deployment, nodes["mortal"], forking(base / "mortal"))
    gates["sleeper"].touch()
    everybody = len(NAMES)
    resume(deployment, folder, min_available_nodes=everybody, round_timeout=HANG)
    wait_until(lambda: round_of(folder) > first_life[0])
    gates["sleeper"].unlink()

    # The ServerApp too, as a service manager does: left to itself it may wait for ever for an
    # object that it was fetching (Flower 1.42).
    kill_below(deployment.folder / "superlink")
    deployment.superlink.wait()
    second_life = round_of(folder), ledger.read_bytes()
    start_superlink(deployment)
    run = resume(deployment, folder, min_available_nodes=everybody, round_timeout=PATIENCE)
    assert ending(deployment, run) == "finished:completed"
    return Story(
        deployment=deployment,
        nodes=nodes,
        folder=folder,
        beside=beside,
        refusal_of_ledger=deployment.flwr("log", str(third), "--show"),
        refusal_of_node=refusal_of_node,
        node_killed=node_killed,
        released=(first_life[0], second_life[0]),
        paid=(first_life[1], second_life[1]),
        ledger=ledger,
        charges=(charges_then, charges(nodes["mortal"])),
        trace=base / "trace",
    )


def listed(folder: Path, *nodes: Node) -> dict[str, Any]:
    """The settings of a run over these nodes alone, whose list is written to a folder."""
    file = folder / "clients.json"
    assert main(["population", str(file), *(str(node.key.public) for node in nodes)]) == 0
    return {"population": 0, "population_file": str(file)}


def kill_server_app(deployment: Deployment) -> None:
    """By SIGKILL; there is one."""
    (server_app,) = apps_of(deployment, "superlink")
    server_app.kill()
    server_app.wait()


def charges(node: Node) -> int:
    """How many charges stand in a node's own ledger."""
    return len(read_ledger(node.state / "record-ledger.jsonl").records)


def start_until_let_in(deployment: Deployment, node: Node, variables: dict[str, str]) -> None:
    """Start a node again and again, as systemd does, until the SuperLink lets it in."""

    def admissions() -> int:
        return node.log.read_text().count("SuperNode ID")

    before = admissions()
    for _ in range(100):
        process = deployment.start_node(node, variables=variables)
        wait_until(lambda: process.poll() is not None or admissions() > before)  # noqa: B023
        if process.poll() is None:
            return
    raise AssertionError("never let in")


def test_a_node_that_joins_late_takes_part(story: Story) -> None:
    sleeper = story.deployment.node_ids["sleeper"]
    assert "3 connected, asking 3" in training_lines(story.folder, 1, "drew")[0]
    assert "4 connected, asking 4" in training_lines(story.folder, 2, "drew")[0]
    assert not was_silent(story.folder, 2, sleeper)
    assert replies_used(story.folder, 2) == 2, "the honest node's and the late one's"


def test_a_node_killed_in_training_costs_its_reply_and_comes_back(story: Story) -> None:
    mortal = story.deployment.node_ids["mortal"]
    assert was_silent(story.folder, story.node_killed, mortal)
    assert story.node_killed in [record.round for record in story.contents.records]
    assert "Failed to activate SuperNode" in story.refusal_of_node, "missed already"
    after = range(story.released[0] + 1, ROUNDS + 1)
    assert not all(was_silent(story.folder, number, mortal) for number in after)


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
    hung = story.released[0] + 1
    assert was_silent(story.folder, hung, sleeper)
    later = range(hung + 1, ROUNDS + 1)
    assert 3 in [replies_used(story.folder, number) for number in later], "all but the garbler"


@pytest.mark.parametrize("reason", ["NaN", "another shape", "not a numpy array"])
def test_garbage_is_dropped_and_the_run_goes_on(story: Story, reason: str) -> None:
    garbler = story.deployment.node_ids["garbler"]
    lines = [line for run in (story.folder, story.beside) for line in operator_log(run).split("\n")]
    assert any(f"dropped the reply of node {garbler}" in line and reason in line for line in lines)
    assert not story.trace.exists(), "a pickle from a node was opened"


def test_a_killed_serverapp_resumes_with_its_ledger_intact(story: Story) -> None:
    assert story.ledger.read_bytes().startswith(story.paid[0])
    assert story.client_level["rounds"] == ROUNDS
    rounds = [record.round for record in story.contents.records]
    assert sorted(set(rounds)) == list(range(1, ROUNDS + 1))
    assert rounds[: story.released[0]] == list(range(1, story.released[0] + 1))
    assert rounds[-1] == ROUNDS
    assert len({record.run for record in story.contents.records}) == 1


def test_a_killed_superlink_comes_back_with_its_nodes_and_the_run_is_resumed(story: Story) -> None:
    """The registrations are in its database; nobody touched the SuperNodes."""
    assert story.paid[1].startswith(story.paid[0])
    assert story.ledger.read_bytes().startswith(story.paid[1])
    after = range(story.released[1] + 1, ROUNDS + 1)
    assert 3 in [replies_used(story.folder, number) for number in after], "all but the garbler"


def test_after_all_that_epsilon_is_exact(story: Story) -> None:
    assert story.client_level["epsilon"] == story.contents.epsilon(1e-5, accountant="pld")
    assert story.client_level["population"] == len(NAMES), "listed by their keys"


def test_two_runs_at_once_keep_to_themselves(story: Story) -> None:
    assert metrics_of(story.beside)["privacy"]["client_level"]["rounds"] == 1
    (paid,) = read_ledger(story.beside / "privacy-ledger.jsonl").records
    (other,) = {record.run for record in story.contents.records}
    assert paid.run != other
    assert replies_used(story.beside, 1) == 2
    assert metrics_of(story.beside)["privacy"]["client_level"]["population"] == len(NAMES)


def test_a_ledger_in_use_is_refused_to_a_second_run(story: Story) -> None:
    assert "is held by another run" in story.refusal_of_ledger
    assert str(story.ledger) in story.refusal_of_ledger


def test_a_killed_serverapp_goes_on_from_its_correlated_noise(
    deployment: Deployment, story: Story, tmp_path: Path
) -> None:
    """What the model holds is taken back, and no noise that a sum had serves another."""
    honest, gate = story.nodes["honest"], story.ledger.parent / "honest.gate"
    clients = listed(tmp_path, story.nodes["honest"], story.nodes["mortal"], story.nodes["sleeper"])
    results, ledger = tmp_path / "results", tmp_path / "ledger.jsonl"
    in_turns = {"mechanism": "banded", "sampling_rate": 0.5, "ledger": str(ledger)}
    run = start(deployment, settings(results, **clients, **in_turns))
    folder = folder_of(results, run)
    wait_until(lambda: round_of(folder) >= 1)
    gate.touch()
    wait_until(lambda: in_training(honest, run))
    kill_server_app(deployment)
    released, paid = round_of(folder), ledger.read_bytes()
    secret = folder / "checkpoint.safetensors.noise"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = NoiseInstance.load(secret)
    run = resume(deployment, folder)
    # The honest node's next turn waits at its gate, so that the file is still there.
    wait_until(lambda: round_of(folder) > released)
    after = NoiseInstance.load(secret)
    gate.unlink()
    assert ending(deployment, run) == "finished:completed"
    assert after.keys[:released] == before.keys[:released]
    assert not set(after.keys[released:]) - {None} & set(before.keys)
    assert ledger.read_bytes().startswith(paid)
    contents = read_ledger(ledger)
    events = [event for r in contents.records if isinstance(event := r.event, GroupRelease)]
    assert [event.row for event in events] == sorted({event.row for event in events})
    assert {event.instance for event in events} == {before.name}
    claimed = metrics_of(folder)["privacy"]["client_level"]
    assert claimed["rounds"] == ROUNDS
    assert claimed["epsilon"] == contents.epsilon(1e-5)
    assert not secret.exists()


def test_strangers_are_refused(deployment: Deployment) -> None:
    """A node without a key, with a key nobody registered, before a SuperLink it must not trust."""
    other = make_certificates(deployment.folder / "other-certificates")
    trust = ("--root-certificates", str(deployment.certificates.ca))
    refusals = {
        "keyless": "SuperNode authentication is enabled",
        "unregistered": "Failed to activate SuperNode",
        "misled": "CERTIFICATE_VERIFY_FAILED",
    }
    nodes = {name: deployment.new_node(name, deployment.folder) for name in refusals}
    deployment.register(nodes["misled"])
    keys = {
        name: ("--auth-supernode-private-key", str(node.key.private))
        for name, node in nodes.items()
    }
    options = {
        "keyless": trust,
        "unregistered": (*trust, *keys["unregistered"]),
        "misled": ("--root-certificates", str(other.ca), *keys["misled"]),
    }
    started = {
        name: deployment.start_node(node, options=options[name]) for name, node in nodes.items()
    }
    wait_until(lambda: all(process.poll() is not None for process in started.values()))
    for name, reason in refusals.items():
        assert started[name].returncode != 0
        assert reason in nodes[name].log.read_text()
    assert not set(refusals) & deployment.online()


def test_an_operator_refuses_a_superlink_with_a_wrong_certificate(deployment: Deployment) -> None:
    other = make_certificates(deployment.folder / "wrong-certificates")
    configuration = Path(deployment.operator["FLWR_HOME"]) / "config.toml"
    before = configuration.read_text()
    trusted = str(deployment.certificates.ca)
    configuration.write_text(before.replace(trusted, str(other.ca)))
    try:
        with pytest.raises(RunFailedError, match="Connection to the SuperLink is unavailable"):
            deployment.online()
    finally:
        configuration.write_text(before)
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
    clients = listed(tmp_path, story.nodes["honest"])
    run = start(deployment, settings(tmp_path / "results", **clients, ledger=str(ledger)))
    folder = folder_of(tmp_path / "results", run)
    wait_until(lambda: round_of(folder) >= 1)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert ending(deployment, run) == "finished:failed"
    paid = read_ledger(ledger).records
    assert [record.round for record in paid] == list(range(1, len(paid) + 1))
    assert round_of(folder) == len(paid), "a model was released that was not paid for"
    assert not (folder / "metrics.json").exists()
    assert not (folder / "model.safetensors").exists()
    log = deployment.flwr("log", str(run), "--show")
    assert os.strerror(errno.ENOSPC) in log
    assert f"the ledger {ledger} cannot be written" in log
    assert f"round {len(paid) + 1} was not released" in log


def test_secure_aggregation_opens_the_sum_of_those_who_keep_to_it(
    deployment: Deployment, story: Story, tmp_path: Path
) -> None:
    """Each node keeps its secrets in its own folder, as no context outlives a message here."""
    secure_aggregation = {
        "secure_aggregation": "honest-but-curious",
        "min_clients": 3,
        "max_dropout_fraction": 0.25,
        "max_corrupt_fraction": 0.0,
        "dropout_probability": 0.0,
    }
    run = start(
        deployment,
        settings(tmp_path, rounds=1, min_available_nodes=len(NAMES), **secure_aggregation),
    )
    assert ending(deployment, run) == "finished:completed"
    folder = folder_of(tmp_path, run)
    assert "opened the sum of 3 clients" in operator_log(folder), "the garbler's is not in it"
    claimed = metrics_of(folder)["privacy"]["client_level"]
    assert claimed["secure_aggregation"]["aborted_rounds"] == []
    state = {
        name: deployment.folder / name / "state" / "secure-aggregation.state" for name in NAMES
    }
    assert {name for name, file in state.items() if file.exists()} == {*NAMES} - {"garbler"}
    for name in {*NAMES} - {"garbler"}:
        assert stat.S_IMODE(state[name].stat().st_mode) == 0o600
