"""The price of privacy: ``python -m hospitals.compare TABLES`` trains five ways in one process.

``python -m hospitals.compare TABLES 1`` makes one run of each instead of three.

- ours: distributed DP-SGD; the noise of the four honest hospitals that are surely there;
- own noise: each of the six hospitals adds all of the noise;
- curator: somebody holds all the tables, and adds the noise once;
- no privacy: the same steps without noise, not clipped;
- guessing: the more frequent answer, for everybody.

The sums, clipping and noise are the library's; secure aggregation, which changes no number, is left
out, and so are the statistics: the scaling is by the public bounds, the same for all.
"""

import sys
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from hospitals import task
from privacy.accounting import Budget, Poisson, calibrate_noise_multiplier
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import Persons, SiloStep, silo_sum
from strategies import ServerSGD

DELTA, RATE, STEPS, NORM = 1e-5, 0.3, 60, 0.5
SITES = 6


class Tables:
    """All hospitals' rows, scaled by their bounds to [-1, 1]."""

    def __init__(self, folder: Path) -> None:
        low, high = np.array(list(task.BOUNDS.values()), dtype=float).T
        self.silos, tested = [], []
        for site in range(1, SITES + 1):
            for test in (False, True):
                table = task.load(folder / f"site-{site}" / "visits.csv", test=test)
                inputs = task.scaled(table.features, (low + high) / 2, (high - low) / 2)
                if test:
                    tested.append((inputs, table.labels))
                else:
                    labels = torch.from_numpy(table.labels)
                    persons = [f"{site}-{person}" for person in table.persons]
                    self.silos.append((inputs, labels, persons))
        self.test_inputs = torch.cat([inputs for inputs, _ in tested])
        self.test_labels = np.concatenate([labels for _, labels in tested])

    def persons(self, *, pooled: bool) -> list[Persons]:
        """One a silo, or all in one."""
        parts = self.silos
        if pooled:
            inputs, labels, persons = zip(*parts, strict=True)
            parts = [(torch.cat(inputs), torch.cat(labels), list(chain(*persons)))]
        return [Persons((x, y), person_ids=ids) for x, y, ids in parts]

    def score(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy, and the area under the ROC curve."""
        with torch.no_grad():
            outputs = model(self.test_inputs).numpy()
        margin = outputs[:, 1] - outputs[:, 0]
        right = float(np.mean((margin > 0) == self.test_labels))
        return right, float(roc_auc_score(self.test_labels, margin))


def train(silos: list[Persons], mechanism: SiloGaussian, epsilon: float, seed: int) -> nn.Module:
    """Distributed DP-SGD, with all messages left out."""
    model = task.model()
    size, sampling = sum(p.numel() for p in model.parameters()), Poisson(RATE)
    z = calibrate_noise_multiplier(
        sampling=sampling,
        rounds=STEPS,
        budget=Budget(epsilon, DELTA),
        release=lambda z: mechanism.account(parameters=size, noise_multiplier=z, sampling=sampling),
    )
    people = sum(len(silo) for silo in silos)
    step = SiloStep(
        mechanism=mechanism,
        clipping_norm=NORM,
        noise_multiplier=z,
        sampling_rate=RATE,
        persons=people,
    )
    optimizer, randomness = ServerSGD(learning_rate=0.3, momentum=0.9), SeededRandomness(seed)
    for _ in range(STEPS):
        total = sum(
            silo_sum(
                model,
                silo,
                loss=nn.functional.cross_entropy,
                step=step,
                ledger=None,
                randomness=randomness,
            )
            for silo in silos
        )
        move = -mechanism.decode(total, clipping_norm=NORM) / (RATE * people)
        _step(model, optimizer, move)
    return model


def train_without_privacy(tables: Tables) -> nn.Module:
    """Gradient descent on all rows."""
    model = task.model()
    inputs = torch.cat([x for x, _, _ in tables.silos])
    labels = torch.cat([y for _, y, _ in tables.silos])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def _step(model: nn.Module, optimizer: ServerSGD, move: np.ndarray) -> None:
    parameters = list(model.parameters())
    arrays = [parameter.detach().numpy() for parameter in parameters]
    ends = np.cumsum([array.size for array in arrays])[:-1]
    parts = np.split(move, ends)
    update = [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
    with torch.no_grad():
        for parameter, array in zip(parameters, optimizer.step(arrays, update), strict=True):
            parameter.copy_(torch.from_numpy(array))


def main(folder: Path, seeds: int = 3) -> None:
    """Print a table: means over the seeds."""
    tables = Tables(folder)
    few = FewSilos(SITES)
    alone = SiloGaussian(min_silos=2, colluders=1)
    ways = {
        "ours": (SiloGaussian(few.min_silos, few.colluders), False),
        "own noise": (alone, False),
        "curator": (alone, True),
    }
    print("| ε a patient | way | accuracy | AUC |\n|---|---|---|---|")
    for epsilon in (0.1, 1.0, 3.0):
        for way, (mechanism, pooled) in ways.items():
            silos = tables.persons(pooled=pooled)
            scores = [tables.score(train(silos, mechanism, epsilon, seed)) for seed in range(seeds)]
            right, area = np.mean(scores, axis=0)
            print(f"| {epsilon:g} | {way} | {right:.3f} | {area:.3f} |", flush=True)
    right, area = tables.score(train_without_privacy(tables))
    print(f"| none | no privacy | {right:.3f} | {area:.3f} |")
    often = max(np.mean(tables.test_labels), 1 - np.mean(tables.test_labels))
    print(f"| 0 | guessing | {often:.3f} | 0.500 |")


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser(), *map(int, sys.argv[2:3]))
