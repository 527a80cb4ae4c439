"""What can be rebuilt of a client's image from what is seen of its update, by protection.

The attacker knows the model that was sent and sees one update: of a client that holds a single
image and takes one step. From the ``mlp`` the image is read out of the first layer; for the ``cnn``
it is searched for (Geiping et al. 2020, arXiv 2003.14053). The protections are the product's own.
The figure is the correlation of the rebuilt with the true pixels: 1 is the image itself.
"""

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Log, Row, Spread
from flower_app.data import load_dataset, load_inputs
from flower_app.models.build import build_model
from flower_app.models.specs import RECIPES
from privacy.accounting import Budget, Full, Poisson, calibrate_noise_multiplier
from privacy.audit import invert_first_linear_layer, match_gradient
from privacy.mechanisms import ClippingGeometry, LatticeGaussian, SystemRandomness
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, FullBatch, NominalCount, train

COHORT = 10  # of a secure aggregation: a small one, to be fair to the attacker
BUDGET = Budget(epsilon=3.0, delta=1e-5)
NORM = RECIPES["mlp"].clipping_norm
PROTECTIONS = {
    "nothing": "the update as it is",
    "clipped": f"clipped to S = {NORM:g}",
    "summed": f"secure aggregation: the sum of {COHORT} clients",
    "client noise": "record-level noise, ε = 3",
    "released": "the released average: client-level noise, ε = 3",
}

Update = list[Tensor]


def run(*, quick: bool, log: Log) -> list[Row]:
    torch.set_num_threads(1)
    dataset = load_dataset()
    inputs = load_inputs(dataset, "pixels")
    chosen = _one_of_each_digit(np.asarray(dataset.train.labels))[: 2 if quick else 4]
    others = np.arange(1000, 1000 + COHORT - 1)
    images = torch.from_numpy(inputs.train(np.concatenate([chosen, others])))
    labels = torch.from_numpy(np.asarray(dataset.train.labels)[np.concatenate([chosen, others])])
    z = calibrate_noise_multiplier(
        sampling=Poisson(0.1), rounds=RECIPES["mlp"].rounds, budget=BUDGET
    )
    rows = []
    for name in ("mlp", "cnn"):
        model = _warmed_up(name, inputs.validation(), np.asarray(dataset.validation.labels))
        attack = _read_out if name == "mlp" else _search(*((200, 2) if quick else (300, 6)))
        for protection, meaning in PROTECTIONS.items():
            correlations, pairs = [], []
            for i in range(len(chosen)):
                cohort = [i, *range(len(chosen), len(images))]
                update = _seen(model, images[cohort], labels[cohort], protection, z)
                rebuilt = attack(model, update, int(labels[i])).flatten()
                correlations.append(_correlation(rebuilt, images[i].flatten()))
                pairs.append((images[i].flatten(), rebuilt))
            log(f"{name}, {meaning}: correlation {np.median(correlations):.3f}")
            rows.append(
                Row(
                    f"{name}, {meaning}",
                    "correlation of the rebuilt image with the true one",
                    "of 1",
                    Spread.of(correlations),
                    details={
                        "model": name,
                        "protection": protection,
                        "true": [_packed(t) for t, _ in pairs],
                        "rebuilt": [_packed(r) for _, r in pairs],
                    },
                )
            )
    return rows


def _one_of_each_digit(labels: np.ndarray[Any, Any]) -> list[int]:
    return [int(np.flatnonzero(labels == digit)[0]) for digit in (7, 5, 3, 0)]


