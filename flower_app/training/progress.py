"""A run's progress: one line a round, and a log for the operator alone."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import INFO, WARNING
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord
from flwr.supercore import log
from torch import nn

from flower_app.data import Inputs
from flower_app.report.results_folder import ResultsFolder
from flower_app.settings import Settings
from privacy.json_text import read_json
from strategies import DistributedDPSGD, DPFedAvg


def predicted(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The class that a model answers to each input."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in inputs.split(2000)])


def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of inputs that a model classifies correctly."""
    return float((predicted(model, inputs) == labels).double().mean())


@dataclass
class TimeLeft:
    """Estimates how long a run still takes, from the rounds after its first.

    The first round also waits for the nodes' processes to start.
    """

    rounds: int
    _first: tuple[int, float] | None = None

    def after(self, number: int, now: float) -> str:
        """The end of the line on round ``number``, which ended ``now``, in seconds."""
        if self._first is None:
            self._first = number, now
            return ""
        first, since = self._first
        rest = (now - since) / (number - first) * (self.rounds - number)
        minutes, seconds = divmod(round(rest), 60)
        return f"   {f'{minutes} min {seconds:02d}' if minutes else seconds} s left"


@dataclass
class ProgressLogger:
    """Logs each round of a run, and records its validation accuracy and the norm of its update.

    Both are in ``progress.json`` after each round, for a run that is resumed.
    """

    settings: Settings
    model: nn.Sequential
    inputs: Inputs
    folder: ResultsFolder
    accuracy: dict[int, float] = field(default_factory=dict)
    update_norms: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images = torch.from_numpy(self.inputs.validation())
        self._labels = torch.tensor(self.inputs.dataset.validation.labels, device="cpu")
        self._time_left = TimeLeft(self.settings.rounds)
        self._is_latest = False
        self._before: npt.NDArray[np.float64] | None = None
        self._velocity: npt.NDArray[np.float64] | None = None
        if self.settings.resume:
            self._load()

    def evaluate_fn(
        self, strategy: DPFedAvg | DistributedDPSGD
    ) -> Callable[[int, ArrayRecord], None]:
        """The strategy's ``evaluate_fn``."""

        def evaluate(number: int, arrays: ArrayRecord) -> None:
            if not self.settings.has_silos:  # whose models are not all seen here
                self._record_update(number, arrays)
            self.model.load_state_dict(arrays.to_torch_state_dict())
            self.accuracy[number] = accuracy(self.model, self._images, self._labels)
            self.folder.write_json(
                "progress.json", {"accuracy": self.accuracy, "update_norms": self.update_norms}
            )
            if not self._is_latest:
                self._is_latest = True
                self.folder.become_latest()
            if number > 0:
                paid = strategy.epsilon_by_round
                log(
                    INFO,
                    "%s %3d/%d   validation accuracy %5.2f %%   ε %.3f of %g%s",
                    "step" if self.settings.has_silos else "round",
                    number,
                    self.settings.rounds,
                    100 * self.accuracy[number],
                    paid[number] if number in paid else strategy.epsilon(),  # a step without cost
                    self.settings.epsilon,
                    self._time_left.after(number, time.perf_counter()),
                )

        return evaluate

    def _load(self) -> None:
        try:
            saved = read_json(self.folder.file("progress.json").read_text())
            self.accuracy = {int(number): float(v) for number, v in saved["accuracy"].items()}
            norms = {int(number): float(v) for number, v in saved["update_norms"].items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            log(WARNING, "The run's pictures will lack its first rounds: %s", error)
            return
        self.update_norms = norms

    def _record_update(self, number: int, arrays: ArrayRecord) -> None:
        """Recover the round's noisy average from two models and the known momentum."""
        flat = np.concatenate([a.numpy().ravel().astype(np.float64) for a in arrays.values()])
        if self._before is not None:
            velocity = (flat - self._before) / self.settings.server_learning_rate
            if number == 1:
                self.update_norms[number] = float(np.linalg.norm(velocity))
            elif self._velocity is not None:  # unknown for the first round after a resumption
                update = velocity - self.settings.server_momentum * self._velocity
                self.update_norms[number] = float(np.linalg.norm(update))
            self._velocity = velocity
        self._before = flat


@contextmanager
def operator_log(path: Path) -> Iterator[None]:
    """Write cohorts, node ids and reasons of the block into a file that only its owner can read."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    logger = logging.getLogger("bloomseal.operator")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
