"""Private runs and their peers, and the picture of the rounds they took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from benchmarks.rounds.training import Clients, Protection, Work, accuracy_by_round
from flower_app.data import PartitionSpec, load_dataset, load_inputs, load_partitions
from privacy.accounting import Budget, calibrate_noise_multiplier
from privacy.mechanisms import SeededRandomness

CLIENTS, ROUNDS = 1000, 100
BUDGET = Budget(epsilon=3.0, delta=1e-5)
STEP = 0.8  # S times the server's rate: how far a round moves if all clients agree
NORM = 0.02
MARKS = (0.95, 0.98)
PEER = "FedAvg without privacy"
PEER_RATES = (1.0, 4.0, 16.0, 64.0)
SKEWS: Mapping[str, PartitionSpec] = {
    "IID": PartitionSpec("iid", CLIENTS),
    "Dirichlet 1.0": PartitionSpec("dirichlet", CLIENTS, alpha=1.0),
    "Dirichlet 0.3": PartitionSpec("dirichlet", CLIENTS, alpha=0.3),
    "Dirichlet 0.1": PartitionSpec("dirichlet", CLIENTS, alpha=0.1),
    "shards": PartitionSpec("shards", CLIENTS),
}


@dataclass(frozen=True)
class Case:
    """One private run and its peer."""

    skew: str
    sampling_rate: float = 0.1
    local_steps: int = 1
    norm: float = NORM
    rounds: int = ROUNDS

    @property
    def name(self) -> str:
        """What its rows are called."""
        return (
            f"{self.skew}, q={self.sampling_rate:g}, {self.local_steps} local steps, "
            f"S={self.norm:g}, T={self.rounds}"
        )


WORKS = (
    *(Case(skew) for skew in SKEWS),
    *(Case(skew, local_steps=5) for skew in SKEWS),
    *(Case("shards", q) for q in (0.02, 0.05, 0.3, 1.0)),
    *(Case("shards", q, local_steps=5) for q in (0.02, 0.05, 0.3, 1.0)),
)
SWEEP = tuple(
    Case("shards", norm=norm, rounds=rounds)
    for norm in (0.005, 0.02, 0.08, 0.32)
    for rounds in (25, 50, 100, 200)
    if (norm, rounds) != (NORM, ROUNDS)
)


def run(*, quick: bool, log: Log) -> list[Row]:
    torch.set_num_threads(1)
    seeds = (0,) if quick else (0, 1)
    works = (Case("IID"), Case("shards")) if quick else WORKS
    sweep = (Case("shards", rounds=25),) if quick else SWEEP
    rows: list[Row] = []
    for case in works:
        ours = private(case, seeds)
        theirs = plain(case, seeds)
        rows += compared(case, ours, theirs)
        log(f"{case.name}: {ours[0][-1]:.4f}, {PEER} {theirs[0][-1]:.4f}")
    for case in sweep:
        ours = private(case, seeds)
        rows += compared(case, ours, None)
        log(f"{case.name}: {ours[0][-1]:.4f}")
    return rows


@cache
def clients(skew: str) -> Clients:
    dataset = load_dataset()
    partitions = load_partitions(SKEWS[skew], dataset)
    return Clients(partitions, load_inputs(dataset, "hog"), dataset)


@cache
def noise(sampling_rate: float, rounds: int) -> float:
    sampling = Work(sampling_rate, 1, 1.0).sampling
    return calibrate_noise_multiplier(sampling=sampling, rounds=rounds, budget=BUDGET)


def private(case: Case, seeds: Sequence[int]) -> list[list[float]]:
    """The accuracy by round of each seed's private run."""
    work = Work(case.sampling_rate, case.local_steps, STEP / case.norm)
    protection = Protection(case.norm, noise(case.sampling_rate, case.rounds))
    return [
        accuracy_by_round(
            clients(case.skew),
            work,
            protection,
            rounds=case.rounds,
            randomness=SeededRandomness(seed),
        )
        for seed in seeds
    ]


def plain(case: Case, seeds: Sequence[int]) -> list[list[float]]:
    """The same of the peer, at the rate with which its first seed gets furthest soonest."""

    def at(rate: float, seed: int) -> list[float]:
        work = replace(Work(case.sampling_rate, case.local_steps, 1.0), server_rate=rate)
        randomness = SeededRandomness(seed)
        return accuracy_by_round(
            clients(case.skew), work, None, rounds=case.rounds, randomness=randomness
        )

    first = {rate: at(rate, seeds[0]) for rate in PEER_RATES}

    def merit(rate: float) -> tuple[float, float]:
        reached = reached_at(first[rate], MARKS[-1])
        return (float("-inf") if reached is None else -reached, max(first[rate]))

    best = max(first, key=merit)
    return [first[best], *(at(best, seed) for seed in seeds[1:])]


