"""What a run needs to go on after its process was killed: released values only."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from privacy.accounting import Position
from privacy.files import write_durably
from strategies import _arguments

Vector = npt.NDArray[Any]

_FORMAT = "bloomseal-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that is missing, torn, altered, or of another run."""


@dataclass(frozen=True)
class Checkpointing:
    """Where a run keeps its state after each round, and from where it goes on.

    Parameters
    ----------
    path : path-like, optional
        The file that holds the last round's released state. Absolute, or beginning with ``~``.
        Default: nothing is kept.
    resume : path-like, optional
        A checkpoint to go on from, usually the same file. The interrupted round is played again,
        with fresh randomness, and paid again. Under secure aggregation against a malicious
        server, clients that had endorsed its sum decline it with others than those
        (``docs/secure-aggregation.md``).

    Raises
    ------
    TypeError
        If one is no path.
    ValueError
        If one is relative, or inside an app as Flower unpacks it.
    """

    path: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("path", "resume"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _arguments.file_path(f"checkpointing.{name}", value))


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
        Where the ledger stood.
    settings : str
        What the run's privacy settings were, as JSON; a resumed run must have the same.
    arrays : mapping of str to ndarray
        Everything numeric, by slot: ``model/…``, ``optimizer/…``, ``average/…``, ``clipping/…``.
    """

    run: str
    round: int
    noise_multiplier: float
    position: Position
    settings: str
    arrays: Mapping[str, Vector]

    def slot(self, name: str) -> dict[str, Vector]:
        """The arrays of one slot, by their names within it."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def save(self, path: Path) -> None:
        """Write to ``path``, whole and durable, or not at all."""
        arrays = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        state = json.dumps(
            {
                "run": self.run,
                "round": self.round,
                "noise_multiplier": self.noise_multiplier,
                "position": [self.position.records, self.position.digest],
                "settings": self.settings,
            }
        )
        metadata = {"format": _FORMAT, "state": state, "digest": _digest(state, arrays)}
        write_durably(path, save(arrays, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what ``save`` wrote.

        Raises
        ------
        CheckpointError
            If there is no such file, or it is torn or altered.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint of this strategy")
        if metadata.get("digest") != _digest(metadata.get("state", ""), arrays):
            raise CheckpointError(f"{path} was altered after it was written; use another one")
        state = json.loads(metadata["state"])
        return cls(
            run=state["run"],
            round=state["round"],
            noise_multiplier=state["noise_multiplier"],
            position=Position(*state["position"]),
            settings=state["settings"],
            arrays=arrays,
        )

    def check_settings(self, settings: str, path: Path) -> None:
        """Refuse a run whose settings are not the checkpoint's.

        Raises
        ------
        CheckpointError
            Naming each setting that differs.
        """
        before, now = json.loads(self.settings), json.loads(settings)
        if before == now:
            return
        names = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        changes = ", ".join(f"{name}: {before.get(name)} → {now.get(name)}" for name in names)
        raise CheckpointError(f"{path} belongs to a run with other settings ({changes})")


def _digest(state: str, arrays: Mapping[str, Vector]) -> str:
    digest = hashlib.sha256(f"{state}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
