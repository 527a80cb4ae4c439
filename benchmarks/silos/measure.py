"""Every cell's seeds, arm by arm."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from benchmarks.silos import arms
from benchmarks.silos.arms import Data, Setting

SEEDS = (0, 1, 2)
Arm = Literal["ours", "own noise", "curator", "none"]
PEERS: Mapping[Arm, str] = {
    "own noise": "each silo's own noise",
    "curator": "Opacus, trusted curator",
    "none": "no privacy",
}


@dataclass(frozen=True)
class Cell:
    """ε a record at δ = 1e-5, and how many silos of equal size."""

    model: str
    silos: int
    epsilon: float
    shared: Setting
    """Of ours and of the curator: their noise is nearly the same."""
    own: Setting

    @property
    def case(self) -> str:
        """What the figure is of."""
        return f"{self.model}, {self.silos} silos, ε = {self.epsilon:g}"


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: Arm
    model: str
    setting: Setting
    seed: int
    epsilon: float = 0.0
    silos: int = 0


SHARED = {
    "hog-linear": {
        epsilon: Setting(steps=250, rate=0.02, clipping_norm=0.5, learning_rate=rate)
        for epsilon, rate in ((0.3, 5.0), (1.0, 10.0), (3.0, 10.0), (8.0, 20.0))
    },
    "cnn": {
        epsilon: Setting(steps=250, rate=0.02, clipping_norm=0.2, learning_rate=3.0)
        for epsilon in (1.0, 3.0)
    },
}
OWN = {
    ("hog-linear", 5): Setting(steps=100, rate=0.1, clipping_norm=0.5, learning_rate=10.0),
    ("hog-linear", 10): Setting(steps=100, rate=0.1, clipping_norm=0.5, learning_rate=10.0),
    ("hog-linear", 50): Setting(steps=100, rate=0.1, clipping_norm=0.5, learning_rate=5.0),
    ("hog-linear", 200): Setting(steps=60, rate=0.2, clipping_norm=0.5, learning_rate=1.0),
    ("cnn", 50): Setting(steps=250, rate=0.02, clipping_norm=0.2, learning_rate=1.5),
}
WITHOUT = {
    "hog-linear": Setting(steps=250, rate=0.02, clipping_norm=1.0, learning_rate=20.0),
    "cnn": Setting(steps=250, rate=0.02, clipping_norm=1.0, learning_rate=0.03),
}
CELLS = tuple(
    Cell(model, silos, epsilon, SHARED[model][epsilon], OWN[model, silos])
    for model, silos, epsilons in (
        ("hog-linear", 50, (1.0, 3.0, 8.0)),
        ("hog-linear", 10, (1.0, 3.0, 8.0)),
        ("hog-linear", 5, (1.0, 3.0, 8.0)),
        ("hog-linear", 200, (0.3,)),
        ("cnn", 50, (1.0, 3.0)),
    )
    for epsilon in epsilons
)


def run(*, quick: bool, log: Log) -> list[Row]:
    """Train every arm, some runs at a time, and return the rows."""
    cells, seeds = (CELLS[1:2], SEEDS[:1]) if quick else (CELLS, SEEDS)
    runs = dict.fromkeys(
        one for cell in cells for arm in ("ours", *PEERS) for one in _runs(cell, arm, seeds)
    )
    scores: dict[Run, float] = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for one, (score, spent) in zip(runs, pool.map(_score, runs), strict=True):
            scores[one] = score
            opacus = f", ε by Opacus {spent:.3f}" if one.arm == "curator" else ""
            log(
                f"{one.model}, {one.arm}, {one.silos or 'all'} silos, ε = {one.epsilon:g}, "
                f"seed {one.seed}: {score:.2f} %{opacus}"
            )
    return [row for cell in cells for row in _rows(cell, seeds, scores)]


def _runs(cell: Cell, arm: Arm, seeds: tuple[int, ...]) -> list[Run]:
    if arm == "none":
        return [Run(arm, cell.model, WITHOUT[cell.model], seed) for seed in seeds]
    if arm == "curator":
        return [Run(arm, cell.model, cell.shared, seed, cell.epsilon) for seed in seeds]
    setting = cell.shared if arm == "ours" else cell.own
    return [Run(arm, cell.model, setting, seed, cell.epsilon, cell.silos) for seed in seeds]


def _rows(cell: Cell, seeds: tuple[int, ...], scores: Mapping[Run, float]) -> list[Row]:
    def spread(arm: Arm) -> Spread:
        return Spread.of([scores[one] for one in _runs(cell, arm, seeds)])

    return [
        Row(
            f"{cell.case}, beside {peer}",
            "test accuracy",
            "%",
            spread("ours"),
            spread(arm),
            peer,
            larger_is_better=True,
            details={
                "model": cell.model,
                "silos": cell.silos,
                "epsilon": cell.epsilon,
                "points": spread("ours").median - spread(arm).median,
            },
        )
        for arm, peer in PEERS.items()
    ]


@cache
def _data(model: str) -> Data:
    return arms.data_of(model)


def _score(one: Run) -> tuple[float, float]:
    """Percent of the test images, and ε by Opacus for the curator."""
    torch.set_num_threads(1)
    data, spent = _data(one.model), 0.0
    if one.arm == "none":
        model = arms.without_privacy(one.model, data, one.setting, seed=one.seed)
    elif one.arm == "curator":
        model, spent = arms.curator(
            one.model, data, one.setting, epsilon=one.epsilon, seed=one.seed
        )
    else:
        arm = arms.distributed if one.arm == "ours" else arms.own_noise
        model = arm(
            one.model, data, one.setting, silos=one.silos, epsilon=one.epsilon, seed=one.seed
        )
    return arms.accuracy(model, data.test), spent


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy over ε, a panel for each model: ours for each K, own noise, curator, none."""
    rows = document["rows"]
    models = list(dict.fromkeys(row["details"]["model"] for row in rows))
    figure = Figure(figsize=(5 * len(models), 4.2))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines: dict[tuple[str, str, str], dict[float, float]] = {}
        for row in (row for row in rows if row["details"]["model"] == model):
            details = row["details"]
            ours = f"ours, {details['silos']} silos", _pictures.OURS, "o-"
            lines.setdefault(ours, {})[details["epsilon"]] = row["ours"]
            styles = {
                PEERS["own noise"]: (
                    f"own noise, {details['silos']} silos",
                    _pictures.PEER,
                    "s--",
                ),
                PEERS["curator"]: ("trusted curator (Opacus)", "black", "x:"),
                PEERS["none"]: ("no privacy", _pictures.SOFT, "-"),
            }
            lines.setdefault(styles[row["peer_name"]], {})[details["epsilon"]] = row["peer"]
        for (label, colour, style), points in lines.items():
            places = sorted(points)
            axes.plot(places, [points[p] for p in places], style, color=colour, label=label, lw=1.2)
        axes.set_title(f"{model}, 50,000 records, δ = 1e-5", loc="left")
        axes.set_xscale("log")
        axes.set_xlabel("ε a record")
        axes.set_ylabel("test accuracy, %")
        axes.grid(color="#e4e7eb")
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.tight_layout()
    _pictures.save(figure, path)
