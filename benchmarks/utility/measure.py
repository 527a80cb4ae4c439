"""The seeds of every cell of the utility benchmark, beside what Geyer et al. published."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Log, Row, Spread
from benchmarks.utility import report
from benchmarks.utility.cells import CELLS, TURNS, Cell
from benchmarks.utility.clients import label_sorted
from benchmarks.utility.models import Linear, Model, Network
from benchmarks.utility.rounds import noise_multiplier, train
from flower_app.data import load_dataset, load_inputs
from flower_app.models.specs import MODELS
from privacy.mechanisms import SeededRandomness

SEEDS = (0, 1, 2)
PEER = "Geyer et al. 2017, published"


def run(*, quick: bool, log: Log) -> list[Row]:
    torch.set_num_threads(1)
    cells, seeds = (CELLS[:2], SEEDS[:1]) if quick else (CELLS + TURNS, SEEDS)
    return [row for cell in cells for row in measure(cell, seeds, log)]


def measure(cell: Cell, seeds: Iterable[int], log: Log) -> list[Row]:
    """The test accuracy of a cell, and the noise multiplier it was had with."""
    z = noise_multiplier(cell.setting, cell.budget)
    scores = []
    for seed in seeds:
        scores.append(accuracy(cell, seed, noise_multiplier=z))
        log(f"{cell.case}, seed {seed}: {scores[-1]:.4f}")
    peer = None if cell.peer is None else Spread.of([cell.peer])
    return [
        Row(
            cell.case,
            "test accuracy",
            "of 1",
            Spread.of(scores),
            peer,
            None if peer is None else PEER,
            larger_is_better=True,
        ),
        Row(cell.case, "noise multiplier", "z", Spread.of([z])),
        Row(cell.case, "rounds", "T", Spread.of([float(cell.setting.rounds)])),
        Row(cell.case, "sampling rate", "q", Spread.of([cell.setting.sampling_rate])),
    ]


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy over the number of clients, and over ε."""
    report.plot(report.figures(document), path)


def accuracy(cell: Cell, seed: int, *, noise_multiplier: float, score_on: str = "test") -> float:
    """Train one run of a cell and score it.

    Parameters
    ----------
    score_on
        ``"test"``, or ``"validation"`` to choose a setting: no client then holds the validation
        images, in either protocol.
    """
    dataset = load_dataset()
    inputs = load_inputs(dataset, MODELS[cell.model].kind)
    labels, table = dataset.train.labels, inputs.train(np.arange(len(dataset.train)))
    if cell.protocol == "Geyer" and score_on == "test":
        labels = np.concatenate([labels, dataset.validation.labels])
        table = np.concatenate([table, inputs.validation()])
    holdings = label_sorted(
        labels, shards=cell.shards, copies=cell.copies, draw=np.random.default_rng(seed)
    )
    images, truth = table[holdings.shards], labels[holdings.shards]
    model: Model = (
        Linear(images, truth) if cell.model == "hog-linear" else Network(cell.model, images, truth)
    )
    weights = train(
        model,
        holdings,
        cell.setting,
        noise_multiplier=noise_multiplier,
        randomness=SeededRandomness(seed),
    )
    if score_on == "test":
        return model.accuracy(weights, inputs.test(), dataset.test.labels)
    return model.accuracy(weights, inputs.validation(), dataset.validation.labels)
