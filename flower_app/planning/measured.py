"""What was measured of this app: a small table beside the code, written by the benchmarks.

``python -m benchmarks results`` writes ``measured.json`` from the committed figures; nothing in it
is typed by hand.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class MeasuredAccuracy:
    """The test accuracy that one setting reached, with label-sorted, disjoint clients.

    Attributes
    ----------
    dataset, model : str
    clients, records : int
        N, and how many records each held.
    epsilon, delta : float
        What was spent.
    sampling_rate : float
    rounds : int
    noise_multiplier : float
    median, low, high : float
        Of the accuracies of ``runs`` runs.
    runs : int
    """

    dataset: str
    model: str
    clients: int
    records: int
    epsilon: float
    delta: float
    sampling_rate: float
    rounds: int
    noise_multiplier: float
    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class MeasuredRound:
    """How long one round took.

    Attributes
    ----------
    model : str
    cohort : float
        Expected clients a round.
    seconds : float
        Of a round, the median.
    where : str
        The machine.
    """

    model: str
    cohort: float
    seconds: float
    where: str


@cache
def accuracies() -> tuple[MeasuredAccuracy, ...]:
    """All measured accuracies."""
    return tuple(MeasuredAccuracy(**row) for row in _document()["accuracy"])


@cache
def rounds() -> tuple[MeasuredRound, ...]:
    """All measured times of a round."""
    return tuple(MeasuredRound(**row) for row in _document()["rounds"])


def _document() -> dict[str, Any]:
    return dict(json.loads(TABLE.read_text()))