def reached_at(accuracy: Sequence[float], mark: float) -> int | None:
    """The first round after which the accuracy is at least the mark."""
    return next((i for i, a in enumerate(accuracy, 1) if a >= mark), None)


def compared(case: Case, ours: list[list[float]], theirs: list[list[float]] | None) -> list[Row]:
    """Rounds to each mark, where every seed reached it, and the accuracy at the end."""
    details = {
        "skew": case.skew,
        "sampling_rate": case.sampling_rate,
        "local_steps": case.local_steps,
        "norm": case.norm,
        "rounds": case.rounds,
        "noise_multiplier": noise(case.sampling_rate, case.rounds),
    }
    rows = []
    for mark in MARKS:
        here, there = _rounds_to(ours, mark), _rounds_to(theirs or [], mark)
        if here is None:
            continue  # the accuracy below says how far it came
        peer = PEER if there is not None else None
        name = f"rounds to {100 * mark:.0f} %"
        rows.append(Row(case.name, name, "rounds", here, there, peer, details=details))
    rows.append(
        Row(
            case.name,
            "validation accuracy at the end",
            "of 1",
            Spread.of([scores[-1] for scores in ours]),
            None if theirs is None else Spread.of([scores[-1] for scores in theirs]),
            None if theirs is None else PEER,
            larger_is_better=True,
            details=details,
        )
    )
    return rows


def _rounds_to(runs: list[list[float]], mark: float) -> Spread | None:
    reached = [reached_at(scores, mark) for scores in runs]
    known = [float(r) for r in reached if r is not None]
    return Spread.of(known) if known and len(known) == len(runs) else None


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw three answers: which q, what skew costs, and which S and T."""
    rows = document["rows"]
    figure = Figure(figsize=(13, 4.4))
    by_rate, by_skew, by_norm = figure.subplots(1, 3)
    _draw_rates(by_rate, rows)
    _draw_skews(by_skew, rows)
    _draw_norms(by_norm, rows)
    for axes in (by_rate, by_skew, by_norm):
        axes.grid(color="#e4e7eb")
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _pictures.save(figure, path, dpi=130)


def _draw_rates(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for steps, mark, colour in ((1, 98, "#2a6fdb"), (5, 98, "#2f9e63"), (1, 95, "#9bb8ee")):
        points = sorted(
            (row["details"]["sampling_rate"], row["ours"])
            for row in rows
            if row["metric"] == f"rounds to {mark} %"
            and _standard(row, skew="shards", local_steps=steps)
        )
        if points:
            label = f"{mark} %, {steps} local step{'s' * (steps > 1)}"
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title("Rounds against q (shards)", loc="left")
    axes.set_xlabel("sampling rate q of 1,000 clients")
    axes.set_ylabel("rounds")


def _draw_skews(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [skew for skew in SKEWS if any(r["details"]["skew"] == skew for r in rows)]
    for offset, (side, steps, colour) in zip(
        (-0.3, -0.1, 0.1, 0.3),
        (
            ("ours", 1, "#2a6fdb"),
            ("ours", 5, "#2f9e63"),
            ("peer", 1, "#9aa5b1"),
            ("peer", 5, "#52606d"),
        ),
        strict=True,
    ):
        places, heights = [], []
        for place, skew in enumerate(shown):
            for row in rows:
                if row["metric"] == "rounds to 98 %" and _standard(
                    row, skew=skew, local_steps=steps, sampling_rate=0.1
                ):
                    places.append(place + offset)
                    heights.append(np.nan if row[side] is None else row[side])
        if places:
            name = "private" if side == "ours" else "without privacy"
            axes.bar(places, heights, width=0.19, color=colour, label=f"{name}, {steps} steps")
    axes.set_xticks(range(len(shown)), shown, rotation=20, fontsize=8)
    axes.set_title("Rounds to 98 % against skew (q = 0.1)", loc="left")
    axes.set_ylabel("rounds (no bar: not reached)")


def _draw_norms(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    colours = ("#9bb8ee", "#2a6fdb", "#e8833a", "#c9372c")
    norms = sorted({row["details"]["norm"] for row in rows})
    for norm, colour in zip(norms, colours, strict=False):
        points = sorted(
            (row["details"]["rounds"], row["ours"])
            for row in rows
            if row["metric"].startswith("validation")
            and row["details"]["norm"] == norm
            and (row["details"]["skew"], row["details"]["sampling_rate"]) == ("shards", 0.1)
            and row["details"]["local_steps"] == 1
        )
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=f"S = {norm:g}")
    axes.set_title("Accuracy against T and S (shards, ε = 3)", loc="left")
    axes.set_xlabel("rounds T, the budget spread over all")
    axes.set_ylabel("validation accuracy")


def _standard(row: Mapping[str, Any], **wanted: Any) -> bool:
    usual = {"norm": NORM, "rounds": ROUNDS} | wanted
    return all(row["details"][name] == value for name, value in usual.items())
