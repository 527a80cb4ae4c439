"""Every cell's seeds, arm by arm."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from benchmarks.silos import arms, steps
from benchmarks.silos.arms import Data, Setting
from benchmarks.silos.kept import KeptFigures
from privacy.secure_aggregation import FewSilos

SEEDS = 3
"""How many runs each arm has; skewed silos have one."""
STEPS = 5
KEPT = Path(__file__).parents[2] / "results" / "benchmarks" / "silos-runs.json"
"""What a run of all cells has worked out so far; it is removed when the rows are complete."""
Arm = Literal["ours", "ours, skewed", "own noise", "curator", "none"]
PEERS: Mapping[Arm, str] = {
    "own noise": "each silo's own noise",
    "curator": "Opacus, trusted curator",
    "none": "no privacy",
    "ours": "ours, silos alike",
}
ALONGSIDE: tuple[Arm, ...] = ("ours", "own noise", "curator", "none")


@dataclass(frozen=True)
class Cell:
    """ε a record at δ = 1e-5, and how many silos."""

    model: str
    silos: int
    epsilon: float

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
        epsilon: Setting(steps=250, rate=0.02, clipping_norm=norm, learning_rate=rate)
        for epsilon, norm, rate in (
            *((0.3, 0.2, 5.0), (1.0, 0.5, 10.0)),
            *((3.0, 0.5, 10.0), (8.0, 0.5, 20.0)),
        )
    },
    "cnn": {
        1.0: Setting(steps=50, rate=0.1, clipping_norm=0.2, learning_rate=4.0),
        3.0: Setting(steps=100, rate=0.1, clipping_norm=0.2, learning_rate=4.0),
        8.0: Setting(steps=150, rate=0.1, clipping_norm=0.4, learning_rate=3.0),
    },
}
"""Of ours and of the curator, whose noise is nearly the same."""
OWN = {
    ("hog-linear", 50, 3.0): Setting(100, 0.2, 0.5, 5.0),
    ("hog-linear", 50, 1.0): Setting(100, 0.2, 0.5, 3.0),
    ("hog-linear", 50, 8.0): Setting(100, 0.2, 0.5, 10.0),
    ("hog-linear", 200, 0.3): Setting(100, 0.2, 0.2, 1.0),
    ("hog-linear", 10, 3.0): Setting(100, 0.1, 0.5, 20.0),
    ("hog-linear", 10, 1.0): Setting(100, 0.1, 0.5, 5.0),
    ("hog-linear", 10, 8.0): Setting(100, 0.1, 0.5, 20.0),
    ("hog-linear", 5, 3.0): Setting(250, 0.02, 0.5, 10.0),
    ("hog-linear", 5, 1.0): Setting(250, 0.02, 0.5, 5.0),
    ("hog-linear", 5, 8.0): Setting(100, 0.1, 0.5, 20.0),
    ("cnn", 50, 3.0): Setting(60, 0.2, 0.2, 1.0),
    ("cnn", 50, 1.0): Setting(60, 0.2, 0.2, 0.5),
    ("cnn", 50, 8.0): Setting(100, 0.2, 0.2, 1.5),
    ("cnn", 10, 3.0): Setting(60, 0.2, 0.2, 2.0),
    ("cnn", 10, 1.0): Setting(60, 0.2, 0.2, 1.0),
    ("cnn", 10, 8.0): Setting(150, 0.1, 0.2, 3.0),
    ("cnn", 5, 3.0): Setting(150, 0.1, 0.2, 2.0),
    ("cnn", 5, 1.0): Setting(60, 0.2, 0.2, 1.5),
    ("cnn", 5, 8.0): Setting(150, 0.1, 0.2, 4.0),
}
"""Of silos with noise of their own: fewer steps of more records suit so much noise."""
WITHOUT = {
    "hog-linear": Setting(steps=250, rate=0.02, clipping_norm=1.0, learning_rate=20.0),
    "cnn": Setting(steps=250, rate=0.02, clipping_norm=1.0, learning_rate=0.003),
}
CELLS = tuple(Cell(*own) for own in OWN)
SKEWED = (Cell("hog-linear", 10, 3.0), Cell("hog-linear", 50, 3.0))
MARKERS = {5: "v", 10: "^", 50: "o", 200: "D"}
TIMED = tuple((model, silos) for model in ("hog-linear", "cnn") for silos in (3, 5, 10, 50))


def run(*, quick: bool, log: Log) -> list[Row]:
    """Train every arm, some runs at a time, then time steps; return the rows."""
    torch.set_num_threads(1)  # idle ones spin, and steps are measured by processor time
    cells, skewed = ((Cell("hog-linear", 10, 3.0),), ()) if quick else (CELLS, SKEWED)
    wanted = [(cell, arm) for cell in cells for arm in ALONGSIDE]
    wanted += [(cell, "ours, skewed") for cell in skewed]
    runs = list(dict.fromkeys(one for cell, arm in wanted for one in _runs(cell, arm)))
    kept = KeptFigures(None if quick else KEPT)
    if kept:
        log(f"{len(kept)} figures are in {KEPT}, of a run that was stopped; it goes on")
    _train(runs, kept, log)
    scores = {one: float(kept[one][0]) for one in runs}
    rows = [row for cell in cells for row in _rows(cell, scores)]
    rows += [_skewed_row(cell, scores) for cell in skewed]
    for model, silos in TIMED[:1] if quick else TIMED:
        if (model, silos) not in kept:
            log(f"steps of {model} over {silos} silos")
            cost = steps.measure(model, _data(model), silos, steps=2 if quick else STEPS)
            kept[model, silos] = cost.as_dict()
        rows += steps.StepCost.of(kept[model, silos]).rows(model, silos)
    kept.forget()
    return rows


def _train(runs: Sequence[Run], kept: KeptFigures, log: Log) -> None:
    """Score the runs that are not kept."""
    left = [one for one in runs if one not in kept]
    with ProcessPoolExecutor(_processors(), get_context("spawn")) as pool:
        for one, (score, spent) in zip(left, pool.map(_score, left), strict=True):
            kept[one] = score, spent
            opacus = "" if spent is None else f", ε by Opacus {spent:.3f}"
            log(
                f"{one.model}, {one.arm}, {one.silos or 'all'} silos, ε = {one.epsilon:g}, "
                f"seed {one.seed}: {score:.2f} %{opacus}"
            )


def _processors() -> int:
    """As many as this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _runs(cell: Cell, arm: Arm) -> list[Run]:
    model, epsilon = cell.model, cell.epsilon
    seeds = range(1 if arm == "ours, skewed" else SEEDS)
    if arm == "none":
        return [Run(arm, model, WITHOUT[model], seed) for seed in seeds]
    if arm == "curator":
        return [Run(arm, model, SHARED[model][epsilon], seed, epsilon) for seed in seeds]
    own = OWN[model, cell.silos, epsilon]
    setting = own if arm == "own noise" else SHARED[model][epsilon]
    return [Run(arm, model, setting, seed, epsilon, cell.silos) for seed in seeds]


