"""Record-level privacy: ten clients on MNIST that add their own noise, beside none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import Log, Row, Spread
from flower_app.client_app import app as client_app
from flower_app.data import Inputs, load_dataset, load_inputs
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from privacy.training import ClientLedger
from strategies import InProcessGrid, ServerSGD

Vector = NDArray[np.float32]

CLIENTS, RECORDS = 10, 5000  # 50,000 training images; another 10,000 are for validation
EPSILON, DELTA = 3.0, 1e-5


@dataclass(frozen=True)
class Recipe:
    """What was chosen on the validation images, for the runs with noise and without.

    Attributes
    ----------
    rounds : int
        T. Each is one step of each client on all its records.
    clipping_norm : float
        C, of one example's gradient.
    learning_rate, momentum : float
        Of the server, on the average of the clients' steps of rate 1.
    """

    rounds: int
    clipping_norm: float
    learning_rate: float
    momentum: float = 0.9


RECIPES = {
    "hog-linear": Recipe(rounds=30, clipping_norm=0.5, learning_rate=100.0),
    "cnn": Recipe(rounds=60, clipping_norm=0.2, learning_rate=6.0),
}


@dataclass(frozen=True)
class Outcome:
    """The model of one run, and what its clients' ledgers log."""

    model: nn.Module
    epsilons: tuple[float, ...]


def config(model: str, recipe: Recipe, seed: int, epsilon: float) -> dict[str, Any]:
    """The application's settings for a client; without noise where ``epsilon`` is 0."""
    return {
        "model": model,
        "population": CLIENTS,
        "sampling-rate": 1.0,
        "rounds": recipe.rounds,
        "local-steps": 1,
        "local-learning-rate": 1.0,
        "example-clipping-norm": recipe.clipping_norm,
        "record-epsilon": epsilon,
        "record-delta": DELTA,
        "records-per-client": RECORDS,
        "partition-seed": seed,
    }


def federate(model: str, recipe: Recipe, seed: int, *, epsilon: float) -> Outcome:
    """Train with the application's own clients and a server that only averages.

    The server adds no noise: there is no client-level guarantee, and ε is the records' alone.

    Raises
    ------
    RuntimeError
        If a client declines or fails: its budget is planned for all rounds and one more.
    """
    grid = InProcessGrid(client_app, CLIENTS, run_config=config(model, recipe, seed, epsilon))
    network = build_model(model)
    arrays = [value.numpy() for value in network.state_dict().values()]
    names = list(network.state_dict())
    optimizer = ServerSGD(learning_rate=recipe.learning_rate, momentum=recipe.momentum)
    for _ in range(recipe.rounds):
        record = ArrayRecord(dict(zip(names, map(torch.from_numpy, arrays), strict=True)))
        messages = [
            Message(RecordDict({"arrays": record}), node, "train") for node in grid.get_node_ids()
        ]
        moved = [np.zeros_like(array) for array in arrays]
        for reply in grid.send_and_receive(messages):
            if reply.has_error():
                raise RuntimeError(f"a client gave no update: {reply.error.reason}")
            (update,) = reply.content.array_records.values()
            for total, before, after in zip(moved, arrays, update.to_numpy_ndarrays(), strict=True):
                total += (after - before) / CLIENTS
        arrays = optimizer.step(arrays, moved)
    network.load_state_dict(dict(zip(names, map(torch.from_numpy, arrays), strict=True)))
    spent = [_spent(grid.context(node).state.config_records) for node in grid.get_node_ids()]
    return Outcome(network, tuple(spent) if epsilon else ())


def _spent(records: Any) -> float:
    record: ConfigRecord | None = records.get("privacy-ledger")
    return ClientLedger.from_record(dict(record)).epsilon(delta=DELTA) if record else 0.0


def accuracy(model: nn.Module, inputs: Vector, labels: NDArray[np.generic]) -> float:
    """Percent of inputs that a model classifies rightly."""
    with torch.no_grad():
        predictions = [model(part).argmax(1) for part in torch.from_numpy(inputs).split(2000)]
    return float(100 * (torch.cat(predictions).numpy() == labels).mean())


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure, and return the rows: the test accuracy with noise, beside without."""
    rows = []
    dataset = load_dataset("mnist", data_dir=None)
    for model, recipe in list(RECIPES.items())[: 1 if quick else None]:
        inputs: Inputs = load_inputs(dataset, MODELS[model].kind)
        accuracies: dict[float, list[float]] = {EPSILON: [], 0.0: []}
        for seed in range(1 if quick else 3):
            for epsilon, values in accuracies.items():
                outcome = federate(model, recipe, seed, epsilon=epsilon)
                checked = accuracy(outcome.model, inputs.validation(), dataset.validation.labels)
                values.append(accuracy(outcome.model, inputs.test(), dataset.test.labels))
                spent = f"{max(outcome.epsilons):.4f}" if epsilon else "infinite"
                log(
                    f"{model}, seed {seed}, record-level ε {spent}: validation {checked:.2f} %, "
                    f"test {values[-1]:.2f} %"
                )
        rows.append(
            Row(
                f"{model}, {CLIENTS} clients of {RECORDS} records, record-level ε = {EPSILON:g} "
                f"at δ = {DELTA:g}",
                "test accuracy",
                "%",
                Spread.of(accuracies[EPSILON]),
                Spread.of(accuracies[0.0]),
                "clipped only",
                larger_is_better=True,
            )
        )
    return rows
