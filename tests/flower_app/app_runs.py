"""Whole small runs of the app, in one process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_app import client_app, server_app
from strategies import InProcessGrid, run_in_process


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its figures, its nodes."""

    folder: Path
    metrics: dict[str, Any]
    grid: InProcessGrid


def run_app(results: Path, *, nodes: int = 40, **settings: Any) -> Run:
    config = {name.replace("_", "-"): value for name, value in settings.items()}
    grid = run_in_process(
        server_app.app,
        client_app.app,
        num_nodes=nodes,
        run_config={"results-dir": str(results), **config},
    )
    folder = (results / "latest").resolve()
    return Run(folder, json.loads((folder / "metrics.json").read_text()), grid)
