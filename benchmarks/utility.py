"""Accuracy under client-level privacy: Geyer et al. 2017's protocol, and disjoint clients.

Two protocols on MNIST, both with label-sorted shards, two a client:

- *Geyer*: that of Geyer, Klein and Nabi 2017 (arXiv 1712.07557), with its ε, δ and
  numbers of clients. All 60,000 training images in 200 shards of 300; for N = 1,000 and 10,000
  the data are *repeated*, each shard with 10 or 100 clients.
- *disjoint*: 1,000 clients, shards of 25 of the first 50,000 images, every image with one client.

Every run spends exactly its budget under add or remove one client, which the product's own
accounting calibrates; cohorts, clipping, noise and server step are the product's own too. The
settings were chosen on the last 10,000 training images, which no client held in those runs. The
accuracy is on the test images, after the last round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._utility_clients import SHARDS_A_CLIENT, label_sorted
from benchmarks._utility_models import Linear, Model, Network
from benchmarks._utility_rounds import Setting, noise_multiplier, train
from benchmarks.harness import Row, Say, Spread
from flower_app.data import load_dataset, load_inputs
from flower_app.model_specs import MODELS
from privacy.accounting import Budget
from privacy.mechanisms import SeededRandomness

SEEDS = (0, 1, 2)
GEYER_SHARDS = 200
PEER = "Geyer et al. 2017, published"


@dataclass(frozen=True)
class Cell:
    """One row: a protocol, a model and a budget, with what was chosen for it.

    Attributes
    ----------
    copies
        How many clients hold each image.
    """

    protocol: str
    model: str
    clients: int
    copies: int
    budget: Budget
    setting: Setting
    peer: float | None = None

    @property
    def case(self) -> str:
        """What the row is called."""
        return (
            f"{self.protocol}, {self.model}, N={self.clients:,}, "
            f"ε={self.budget.epsilon:g}, δ={self.budget.delta:g}"
        )

    @property
    def shards(self) -> int:
        """How many different shards there are."""
        return self.clients * SHARDS_A_CLIENT // self.copies

    @property
    def records(self) -> int:
        """How many images a client holds."""
        images = 60_000 if self.protocol == "Geyer" else 50_000
        return images * self.copies // self.clients


def geyer(model: str, clients: int, delta: float, peer: float, setting: Setting) -> Cell:
    budget = Budget(epsilon=8.0, delta=delta)
    copies = clients * SHARDS_A_CLIENT // GEYER_SHARDS
    return Cell("Geyer", model, clients, copies, budget, setting, peer)


def disjoint(model: str, epsilon: float, setting: Setting) -> Cell:
    return Cell("disjoint", model, 1000, 1, Budget(epsilon=epsilon, delta=1e-5), setting)


CELLS = (
    geyer("hog-linear", 100, 1e-3, 0.78, Setting(1.0, 60, 0.015, 120)),
    geyer("hog-linear", 1_000, 1e-5, 0.92, Setting(1.0, 100, 0.015, 200)),
    geyer("hog-linear", 10_000, 1e-6, 0.96, Setting(0.1, 150, 0.015, 250)),
    geyer("cnn", 100, 1e-3, 0.78, Setting(1.0, 20, 0.005, 6)),
    geyer("cnn", 1_000, 1e-5, 0.92, Setting(1.0, 60, 0.005, 8)),
    geyer("cnn", 10_000, 1e-6, 0.96, Setting(0.05, 100, 0.005, 10)),
    disjoint("hog-linear", 8.0, Setting(0.1, 100, 0.02, 60)),
    disjoint("hog-linear", 3.0, Setting(0.1, 100, 0.02, 40)),
    disjoint("hog-linear", 2.0, Setting(0.1, 100, 0.02, 30)),
    disjoint("hog-linear", 1.0, Setting(0.1, 100, 0.02, 20)),
    disjoint("cnn", 8.0, Setting(0.1, 100, 0.005, 12)),
    disjoint("cnn", 3.0, Setting(0.1, 100, 0.005, 4)),
    disjoint("cnn", 2.0, Setting(0.1, 100, 0.005, 3)),
    disjoint("cnn", 1.0, Setting(0.1, 75, 0.005, 2)),
)


def run(*, quick: bool, say: Say) -> list[Row]:
    torch.set_num_threads(1)
    cells, seeds = (CELLS[:2], SEEDS[:1]) if quick else (CELLS, SEEDS)
    return [row for cell in cells for row in measure(cell, seeds, say)]


def measure(cell: Cell, seeds: Iterable[int], say: Say) -> list[Row]:
    """The test accuracy of a cell, and the noise multiplier it was had with."""
    z = noise_multiplier(cell.setting, cell.budget)
    scores = []
    for seed in seeds:
        scores.append(accuracy(cell, seed, noise_multiplier=z))
        say(f"{cell.case}, seed {seed}: {scores[-1]:.4f}")
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
    from benchmarks import _utility_report  # it needs the cells of this module

    _utility_report.plot(_utility_report.figures(document), path)


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
    held, truth = table[holdings.shards], labels[holdings.shards]
    model: Model = (
        Linear(held, truth) if cell.model == "hog-linear" else Network(cell.model, held, truth)
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