def _warmed_up(name: str, inputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> nn.Module:
    """A network of the app's, some steps into training on images that belong to no client.

    It begins from PyTorch's first weights, which is fair to the attacker: the app's own ``cnn``
    begins with half of a typical digit hidden, and as its squares cannot tell an image from its
    negative, the search often ends at neither. A user's own network has no such luck.
    """
    model = build_model(name)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for part in np.array_split(np.arange(2000), 20):
        optimizer.zero_grad()
        loss = cross_entropy(model(torch.from_numpy(inputs[part])), torch.from_numpy(labels[part]))
        loss.backward()
        optimizer.step()
    return model


def _seen(model: nn.Module, images: Tensor, labels: Tensor, protection: str, z: float) -> Update:
    """What the attacker sees of the first client's update; the others are the cohort's rest."""
    before = [p.detach().clone() for p in model.parameters()]
    how: ClipOnly | ClipAndNoise = ClipOnly(clipping_norm=1e6)
    ledger = None
    if protection == "client noise":
        how = ClipAndNoise(
            clipping_norm=RECIPES["mlp"].example_clipping_norm,
            noise_multiplier=calibrate_noise_multiplier(sampling=Full(), rounds=20, budget=BUDGET),
            delta=BUDGET.delta,
            count=NominalCount(records=1),
        )
        ledger = ClientLedger(dataset="one image")
    clients = range(len(images)) if protection in ("summed", "released") else range(1)
    updates = []
    for client in clients:
        own = copy.deepcopy(model)
        train(
            own,
            (images[client : client + 1], labels[client : client + 1]),
            loss=cross_entropy,
            optimizer=torch.optim.SGD(own.parameters(), lr=1.0),
            protection=how,
            batches=FullBatch(steps=1),
            ledger=ledger,
        )
        updates.append([p.detach() for p in own.parameters()])
    if protection in ("nothing", "client noise"):
        return [after - b for after, b in zip(updates[0], before, strict=True)]
    total = LatticeGaussian().open(
        [b.numpy() for b in before],
        ClippingGeometry((NORM,), (0,) * len(before)),
        noise_multiplier=z if protection == "released" else 0.0,
        randomness=SystemRandomness(),
    )
    for update in updates:
        total.add([a.numpy() for a in update], weight=1.0)
    return [torch.from_numpy(np.asarray(a)) for a in total.release()]


def _read_out(model: nn.Module, update: Sequence[Tensor], label: int) -> Tensor:
    return invert_first_linear_layer(update[0], update[1])


def _search(steps: int, restarts: int) -> Callable[[nn.Module, Sequence[Tensor], int], Tensor]:
    def attack(model: nn.Module, update: Sequence[Tensor], label: int) -> Tensor:
        return match_gradient(
            model, update, label=label, shape=(1, 28, 28), steps=steps, restarts=restarts
        )

    return attack


def _correlation(a: Tensor, b: Tensor) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def _packed(image: Tensor) -> str:
    """An image's 784 grey values as text, stretched over the whole range."""
    values = image.double().numpy()
    low, high = np.quantile(values, [0.005, 0.995])
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return base64.b64encode((255 * scaled).astype(np.uint8).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(28, 28)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the true images, and what was rebuilt of them under each protection."""
    rows = document["rows"]
    models = list(dict.fromkeys(row["details"]["model"] for row in rows))
    titles = ["what the client holds", *PROTECTIONS.values()]
    count = len(rows[0]["details"]["true"])
    figure = Figure(figsize=(2.05 * len(titles), 1.75 * count * len(models) + 1.0))
    grid = figure.subplots(count * len(models), len(titles), squeeze=False)
    for m, model in enumerate(models):
        by_protection = {
            r["details"]["protection"]: r for r in rows if r["details"]["model"] == model
        }
        for i in range(count):
            line = grid[m * count + i]
            shown = [by_protection["nothing"]["details"]["true"][i]]
            shown += [by_protection[name]["details"]["rebuilt"][i] for name in PROTECTIONS]
            for axes, packed in zip(line, shown, strict=True):
                axes.imshow(_unpacked(packed), cmap="gray_r", interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_color("#e4e7eb")
            if i == 0:
                line[0].set_ylabel(model, fontsize=11)
                for axes, name in zip(line[1:], PROTECTIONS, strict=True):
                    correlation = by_protection[name]["ours"]
                    axes.text(
                        0.5, -0.08, f"median correlation {correlation:.2f}", ha="center", va="top",
                        transform=axes.transAxes, fontsize=8,
                        color="#c9372c" if correlation > 0.5 else "#2f9e63",
                    )  # fmt: skip
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title.replace(": ", ":\n").replace(", ", ",\n"), fontsize=8.5)
    figure.suptitle("Rebuilding a client's image from its update", x=0.02, ha="left", weight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=110, facecolor="white")
