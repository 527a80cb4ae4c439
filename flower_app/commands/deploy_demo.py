"""``python -m flower_app deploy-demo``: a temporary deployment on this machine."""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.commands.demo_task import DemoTask, check_demo, divide_task
from flower_app.commands.run import absolute_paths, parse_settings
from flower_app.data import Split, load_dataset
from flower_app.processes.deployment import CONNECTION, Deployment
from flower_app.processes.flower_processes import handled_signals
from flower_app.processes.follow import follow
from flower_app.settings import Settings
from flower_app.tasks import read_task

NODES = 3
NODES_OF_SECURE_SUMS = 5  # fewer, and one node's presence would decide whether a sum of three opens
IMAGES = 5_000  # of each node
TEST_IMAGES = 200  # of each node, of its own; all are asked about in the encrypted round

# With three clients, noise that hides one of them would drown the model: the budget below protects
# single images well and whole clients hardly, and the command says so.
_CLIENTS: dict[str, Any] = {
    "population": NODES,
    "sampling-rate": 1.0,
    "rounds": 8,
    "server-momentum": 0.5,
    "epsilon": 50.0,
    "record-epsilon": 3.0,
    "encrypted-round-images": TEST_IMAGES,
    "encrypted-round-release": "public",
}
# All nodes are on this machine, and none drops out: if one might, five were too few.
_SECURE: dict[str, Any] = {
    "population": NODES_OF_SECURE_SUMS,
    "min-clients": 3,
    "dropout-probability": 0.0,
}
# A task says itself how many silos there are, and of whom.
_TASK: dict[str, Any] = {"rounds": 8, "record-sampling-rate": 0.2, "evaluate-every": 8}
# Three silos hide every image from all but its own silo.
_SILOS: dict[str, Any] = {
    "silos": NODES,
    "records": NODES * IMAGES,
    "rounds": 8,
    "record-sampling-rate": 0.2,
    "evaluate-every": 8,
}


