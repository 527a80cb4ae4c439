"""The state of a run, from which it is resumed after a crash: released values only."""

import copy
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, is_dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord
from flwr.supercore.utils import get_flwr_home

from privacy.accounting import Position
from privacy.arguments import lasting_file, number, text, whole
from privacy.array_files import ArrayFile
from privacy.json_text import read_json
from strategies.clipping import AdaptiveClipping, Clipping
from strategies.errors import CheckpointError
from strategies.metrics import PublicMetrics
from strategies.model_schema import ModelSchema
from strategies.server_optimizers import ServerOptimizer

Vector = npt.NDArray[Any]

_FORMATS = "bloomseal-checkpoint-"
_FORMAT = f"{_FORMATS}2"


def lasting_path(name: str, value: Any) -> Path:
    """As ``lasting_file``, and outside of the app as Flower unpacked it.

    Such a path is another one after the next change to the app.
    """
    path = lasting_file(name, value)
    apps = get_flwr_home() / "apps"
    if apps.resolve() in path.resolve().parents:
        raise ValueError(
            f"{name} is {str(path)!r}, inside the app as Flower unpacked it, where nothing lasts "
            f"longer than this version of the app; give another path, as '~/{path.name}'"
        )
    return path


@dataclass(frozen=True)
class Checkpointing:
    """Where a run keeps its state after each round, and from where it goes on.

    Parameters
    ----------
    path : path-like, optional
        The file that holds the last round's released state. Absolute, or beginning with ``~``.
        Default: nothing is kept.
    resume : bool or path-like
        True: go on from ``path`` if it is there, else begin. A path: go on from that checkpoint,
        which must be there. The interrupted round is played again, with fresh randomness, and paid
        again. Under secure aggregation against a malicious server, clients that had endorsed its
        sum decline it with others than those (``docs/explanation/secure-sums.md``). Default:
        begin; but ``start`` refuses to where ``path`` holds an unfinished run with the same
        settings. Where a strategy is started again, a path no longer counts: it begins, or is
        refused.
    """

    path: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | bool | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", lasting_path("checkpointing.path", self.path))
        if self.resume is True and self.path is None:
            raise ValueError("checkpointing.resume is True; give the path to go on from as well")
        if self.resume is False:
            object.__setattr__(self, "resume", None)
        elif self.resume is not None and self.resume is not True:
            object.__setattr__(self, "resume", lasting_path("checkpointing.resume", self.resume))

    @property
    def source(self) -> Path | None:
        """The file that a run goes on from, whether it is there or not; None for a new run."""
        where = self.path if isinstance(self.resume, bool) else self.resume
        return None if where is None else Path(where)

    def load(self, settings: str) -> "Checkpoint | None":
        """The checkpoint to go on from, of a run with these settings; None for a new run."""
        if (source := self.source) is None:
            return None
        if not source.exists():
            if self.resume is True:
                return None
            raise CheckpointError(
                f"{source} is not there to go on from; resume=True goes on from checkpointing.path "
                "if it is there, and else begins"
            )
        checkpoint = Checkpoint.load(source)
        before, now = read_json(checkpoint.settings), read_json(settings)
        names = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if names:
            changes = ", ".join(f"{name}: {before.get(name)} → {now.get(name)}" for name in names)
            raise CheckpointError(f"{source} belongs to a run with other settings ({changes})")
        return checkpoint

    def load_again(self, settings: str) -> "Checkpoint | None":
        """As ``load``, for a strategy that is started once more: another run unless resume=True."""
        return self.load(settings) if self.resume is True else None

    def refuse_unfinished(self, settings: str, num_rounds: int) -> None:
        """Refuse to begin where ``path`` holds an unfinished run with the same settings.

        Its rounds would be paid again, and its model overwritten. A run that has learned nothing
        yet, another run, and what is no checkpoint are overwritten.
        """
        try:
            before = None if self.path is None else Checkpoint.load(Path(self.path))
        except CheckpointError:
            return
        if before is None or before.settings != settings or not before.has_learned:
            return
        planned = max(num_rounds, before.planned)
        if before.round < planned:
            raise CheckpointError(
                f"{self.path} holds round {before.round} of {planned} of a run with these "
                "settings, and to begin anew would pay for its rounds again and overwrite it. Go "
                "on from it with Checkpointing(path, resume=True), or move the file away. Nothing "
                "was spent"
            )