def _spread(cell: Cell, arm: Arm, scores: Mapping[Run, float]) -> Spread:
    return Spread.of([scores[one] for one in _runs(cell, arm)])


def _rows(cell: Cell, scores: Mapping[Run, float]) -> list[Row]:
    ours = _spread(cell, "ours", scores)
    return [
        _row(f"{cell.case}, beside {peer}", cell, ours, _spread(cell, arm, scores), arm)
        for arm, peer in PEERS.items()
        if arm != "ours"
    ]


def _skewed_row(cell: Cell, scores: Mapping[Run, float]) -> Row:
    skewed, even = (_spread(cell, arm, scores) for arm in ("ours, skewed", "ours"))
    case = f"{cell.case}, log-normal sizes and few labels each"
    return _row(case, cell, skewed, even, "ours")


def _row(case: str, cell: Cell, ours: Spread, peer: Spread, beside: Arm) -> Row:
    setting, few = SHARED[cell.model][cell.epsilon], FewSilos(cell.silos)
    return Row(
        case,
        "test accuracy",
        "%",
        ours,
        peer,
        PEERS[beside],
        larger_is_better=True,
        details={
            **asdict(cell),
            "honest": few.min_silos - few.colluders,
            "records": arms.RECORDS,
            "delta": arms.DELTA,
            "sampling_rate": setting.rate,
            "steps": setting.steps,
            "beside": beside,
            "points": ours.median - peer.median,
        },
    )


@cache
def _data(model: str) -> Data:
    return arms.data_of(model)


def _score(one: Run) -> tuple[float, float | None]:
    """Percent of the test images, and ε by Opacus where it trained."""
    torch.set_num_threads(1)
    data, spent = _data(one.model), None
    if one.arm == "none":
        model = arms.without_privacy(one.model, data, one.setting, seed=one.seed)
    elif one.arm in ("curator", "own noise"):
        model, spent = arms.opacus(
            one.model,
            data,
            one.setting,
            epsilon=one.epsilon,
            seed=one.seed,
            silos=max(1, one.silos),
        )
    else:
        skewed = one.arm == "ours, skewed"
        model = arms.distributed(
            one.model,
            data,
            one.setting,
            silos=one.silos,
            epsilon=one.epsilon,
            seed=one.seed,
            parts=arms.skewed_parts(data.train[1], one.silos, seed=one.seed) if skewed else (),
        )
    return arms.accuracy(model, data.test), spent


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy over ε, a panel for each model: ours for each K, own noise, curator, none."""
    rows = [row for row in document["rows"] if row["details"].get("beside") in ALONGSIDE[1:]]
    models = list(dict.fromkeys(row["details"]["model"] for row in rows))
    figure = Figure(figsize=(5 * len(models), 4.2))
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        lines: dict[tuple[str, str, str], dict[float, float]] = {}
        for row in (row for row in rows if row["details"]["model"] == model):
            details = row["details"]
            marker = MARKERS.get(details["silos"], "P")
            ours = f"ours, {details['silos']} silos", _pictures.OURS, f"{marker}-"
            lines.setdefault(ours, {})[details["epsilon"]] = row["ours"]
            styles = {
                PEERS["own noise"]: (
                    f"own noise, {details['silos']} silos",
                    _pictures.PEER,
                    f"{marker}--",
                ),
                PEERS["curator"]: ("trusted curator (Opacus)", "black", "x:"),
                PEERS["none"]: ("no privacy", _pictures.SOFT, "-"),
            }
            # Cells of one ε share these.
            peer = lines.setdefault(styles[row["peer_name"]], {})
            peer.setdefault(details["epsilon"], row["peer"])
        for (label, colour, style), points in lines.items():
            places = sorted(points)
            axes.plot(places, [points[p] for p in places], style, color=colour, label=label, lw=1.2)
        axes.set_title(f"{model}, 50,000 records, δ = 1e-5", loc="left")
        axes.set_xscale("log")
        shown = sorted({place for points in lines.values() for place in points})
        axes.set_xticks(shown, [f"{place:g}" for place in shown])
        axes.minorticks_off()
        axes.set_xlabel("ε a record")
        axes.set_ylabel("test accuracy, %")
        axes.grid(color="#e4e7eb")
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.tight_layout()
    _pictures.save(figure, path)