def add_command(commands: Any) -> None:
    """Add ``deploy-demo`` to the app's command line."""
    parser = commands.add_parser(
        "deploy-demo",
        description="Makes certificates and keys, gives three SuperNodes 5,000 images each, "
        "starts them and a SuperLink with TLS and node authentication on loopback, runs the app "
        "on them, over clients or with mode=silos over silos; with "
        "secure-aggregation=honest-but-curious over five clients, of whom the server sees sums "
        "alone; with task=FILE it starts a SuperNode "
        "for each silo of a task of yours, with its own data and task.toml. It stops and removes "
        "everything but the results. Flower's telemetry is off.",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of the run, for instance rounds=3",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demonstration.

    Raises
    ------
    SettingError
        Before anything is started, if a setting is wrong.
    RunFailedError
        If the run did not finish.
    """
    given = absolute_paths({"results-dir": "results", **parse_settings(options.settings)})
    try:
        with (
            _ended_politely(),
            tempfile.TemporaryDirectory(prefix="bloomseal-deploy-") as folder,
        ):
            code = _deploy(given, Path(folder))
    except SystemExit:
        code = 130
    _announce("The SuperLink and the SuperNodes have ended; their keys and data are removed.")
    return code


def _deploy(given: dict[str, Any], folder: Path) -> int:
    """Check the settings, deploy in a folder, and run; raises as :func:`run`."""
    usual, nodes = (_SILOS if given.get("mode") == "silos" else _CLIENTS), NODES
    if usual is _CLIENTS and given.get("secure-aggregation", "off") != "off":
        usual, nodes = usual | _SECURE, NODES_OF_SECURE_SUMS
    divided = None
    if given.get("task"):
        task = read_task(Path(str(given["task"])))
        check_demo(task)
        divided = divide_task(task, folder)
        usual, nodes = _TASK | {"task": str(divided.server)}, len(divided.nodes)
        given = {name: value for name, value in given.items() if name != "task"}
    overrides = {**usual, **given, "deployed": True}
    settings = Settings.from_config(overrides)
    from flower_app.training.assembly import (
        check_run,  # brings the libraries that --help does without
    )

    check_run(settings, nodes=nodes)
    print("Flower's telemetry is off for this run (FLWR_TELEMETRY_ENABLED=0).")
    print(_protection_line(settings, nodes), flush=True)
    with Deployment(folder) as deployment:
        _set_up(deployment, settings, divided, nodes)
        _announce(f"flwr run . {CONNECTION} --stream")
        command = [*deployment.run_command(overrides), "--stream"]
        return follow(command, deployment.operator, connection=CONNECTION, resumable=False)


def write_node_folders(
    folder: Path, data: Split, names: list[str], *, images: int
) -> dict[str, Path]:
    """Give each node so many images at random, no two the same, in a folder of its own.

    Returns the nodes' folders, in the format that ``check-data`` checks.
    """
    order = np.random.default_rng(0).permutation(len(data))
    folders = {}
    for number, name in enumerate(names):
        rows = order[number * images : (number + 1) * images]
        folders[name] = folder / name
        folders[name].mkdir(parents=True)
        np.savez(
            folders[name] / "images.npz",
            images=data.images[rows],
            labels=data.labels[rows].astype(np.uint8),
        )
    return folders


def _set_up(
    deployment: Deployment, settings: Settings, divided: DemoTask | None, nodes: int
) -> None:
    _announce("Certificates and node keys are made; they live for this demonstration only.")
    if divided:
        configured = {
            name: (data, f'task="{task}"') for name, (data, task) in divided.nodes.items()
        }
        theirs = f"the data of one silo: {', '.join(divided.names)}"
    else:
        configured = _images(deployment.folder, settings, nodes)
        theirs = f"{IMAGES:,} images in its own folder"
    _announce(
        f"Starting a SuperLink with TLS and node authentication on 127.0.0.1:{deployment.port}."
    )
    deployment.start_superlink()
    for name, (data, config) in configured.items():
        policy = None
        if settings.has_silos:
            policy = _policy(settings, name, deployment.folder / "policies")
        else:
            config = f"{config} {_owners_word(settings)}"
        node = deployment.new_node(name, data, config=config, policy=policy)
        deployment.register(node)
        deployment.start_node(node)
    deployment.wait_until_online(*configured)
    _announce(f"{len(configured)} SuperNodes are online, each with {theirs}.")


def _images(folder: Path, settings: Settings, nodes: int) -> dict[str, tuple[Path, str]]:
    """The folder of each node's images, and its configuration."""
    dataset = load_dataset(settings.dataset, data_dir=settings.data_folder)
    names = [f"node-{number}" for number in range(1, nodes + 1)]
    folders = write_node_folders(folder / "data", dataset.train, names, images=IMAGES)
    tests = write_node_folders(folder / "test", dataset.test, names, images=TEST_IMAGES)
    return {name: (data, f'test-dir="{tests[name]}"') for name, data in folders.items()}


def _policy(settings: Settings, name: str, folder: Path) -> Path:
    """The file of a silo's owner, who allows exactly the demonstration's settings."""
    from flower_app.training.silos import few_silos  # as above

    folder.mkdir(exist_ok=True)
    unit = settings.own_task.unit if settings.own_task else "row"
    policy = folder / f"{name}.toml"
    policy.write_text(
        f'dataset = "{name}"\nledger = "{folder / name}.jsonl"\n'
        f'unit = "{unit}"\n'
        f"max-epsilon = {settings.epsilon}\nmax-delta = {settings.delta}\n"
        f"max-clipping-norm = {settings.clipping_norm}\n"
        f"max-sampling-rate = {settings.record_sampling_rate}\n"
        f"min-silos = {few_silos(settings).min_silos}\ncolluders = {settings.colluders}\n"
    )
    return policy


def _owners_word(settings: Settings) -> str:
    """The owners' limits: exactly the demonstration's settings."""
    records = (
        f"max-record-epsilon={settings.record_epsilon} max-record-delta={settings.record_delta}"
        if settings.record_epsilon
        else "allow-unnoised-training=true"
    )
    sums = "" if settings.secure_aggregation == "off" else f" min-clients={settings.min_clients}"
    return f"{records} publish-report=true{sums}"


def _protection_line(settings: Settings, nodes: int) -> str:
    if settings.has_silos:
        unit = settings.own_task.unit if settings.own_task else "image"
        return (
            f"Each {unit} of the {nodes} silos is protected at ε = {settings.epsilon:g} from "
            "everybody, the server and another silo included, the most that the policies of the "
            "silos' owners allow."
        )
    images = (
        f"single images are protected at ε = {settings.record_epsilon:g}, the most that their "
        "nodes' owners allow, by each node's own noise and ledger"
        if settings.record_epsilon
        else "single images have no protection of their own"
    )
    secure = (
        ""
        if settings.secure_aggregation == "off"
        else f" Of their updates the server sees sums of at least {settings.min_clients} alone."
    )
    tested = (
        " At the end the nodes test the model on images of their own, under encryption; their "
        "owners have agreed that the accuracies, noised by the nodes to hide single images, are "
        "published."
        if settings.encrypted_round and settings.encrypted_round_release == "public"
        else ""
    )
    return (
        f"{nodes} clients are too few to hide one of them: {images}; a whole client only at "
        f"ε = {settings.epsilon:g}, which is little protection above 10. "
        f"A real deployment has many more clients.{secure}{tested}"
    )


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """Treat a request to terminate as Ctrl-C; while cleaning up, neither interrupts.

    Both arrive as ``SystemExit``. After a ``KeyboardInterrupt`` in code that ``exec`` runs, as
    ``dataclass`` does in an import, Python dies of the signal at its end, caught or not.
    """

    def stop() -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(130)

    with handled_signals(stop):
        yield


def _announce(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
