"""What an attack on the running strategy shows of ε, beside what its ledger claims.

Each audit is one federated run of ``DPFedAvg`` with 400 canary clients, each put in or left out by
a fair coin (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). A lower bound above the ledger's ε
would contradict it; at 95 % confidence that happens by chance in at most one audit of twenty.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from strategies import Budget, DPFedAvg, Full, Poisson, audit_strategy

CLIENTS, CANARIES, PARAMETERS, ROUNDS = 20, 400, 2000, 4
DELTA, CONFIDENCE = 1e-5, 0.95
CLAIMS = (1.0, 3.0, 8.0)
SAMPLINGS: Mapping[str, Full | Poisson] = {"everyone": Full(), "Poisson 0.5": Poisson(0.5)}


def run(*, quick: bool, log: Log) -> list[Row]:
    logging.getLogger("flwr").setLevel(logging.ERROR)  # not a line a round of 240 runs
    rows = []
    for claim in CLAIMS:
        for name, sampling in SAMPLINGS.items():
            bounds, contradicted = [], 0
            for _ in range(5 if quick else 20):
                result = audit_strategy(
                    partial(make_strategy, claim, sampling),
                    ordinary_clients(),
                    ArrayRecord([np.zeros(PARAMETERS, np.float32)]),
                    clients=CLIENTS,
                    canaries=CANARIES,
                    num_rounds=ROUNDS,
                    confidence=CONFIDENCE,
                )
                bounds.append(result.epsilon_lower)
                contradicted += not result.passed
            log(f"ε = {claim:g}, {name}: lower bounds {min(bounds):.2f} to {max(bounds):.2f}")
            count = f"audits of {len(bounds)} that contradict the ledger, by chance at most 1 in 20"
            case = f"ledger ε={claim:g}, {name}, {CANARIES} canaries, {ROUNDS} rounds"
            details = {"claimed": claim, "sampling": name, "bounds": bounds}
            rows += [
                Row(case, "lower bound on ε at 95 %", "ε", Spread.of(bounds), details=details),
                Row(
                    case,
                    count,
                    "audits",
                    Spread.of([float(contradicted)]),
                ),
            ]
    return rows


def make_strategy(claim: float, sampling: Full | Poisson, folder: Path) -> DPFedAvg:
    return DPFedAvg(
        population=CLIENTS + CANARIES,
        sampling=sampling,
        clipping=0.5,
        budget=Budget(epsilon=claim, delta=DELTA),
        ledger=folder / "ledger.jsonl",
    )


def ordinary_clients() -> ClientApp:
    """Clients with small updates of their own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        draw = np.random.default_rng()
        arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
        moved = [a + draw.normal(0, 0.01, a.shape).astype(a.dtype) for a in arrays]
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        content["arrays"] = ArrayRecord(moved)
        return Message(content, reply_to=message)

    return app


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw every audit's lower bound against the claim."""
    figure = Figure(figsize=(6.5, 4.6))
    axes = figure.subplots()
    rows = [row for row in document["rows"] if "details" in row]
    top = 1.1 * max(row["details"]["claimed"] for row in rows)
    axes.plot([0, top], [0, top], color="#c9372c", lw=1.5)
    axes.text(top, top, " the ledger's ε", color="#c9372c", va="center")
    axes.fill_between([0, top], [0, top], [top, top], color="#c9372c", alpha=0.07, lw=0)
    axes.text(0.03 * top, 0.93 * top, "here the ledger would be wrong", color="#c9372c")
    colours = {"everyone": "#2a6fdb", "Poisson 0.5": "#e8833a"}
    for name, colour in colours.items():
        points = [
            (row["details"]["claimed"], bound)
            for row in rows
            if row["details"]["sampling"] == name
            for bound in row["details"]["bounds"]
        ]
        if points:
            shift = 0.008 * top * (1 if name == "everyone" else -1)
            axes.scatter(
                [x + shift for x, _ in points], [y for _, y in points], s=16, color=colour,
                alpha=0.6, label=name,
            )  # fmt: skip
    axes.set_xlabel("ε that the ledger claims")
    axes.set_ylabel("ε that the attack proves, 95 %")
    axes.set_title("Audits of the running strategy", loc="left")
    axes.legend(frameon=False, loc="center right")
    _pictures.save(figure, path, dpi=130)
