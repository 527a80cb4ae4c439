"""The outcome of a run, for the command that started it.

Flower's log stream lags behind a run, and may break off. A file holds what must not be lost: where
the results are, or why there are none.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from privacy.files import write_durably
from privacy.json_text import read_json

FOLDER_VARIABLE = "BLOOMSEAL_OUTCOMES"
"""The environment variable that names the folder; a SuperLink of ours hands it on to its runs."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: its results folder, if there is one, and why it failed, if it did.

    An error before training had ``begun`` would recur in a resumed run.
    """

    state: Literal["running", "finished", "failed"] = "running"
    folder: str = ""
    begun: bool = False
    reason: str = ""


class OutcomeFile:
    """A run's outcome so far, in a file if ``FOLDER_VARIABLE`` names a folder."""

    def __init__(self, run_id: int) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self._path = _file(Path(folder), run_id) if folder else None
        self.outcome = Outcome()

    def tell(self, **changes: object) -> None:
        """Update the outcome."""
        self.outcome = replace(self.outcome, **changes)  # type: ignore[arg-type]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, json.dumps(asdict(self.outcome)).encode(), mode=0o666)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Record how the block ends."""
        try:
            yield
        except BaseException as error:
            self.tell(state="failed", reason=_sentence(error))
            raise
        self.tell(state="finished")


def read_outcome(folder: Path, run_id: int) -> Outcome | None:
    """The outcome in a run's file; None if there is none."""
    try:
        return Outcome(**read_json(_file(folder, run_id).read_text()))
    except OSError:
        return None


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _file(folder: Path, run_id: int) -> Path:
    return folder / f"{run_id}.json"
