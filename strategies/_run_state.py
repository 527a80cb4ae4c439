"""What a run changes from round to round, kept in a checkpoint and taken up again."""

import copy
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from privacy.accounting import Position
from strategies._replies import Template
from strategies.checkpoint import Checkpoint, CheckpointError
from strategies.clipping import AdaptiveClipping, Clipping
from strategies.metrics import PublicMetrics
from strategies.server_optimizers import ServerOptimizer

Vector = npt.NDArray[Any]


@dataclass
class RunState:
    """The state of a run: released values only.

    Attributes
    ----------
    clipping : Clipping
        With this round's norm.
    optimizer : ServerOptimizer
        With its moments.
    noise_multiplier : float or None
        z; None until it is calibrated.
    name : str
        The run's name in the ledger.
    average : list of ndarray
        The average of the iterates, where one is kept.
    epsilon_by_round : dict of int to float
        ε after each round.
    aborted : list of int
        The rounds whose sum was not opened, under secure aggregation.
    stopped : str or None
        Why the run ended before its last round, if it did.
    """

    clipping: Clipping
    optimizer: ServerOptimizer
    noise_multiplier: float | None
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    average: list[Vector] = field(default_factory=list)
    epsilon_by_round: dict[int, float] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    stopped: str | None = None

    @classmethod
    def fresh(
        cls, clipping: Clipping, optimizer: ServerOptimizer, noise_multiplier: float | None
    ) -> "RunState":
        """The state of a new run. Copies: a run changes them, and they may serve another."""
        return cls(copy.deepcopy(clipping), copy.deepcopy(optimizer), noise_multiplier)

    def averaged(self, arrays: ArrayRecord) -> ArrayRecord:
        """The exponential average of the iterates, bias-corrected by starting at the first."""
        decay = getattr(self.optimizer, "iterate_average", 0.0)
        if not decay:
            return arrays
        template = Template(arrays)
        if not self.average:
            self.average = [np.array(a) for a in template.arrays]
        for average, a in zip(self.average, template.arrays, strict=True):
            average += (1 - decay) * (a - average)
        return template.record(self.average)

    def latest_average(self, arrays: ArrayRecord) -> ArrayRecord:
        """The average as it stands; the model itself where there is none."""
        return Template(arrays).record(self.average) if self.average else arrays

    def checkpoint(
        self, number: int, arrays: ArrayRecord, *, position: Position, settings: str
    ) -> Checkpoint:
        """The state after a round, with the model and where the ledger stands."""
        if self.noise_multiplier is None:
            raise ValueError("noise_multiplier is not calibrated yet; there is nothing to keep")
        slots = {f"model/{name}": array.numpy() for name, array in arrays.items()}
        slots |= {f"optimizer/{k}": v for k, v in self.optimizer.state_dict().items()}
        slots |= {f"average/{i}": v for i, v in enumerate(self.average)}
        slots["clipping/norm"] = np.array([self.clipping.norm])
        rounds = list(self.epsilon_by_round)
        slots["privacy/rounds"] = np.array(rounds, dtype=np.int64)
        slots["privacy/epsilon"] = np.array([self.epsilon_by_round[r] for r in rounds])
        slots["privacy/aborted"] = np.array(self.aborted, dtype=np.int64)
        return Checkpoint(
            run=self.name,
            round=number,
            noise_multiplier=self.noise_multiplier,
            position=position,
            settings=settings,
            arrays=slots,
        )

    @staticmethod
    def has_learned(kept: Checkpoint) -> bool:
        """Whether a checkpoint holds a model of a round that was paid and opened."""
        privacy = kept.slot("privacy")
        return bool(set(privacy["rounds"].tolist()) - set(privacy["aborted"].tolist()))

    def restore(self, kept: Checkpoint, initial: ArrayRecord) -> ArrayRecord:
        """Take up what a checkpoint kept.

        Returns
        -------
        ArrayRecord
            The model after the checkpoint's round.

        Raises
        ------
        CheckpointError
            If it is of another model than ``initial``.
        """
        self.name, self.noise_multiplier = kept.run, kept.noise_multiplier
        self.optimizer.load_state_dict(kept.slot("optimizer"))
        average = kept.slot("average")
        self.average = [average[str(i)] for i in range(len(average))]
        if isinstance(self.clipping, AdaptiveClipping):
            self.clipping.norm = float(kept.slot("clipping")["norm"][0])
        privacy = kept.slot("privacy")
        self.epsilon_by_round = dict(
            zip(privacy["rounds"].tolist(), privacy["epsilon"].tolist(), strict=True)
        )
        self.aborted = privacy["aborted"].tolist()
        model = kept.slot("model")
        expected = {name: (tuple(a.shape), a.dtype) for name, a in initial.items()}
        found = {name: (a.shape, str(a.dtype)) for name, a in model.items()}
        if found != expected:
            names = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
            raise CheckpointError(f"the checkpoint is of another model; its arrays {names} differ")
        return ArrayRecord({name: Array(model[name]) for name in initial})


def settings_text(settings: Mapping[str, object]) -> str:
    """A run's settings as a checkpoint compares them: the same in another process."""
    return json.dumps({name: _told(value) for name, value in settings.items()}, sort_keys=True)


def _told(setting: object) -> object:
    if setting is None or isinstance(setting, int | float | str):
        return setting
    if isinstance(setting, PublicMetrics) or not is_dataclass(setting):
        return type(setting).__qualname__
    return repr(setting)
