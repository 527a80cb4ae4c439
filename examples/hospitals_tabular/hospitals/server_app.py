"""The server: asks for statistics, trains, and writes the model. It never sees a row."""

import json
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from hospitals import task
from privacy.secure_aggregation import FewSilos
from privacy.statistics import TableQuery
from strategies import Budget, DistributedDPSGD, LocalEvaluation, RoundProgress, ServerSGD

app = ServerApp()
# For training and for testing, over all hospitals; round numbers that all may know.
PERSONS, TEST_PERSONS = 4_700, 1_200


def tell(progress: RoundProgress) -> None:
    """Print a line now and then, all of it public."""
    if progress.round % 10 == 0 or progress.round == progress.rounds:
        print(f"step {progress.round} of {progress.rounds}: ε = {progress.epsilon:.2f}", flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    place = Path(str(config["results"])).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    steps = int(config["steps"])
    strategy = DistributedDPSGD(
        silos=FewSilos(6),  # one may collude with the server, one may be absent
        persons=PERSONS,
        sampling_rate=float(config["sampling-rate"]),
        clipping_norm=float(config["clipping-norm"]),
        budget=Budget(epsilon=float(config["epsilon"]), delta=1e-5),
        optimizer=ServerSGD(learning_rate=float(config["learning-rate"]), momentum=0.9),
        evaluation=LocalEvaluation(
            every=steps,
            noise_multiplier=float(config["evaluation-noise"]),
            persons=TEST_PERSONS,
        ),
        ledger=place / "ledger.jsonl",
        on_round=tell,
    )
    query = TableQuery(bounds=task.BOUNDS.values(), classes=2)
    known = strategy.statistics(grid, query, noise_multiplier=float(config["statistics-noise"]))
    for name, mean, deviation in zip(task.COLUMNS, known.means, known.deviations, strict=True):
        print(f"{name:8} mean {mean:8.2f}  deviation {deviation:8.2f}")
    low, high = np.array(list(task.BOUNDS.values()), dtype=float).T
    # Noise may bring a small deviation to zero.
    deviations = np.maximum(known.deviations, (high - low) / 10)
    scaling = {"means": known.means.tolist(), "deviations": deviations.tolist()}
    model = task.model()
    result = strategy.start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=steps,
        train_config=ConfigRecord(scaling),
        evaluate_config=ConfigRecord(scaling),
    )
    (place / "scaling.json").write_text(json.dumps(scaling))
    torch.save(result.arrays.to_torch_state_dict(), place / "model.pt")
    print(result.privacy)
    print(f"Accuracy, by noised counts of the hospitals: {result.evaluate_metrics_clientapp}")
