"""``python -m flower_app run``: a simulation with a SuperLink of its own, gone when it ends."""

import argparse
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from flower_app.errors import SettingError, counted
from flower_app.processes.flower_processes import app_folder, program, superlink
from flower_app.processes.follow import follow
from flower_app.settings import PATHS_OF_THE_SERVER, Settings, write_run_config
from flower_app.tasks import read_holdings
from flower_app.training.resumption import with_settings_of_run
from privacy.imports import need_installed


def add_command(commands: Any) -> None:
    """Add ``run`` to the app's command line."""
    parser = commands.add_parser(
        "run",
        description="Starts a Flower SuperLink of its own on free loopback ports, runs the app in "
        "simulation in the environment it was called from, and stops the SuperLink. Flower's "
        "telemetry is off.",
        epilog="Settings: " + ", ".join(Settings().as_config()),
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of the run, for instance model=cnn epsilon=8",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        help="number of simulated SuperNodes (the population, or 1000; with mode=silos the silos, "
        "with a task as many as it has clients)",
    )
    parser.add_argument(
        "--cpus", type=int, default=os.cpu_count() or 1, help="number of cores (all)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the app in simulation.

    Raises
    ------
    SettingError, DataError
        Before anything is started, if a setting is wrong or the data cannot be had.
    RunFailedError
        If the run did not finish.
    """
    overrides = absolute_paths({"results-dir": "results", **parse_settings(options.settings)})
    if overrides.get("resume"):
        overrides = with_settings_of_run(overrides)
    settings = Settings.from_given(overrides)
    if settings.deployed:
        raise SettingError(
            "deployed = true is wrong; this command simulates: see docs/how-to/deployment.md for "
            "SuperNodes of your own, or try `python -m flower_app deploy-demo`"
        )
    if options.nodes is None:
        options.nodes = _nodes(settings)
    for name, value in (("--nodes", options.nodes), ("--cpus", options.cpus)):
        if value < 1:
            raise SettingError(f"{name} {value} is wrong; it must be at least 1")
    need_installed("ray", "opacus", "matplotlib", "jinja2")
    from flower_app.training.assembly import (
        check_run,  # brings the libraries that --help does without
    )

    check_run(settings, nodes=options.nodes)
    print(f"Simulating {counted(options.nodes, 'SuperNode')} on {counted(options.cpus, 'core')}.")
    print("Flower's telemetry is off for this run (FLWR_TELEMETRY_ENABLED=0).", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="bloomseal-flwr-") as home,
        superlink(Path(home)) as environment,
    ):
        return _submit(overrides, options, environment, Path(home))


def _nodes(settings: Settings) -> int:
    """As many as the run has silos or clients."""
    task = settings.own_task
    if task and not settings.has_silos:
        return len(read_holdings(task).names)
    return settings.silos if settings.has_silos else settings.population or 1000


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are TOML or bare words.

    Raises
    ------
    SettingError
        If a pair has no name or no value, or a name stands twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise SettingError(f"{pair!r} is not a setting; write name=value, as in model=cnn")
        name = name.strip()
        value = _value(name, text)
        if name in settings:
            raise SettingError(
                f"{name} is given twice, as {settings[name]!r} and as {value!r}; give it once"
            )
        settings[name] = value
    return settings


def _value(name: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    meant_as_text = isinstance(getattr(Settings(), name.replace("-", "_"), None), str)
    if isinstance(value, str) or (isinstance(value, bool | int | float) and not meant_as_text):
        return value
    return text


def absolute_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute: the run has another working directory than the command."""
    return {
        name: str(Path(value).expanduser().absolute())
        if name in PATHS_OF_THE_SERVER and isinstance(value, str) and value
        else value
        for name, value in settings.items()
    }


def _submit(
    overrides: dict[str, Any], options: argparse.Namespace, environment: dict[str, str], home: Path
) -> int:
    federation = {
        "num-supernodes": options.nodes,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": options.cpus,
    }
    command = [
        *(program("flwr"), "run", str(app_folder(home)), "local", "--stream"),
        *("--run-config", str(write_run_config(overrides, home / "run.toml"))),
        *("--federation-config", " ".join(f"{k}={v}" for k, v in federation.items())),
    ]
    return follow(command, environment, connection="local", resumable=True)
