"""Encrypted answers: ``python -m hospitals.ask RESULTS TABLES`` asks about ten rows.

The questions stay with whoever asks: the evaluator computes on ciphertexts alone.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hospitals import task
from privacy.inference import DataOwner, Evaluator, compile_model


class Scaled(nn.Module):
    """The trained model, with the scaling of its inputs."""

    def __init__(self, results: Path) -> None:
        super().__init__()
        known = json.loads((results / "scaling.json").read_text())
        self.means = torch.tensor(known["means"], dtype=torch.float32)
        self.scale = 1 / torch.tensor(known["deviations"], dtype=torch.float32)
        self.linear = task.model()
        self.linear.load_state_dict(torch.load(results / "model.pt", weights_only=True))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Two logits for each row."""
        return self.linear((inputs - self.means) * self.scale)


def main(results: Path, tables: Path) -> None:
    """Ask."""
    model = Scaled(results)
    compiled = compile_model(
        model,
        input_shape=(len(task.COLUMNS),),
        input_range=tuple(np.array(list(task.BOUNDS.values()), dtype=float).T),
        class_names=("no visit", "visits a doctor"),
    )
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    with (tables / "questions.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = task.features(rows)
    values = np.where(np.isnan(values), model.means.numpy(), values)
    for row, value in zip(rows, values, strict=True):
        question = owner.encrypt(value)
        answer = owner.decrypt(evaluator.evaluate(question))
        sent = len(question) // 1024
        print(f"{float(row['xage']):4.0f} years, sent {sent} KiB encrypted: {answer.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser(), Path(sys.argv[2]).expanduser())