@dataclass(frozen=True)
class NoiseRows:
    """How many rows of an instance of correlated noise were begun; all is public.

    Attributes
    ----------
    instance : str
        Its name in the ledger.
    count : int
    tag : str
        By which whoever has the rows' keys knows whether they are those of the model.
    """

    instance: str
    count: int
    tag: str


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Holds nothing that was not released: no raw sum, no reply, no generator's state.

    Attributes
    ----------
    run : str
        The run's name in the ledger.
    round : int
        The last finished round.
    noise_multiplier : float
        The run's z, given or calibrated.
    position : Position
        The ledger's last record then.
    settings : str
        The run's privacy settings, as JSON; a resumed run must have the same.
    arrays : mapping of str to ndarray
        Everything numeric, by slot: ``model/…``, ``optimizer/…``, ``average/…``, ``clipping/…``.
    rows : NoiseRows or None
        The correlated noise that the model holds, where there is such.
    planned : int
        How many rounds the run was to have; 0 where a version before this one wrote it.
    """

    run: str
    round: int
    noise_multiplier: float
    position: Position
    settings: str
    arrays: Mapping[str, Vector]
    rows: "NoiseRows | None" = None
    planned: int = 0

    def slot(self, name: str) -> dict[str, Vector]:
        """The arrays of one slot, by their names within it."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def save(self, path: Path) -> None:
        """Write to ``path``, whole and durable, or not at all."""
        state = json.dumps(
            {
                "run": self.run,
                "round": self.round,
                "noise_multiplier": self.noise_multiplier,
                "position": [self.position.records, self.position.digest],
                "settings": self.settings,
                "planned": self.planned,
                **({} if self.rows is None else {"rows": astuple(self.rows)}),
            }
        )
        ArrayFile(_FORMAT, state, self.arrays).save(path)

    def outlasts(self, num_rounds: int) -> bool:
        """Whether a start for so many rounds plays none, and is not the end of the run either."""
        return num_rounds < self.round or num_rounds == self.round < self.planned

    @property
    def has_learned(self) -> bool:
        """Whether it holds a model of a round that was paid and opened."""
        privacy = self.slot("privacy")
        return bool(set(privacy["rounds"].tolist()) - set(privacy["aborted"].tolist()))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what ``save`` wrote; a ``CheckpointError`` if it is missing, torn or altered."""
        try:
            file = ArrayFile.load(path)
        except ValueError as error:
            raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
        if file.format != _FORMAT:
            if file.format.startswith(_FORMATS):
                raise CheckpointError(
                    f"{path} was written by another version of bloomseal, whose settings have "
                    "other names: go on with that version, or begin a new run; what was paid stays "
                    "in the ledger"
                )
            raise CheckpointError(f"{path} is not a checkpoint of this strategy")
        if not file.is_whole:
            raise CheckpointError(f"{path} was altered after it was written; use another one")
        try:
            return cls._read(read_json(file.text), file.arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} holds no state of a run ({error}); use another checkpoint"
            ) from error

    @classmethod
    def _read(cls, state: Mapping[str, Any], arrays: Mapping[str, Vector]) -> "Checkpoint":
        records, digest = state["position"]
        rows = None
        if "rows" in state:
            instance, count, tag = state["rows"]
            rows = NoiseRows(
                text("rows.instance", instance),
                whole("rows.count", count, least=0),
                text("rows.tag", tag),
            )
        checkpoint = cls(
            run=text("run", state["run"]),
            round=whole("round", state["round"], least=0),
            noise_multiplier=number("noise_multiplier", state["noise_multiplier"], least=0),
            position=Position(whole("position", records, least=0), str(digest)),
            settings=text("settings", state["settings"]),
            arrays=arrays,
            rows=rows,
            planned=whole("planned", state.get("planned", 0), least=0),
        )
        if not checkpoint.slot("privacy").keys() >= {"rounds", "epsilon", "aborted"}:
            raise ValueError("it has no privacy slot")
        return checkpoint


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
        The average of the iterates, where one is kept, in single precision at least.
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

    def follow(self, unclipped_fraction: float | None) -> None:
        """Move the clipping norm for the next round, where it adapts."""
        if unclipped_fraction is not None and isinstance(self.clipping, AdaptiveClipping):
            self.clipping.follow(unclipped_fraction)

    def averaged(self, arrays: ArrayRecord) -> ArrayRecord:
        """The exponential average of the iterates, bias-corrected by starting at the first."""
        decay = getattr(self.optimizer, "iterate_average", 0.0)
        if not decay:
            return arrays
        schema = ModelSchema(arrays)
        if not self.average:
            self.average = [_wide(a) for a in schema.arrays]
        for average, a in zip(self.average, schema.arrays, strict=True):
            average += (1 - decay) * (a - average)
        return self._average_like(schema)

    def latest_average(self, arrays: ArrayRecord) -> ArrayRecord:
        """The average as it stands; the model itself where there is none."""
        return self._average_like(ModelSchema(arrays)) if self.average else arrays

    def _average_like(self, schema: ModelSchema) -> ArrayRecord:
        pairs = zip(self.average, schema.arrays, strict=True)
        return schema.record([average.astype(a.dtype) for average, a in pairs])

    def save(
        self,
        path: Path,
        number: int,
        arrays: ArrayRecord,
        *,
        position: Position,
        settings: str,
        planned: int,
        rows: NoiseRows | None = None,
    ) -> None:
        """Write a checkpoint of the state after one of the ``planned`` rounds, with its model."""
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
        checkpoint = Checkpoint(
            run=self.name,
            round=number,
            noise_multiplier=self.noise_multiplier,
            position=position,
            settings=settings,
            arrays=slots,
            rows=rows,
            planned=planned,
        )
        try:
            checkpoint.save(path)
        except OSError as error:
            outcome = (
                f"the one there is of an earlier round. Round {number} stands in the ledger"
                if number
                else "no round was begun, and nothing was spent"
            )
            raise OSError(
                error.errno, f"{error.strerror}: the checkpoint {path} cannot be written; {outcome}"
            ) from error

    def restore(self, checkpoint: Checkpoint, initial: ArrayRecord) -> ArrayRecord:
        """Continue from a checkpoint, and return its model, which has the shape of ``initial``.

        Raises
        ------
        CheckpointError
            If its model has another shape, or what goes with it is missing or does not fit it.
        """
        try:
            return self._restore(checkpoint, initial)
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint lacks a part of this run's state, or has another ({error})"
            ) from error

    def _restore(self, checkpoint: Checkpoint, initial: ArrayRecord) -> ArrayRecord:
        self.name, self.noise_multiplier = checkpoint.run, checkpoint.noise_multiplier
        self.optimizer.load_state_dict(checkpoint.slot("optimizer"))
        average = checkpoint.slot("average")
        self.average = [_wide(average[str(i)]) for i in range(len(average))]
        if isinstance(self.clipping, AdaptiveClipping):
            self.clipping.norm = float(checkpoint.slot("clipping")["norm"][0])
        privacy = checkpoint.slot("privacy")
        self.epsilon_by_round = dict(
            zip(privacy["rounds"].tolist(), privacy["epsilon"].tolist(), strict=True)
        )
        self.aborted = privacy["aborted"].tolist()
        model = checkpoint.slot("model")
        expected = {name: (tuple(a.shape), a.dtype) for name, a in initial.items()}
        shapes = {name: (a.shape, str(a.dtype)) for name, a in model.items()}
        if shapes != expected:
            names = sorted(n for n in shapes.keys() | expected if shapes.get(n) != expected.get(n))
            raise CheckpointError(f"the checkpoint is of another model; its arrays {names} differ")
        restored = ArrayRecord({name: Array(model[name]) for name in initial})
        averaged = [array.shape for array in ModelSchema(restored).arrays]
        if self.average and [array.shape for array in self.average] != averaged:
            raise CheckpointError("the checkpoint's average is of another model")
        return restored


def _wide(array: Vector) -> Vector:
    """A copy to add small steps to: half precision rounds a step of 1/1000 away."""
    return np.array(array, dtype=np.result_type(array, np.float32))


def settings_text(settings: Mapping[str, object]) -> str:
    """A run's settings as a checkpoint compares them: the same in another process."""
    return json.dumps({name: _shown(value) for name, value in settings.items()}, sort_keys=True)


def _shown(setting: object) -> object:
    if setting is None or isinstance(setting, int | float | str):
        return setting
    kind = type(setting).__qualname__
    if isinstance(setting, PublicMetrics):
        return kind
    if is_dataclass(setting):
        return repr(setting)
    # A class of the user's own: its public numbers and texts.
    plain = {
        name: value if isinstance(value, str | int) else float(value)
        for name, value in sorted(getattr(setting, "__dict__", {}).items())
        if not name.startswith("_") and isinstance(value, str | Real)
    }
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"
