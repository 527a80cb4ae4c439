"""Soaks in one process and under ``flwr run``, checked against their ledgers, and their picture."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from benchmarks.soak import apps
from flower_app.processes.flower_processes import program, superlink
from privacy.accounting import read_ledger
from strategies import run_in_process

CLIENTS = 1000
MEMORY = "memory of the server's process at the end"
SETTLED = 100  # rounds after which memory has no reason to grow


def in_turns(rounds: int, folder: Path) -> dict[str, Any]:
    """A soak in this process whose clients take turns, with correlated noise."""
    return in_process(rounds, folder, {"in-turns": True})


def in_process(
    rounds: int, folder: Path, further: Mapping[str, bool] | None = None
) -> dict[str, Any]:
    """A soak in this process."""
    config = {"rounds": rounds, "folder": str(folder), **(further or {})}
    run_in_process(apps.server, apps.client, num_nodes=CLIENTS, run_config=config)
    return read(folder)


def simulated(rounds: int, folder: Path) -> dict[str, Any]:
    """A soak under ``flwr run``, with Ray."""
    app, home = folder / "app", folder / "home"
    app.mkdir()
    home.mkdir()
    shutil.copy(str(apps.__file__), app / "apps.py")
    (app / "pyproject.toml").write_text(
        '[project]\nname = "soak"\nversion = "1.0.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "benchmark"\n'
        '[tool.flwr.app.components]\nserverapp = "apps:server"\nclientapp = "apps:client"\n'
        f'[tool.flwr.app.config]\nrounds = {rounds}\nfolder = "{folder}"\n'
    )
    federation = f"num-supernodes={CLIENTS} init-args-num-cpus={os.cpu_count()}"
    with superlink(home) as environment:
        subprocess.run(
            [program("flwr"), "run", str(app), "local", "--federation-config", federation],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        deadline = time.monotonic() + 300 + 5 * rounds
        while not (folder / "soak.json").exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the soak did not end; see {folder}")
            time.sleep(0.5)
    return read(folder)


def read(folder: Path) -> dict[str, Any]:
    """What a soak wrote down, and that its ledger says the same."""
    figures: dict[str, Any] = json.loads((folder / "soak.json").read_text())
    ledger = read_ledger(folder / "ledger.jsonl")
    paid = [record.round for record in ledger.records]
    if paid != list(range(1, figures["rounds"] + 1)):
        raise RuntimeError(f"the ledger holds other rounds than were played: {paid}")
    if ledger.epsilon(apps.DELTA, accountant="pld") != figures["epsilon"]:
        raise RuntimeError("the ledger gives another ε than the run said")
    return figures


def peers_epsilon(noise_multiplier: float, rounds: int, *, turns: bool = False) -> float:
    """ε of as many rounds without any failure, by Google's dp-accounting alone."""
    event: DpEvent = GaussianDpEvent(noise_multiplier)
    if turns:
        rounds = -(-rounds // apps.GROUPS)
    else:
        event = PoissonSampledDpEvent(apps.RATE, event)
    return float(PLDAccountant().compose(event, rounds).get_epsilon(apps.DELTA))


def rows_of(case: str, rounds: int, figures: dict[str, Any], *, turns: bool = False) -> list[Row]:
    """A soak's figures."""
    memory = figures["megabytes"]
    settled = min(SETTLED, rounds // 2)

    def row(
        metric: str, unit: str, value: float, peer: float | None = None, **details: object
    ) -> Row:
        beside = None if peer is None else Spread.of([peer])
        name = None if peer is None else "dp-accounting, no failures"
        return Row(case, metric, unit, Spread.of([value]), beside, name, details=details)

    return [
        row("rounds finished", f"of {rounds}", figures["rounds"]),
        row(
            "ε",
            "",
            figures["epsilon"],
            peers_epsilon(figures["noise_multiplier"], rounds, turns=turns),
        ),
        row(
            MEMORY,
            "MB",
            memory[-1],
            by_round=[round(megabytes, 1) for megabytes in memory],
        ),
        row(f"memory gained since round {settled}", "MB", memory[-1] - memory[settled]),
        row(
            "the model moved by, of what it would without failures",
            "",
            figures["moved"] / ideal(rounds),
        ),
        row("time of the server's process a round", "CPU s", figures["seconds"] / rounds),
    ]


def ideal(rounds: int) -> float:
    """How far the model moves if nobody fails: each update is clipped to S."""
    return rounds * 1e-4


def run(*, quick: bool, log: Log) -> list[Row]:
    """Soak in this process, and unless quick under ``flwr run``."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("bloomseal.operator").addHandler(logging.NullHandler())
    logging.getLogger("bloomseal.operator").propagate = False
    rounds = 60 if quick else 500
    rows = []
    ways = [("in one process", in_process), ("in one process, in turns", in_turns)]
    ways += [] if quick else [("flwr run, Ray", simulated)]
    for name, way in ways:
        log(f"{rounds} rounds, {CLIENTS} clients, {apps.FAILING:.0%} failing: {name}")
        with tempfile.TemporaryDirectory() as folder:
            figures = way(rounds, Path(folder))
            rows += rows_of(f"soak, {name}", rounds, figures, turns=way is in_turns)
    return rows


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the memory of the server's process by round."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for row in document["rows"]:
        if row["metric"] == MEMORY:
            axes.plot(row["details"]["by_round"], label=row["case"].removeprefix("soak, "))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.set_ylabel("MB")
    axes.set_title(
        f"Memory of the server's process, {apps.FAILING:.0%} of clients failing", loc="left"
    )
    axes.legend(frameon=False)
    _pictures.save(figure, path)
