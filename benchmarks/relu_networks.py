"""Networks trained on MNIST with ReLU and the like, before and after replace_activations."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Log, Row, Spread
from flower_app.data import encode, load_dataset
from privacy.inference import PublicData, certify, compile_model, replace_activations

IMAGES = 10_000
ENCRYPTED = 50


@dataclass(frozen=True)
class Case:
    """A network, and how its activations are replaced."""

    name: str
    make: Callable[[], nn.Sequential]
    degree: int | None = None
    logit_bits: float | None = None
    seeds: int = 3


def _mlp(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), activation(), nn.Linear(64, 10))


def _deep_mlp() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


CASES = (
    Case("MLP 784-64-10, ReLU", lambda: _mlp(nn.ReLU)),
    Case("MLP 784-64-10, ReLU, degree 4", lambda: _mlp(nn.ReLU), degree=4),
    Case("MLP 784-64-10, tanh", lambda: _mlp(nn.Tanh)),
    Case("MLP 784-64-64-32-10, ReLU", _deep_mlp, logit_bits=20, seeds=1),
    Case("CNN of three activations, ReLU", _cnn, seeds=1),
)


def train(model: nn.Sequential, images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> None:
    """Train a network as anybody would; it ends in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: NDArray[np.generic]) -> float:
    """Percent of images that a model classifies rightly."""
    with torch.no_grad():
        classes = [model(part).argmax(1) for part in images.split(2000)]
    return float(100 * (torch.cat(classes).numpy() == labels).mean())


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure, and return the rows: the test accuracy after, beside before."""
    dataset = load_dataset("mnist")
    count = 5000 if quick else IMAGES
    images = torch.from_numpy(np.array(encode(dataset.train.images[:count], "pixels")))
    labels = torch.from_numpy(np.array(dataset.train.labels[:count])).long()
    test = torch.from_numpy(np.array(encode(dataset.test.images, "pixels")))
    rows = []
    for case in CASES[: 1 if quick else None]:
        before, after, agreements = [], [], []
        for seed in range(1 if quick else case.seeds):
            torch.manual_seed(seed)
            model = case.make()
            train(model, images, labels, epochs=1 if quick else 3, seed=seed)
            replaced = replace_activations(
                model,
                data=PublicData(images, labels),
                degree=case.degree,
                input_range=None if case.logit_bits is None else (0.0, 1.0),
                logit_bits=case.logit_bits,
                seed=seed,
            )
            before.append(accuracy(model, test, dataset.test.labels))
            after.append(accuracy(replaced.model, test, dataset.test.labels))
            compiled = compile_model(
                replaced.model,
                input_shape=(1, 28, 28),
                input_range=(0.0, 1.0),
                sample=images[:32].numpy(),
            )
            shown = slice(0, 5 if quick else ENCRYPTED)
            certificate = certify(compiled, test[shown].numpy(), dataset.test.labels[shown])
            agreements.append(100 * certificate.agreement)
            log(
                f"{case.name}, seed {seed}: {before[-1]:.2f} % before, {after[-1]:.2f} % after, "
                f"{replaced.report.levels} levels, N = {compiled.plan.degree}, "
                f"{agreements[-1]:.0f} % of encrypted answers agree"
            )
        rows += [
            Row(
                *(case.name, "test accuracy", "%"),
                *(Spread.of(after), Spread.of(before), "the network as it was trained"),
                larger_is_better=True,
            ),
            Row(case.name, "encrypted answers that agree", "%", Spread.of(agreements)),
        ]
    return rows
