"""The columns, their public bounds, and a logistic regression."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hospitals.tables import is_test

# What is known of such columns before anybody looks: a percentage, a year, a yes or no.
BOUNDS: dict[str, tuple[float, float]] = {
    "coins": (0, 100),  # the share of a bill that the patient pays, in percent
    "year": (1, 5),
    "xage": (0, 65),  # the study took nobody older
    "female": (0, 1),
    "child": (0, 1),
    "fchild": (0, 1),  # a girl
    "black": (0, 1),
    "linc": (0, 12),  # logarithm of the family's income
    "educdec": (0, 25),  # years of education
    "num": (1, 15),  # persons in the family
    "mhi": (0, 100),  # mental health index
    "disea": (0, 60),  # index of chronic diseases
    "physlm": (0, 1),  # a physical limitation
    "hlthg": (0, 1),  # own opinion of one's health: good
    "hlthf": (0, 1),  # fair
    "hlthp": (0, 1),  # poor
    "fmde": (0, 10),  # logarithm of what is spent before the insurance pays
}
COLUMNS = tuple(BOUNDS)
TARGET = "mdvis"  # visits to a doctor in the year: any, or none


@dataclass(frozen=True)
class Table:
    """Rows of some persons."""

    features: np.ndarray
    """Shape (rows, columns), within the bounds; NaN where a value is missing."""
    labels: np.ndarray
    """1 where the person saw a doctor in that year; shape (rows,)."""
    persons: list[str]
    """Whose each row is."""


def load(path: Path, *, test: bool) -> Table:
    """A hospital's table: the persons for testing, or all the others."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if is_test(row["zper"]) == test]
    return Table(
        features(rows),
        np.array([float(row[TARGET]) > 0 for row in rows], dtype=np.int64),
        [row["zper"] for row in rows],
    )


def features(rows: list[dict[str, str]]) -> np.ndarray:
    """The columns as numbers, within their bounds."""
    values = np.array([[float(row[name] or "nan") for name in COLUMNS] for row in rows])
    low, high = np.array(list(BOUNDS.values()), dtype=float).T
    return np.clip(values.reshape(len(rows), len(COLUMNS)), low, high)


def scaled(values: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> Tensor:
    """Normalised features, the missing ones at the mean."""
    normal = (values - means) / deviations
    return torch.from_numpy(np.nan_to_num(normal).astype(np.float32))


def model() -> nn.Linear:
    """Begins at zero, where both answers are as likely."""
    linear = nn.Linear(len(COLUMNS), 2)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear
