"""The results folder of a run: one folder each, and ``latest`` points at the newest."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import WARNING
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_app.errors import SettingError, counted, wrong
from flower_app.models.specs import MODELS
from flower_app.report.classes import commonest_class
from flower_app.report.task_metrics import protected_unit
from flower_app.settings import Settings
from flower_app.tasks import Task, read_task
from privacy.files import replacement, write_durably
from privacy.json_text import read_json

if TYPE_CHECKING:
    from flwr.app import ArrayRecord


NOT_ABSOLUTE = (
    "it must be an absolute path, since the server does not run where you typed the command"
)
_METRICS = "metrics.json"
TASK_FILE = "task.toml"
"""In the results of a run on a task of the user's: a copy of its file."""


@dataclass(frozen=True)
class ResultsFolder:
    """Where a run writes, as an absolute path."""

    path: Path

    @classmethod
    def create(cls, settings: Settings, run_id: int) -> "ResultsFolder":
        """Make the folder of a new run; ``SettingError`` if it cannot be made."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = results_root(settings) / f"{stamp}-{run_id % 2**32:08x}"
        try:
            path.mkdir()
        except OSError as error:
            raise _unusable(path.parent, f"{path} cannot be made: {error.strerror}") from error
        return cls(path)

    @property
    def operator_log(self) -> Path:
        """The log of cohorts, node ids and reasons: beside the folder, which may be shared."""
        folder = self.path.parent / "operator-logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self.path.name}.log"

    @property
    def ledger(self) -> Path:
        """The run's own ledger, where ``ledger`` is not set."""
        return self.file("privacy-ledger.jsonl")

    @property
    def checkpoint(self) -> Path:
        """The state after the last round."""
        return self.file("checkpoint.safetensors")

    @property
    def resumption(self) -> Path:
        """The configuration with which ``flwr run`` goes on with this run."""
        return self.file("resume.toml")

    @property
    def resume_command(self) -> str:
        """The command that goes on with the run, from any folder."""
        return f"python -m flower_app run {shlex.quote(f'resume={self.path}')}"

    @property
    def finished(self) -> bool:
        """Whether the run has finished: ``metrics.json`` is written last."""
        return self.file(_METRICS).exists()

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all. Infinite and missing numbers become null."""
        write_durably(self.path / name, _json(document), mode=0o666)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, last. All files get the time of the folder's first.

        Later times would show how long clients took.
        """
        with replacement(self.file(_METRICS), mode=0o666) as file:
            file.write(_json(metrics))
            file.flush()
            self._level_times()

    def write_model(self, arrays: "ArrayRecord") -> None:
        """Write the model as safetensors."""
        from safetensors.torch import save_file  # brings PyTorch, which commands do without

        tensors = {name: t.contiguous() for name, t in arrays.to_torch_state_dict().items()}
        save_file(tensors, self.path / "model.safetensors")

    def _level_times(self) -> None:
        files = [path for path in self.path.rglob("*") if path.is_file()]
        first = min((path.stat().st_mtime_ns for path in files), default=0)
        for path in files:
            os.utime(path, ns=(first, first))

    def become_latest(self) -> None:
        """Point ``latest`` at this folder; a warning where something else has that name."""
        from flwr.supercore import log  # commands do without Flower

        link = self.path.parent / "latest"
        temporary = self.path.parent / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.path.name)
        try:
            temporary.replace(link)
        except OSError as error:
            temporary.unlink()
            log(WARNING, "%s cannot point at this run: %s", link, error)


def results_root(settings: Settings) -> Path:
    """The folder of all runs: ``results-dir``, or by default one in the user's home.

    Never below the working directory, which is some daemon's.

    Raises
    ------
    SettingError
        If it cannot be made, or nothing can be written there.
    """
    root = Path(settings.results_dir or Path.home() / "bloomseal-results").expanduser()
    if not root.is_absolute():
        raise _unusable(
            Path(settings.results_dir),
            NOT_ABSOLUTE,
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(root, f"it cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise _unusable(root, "nothing can be written there")
    return root


def closing_lines(folder: Path) -> list[str]:
    """The summary of a finished run, from its files; :func:`where_to_look` is last."""
    metrics = read_json((folder / _METRICS).read_text())
    allowed = read_json((folder / "config.json").read_text())["epsilon"]
    privacy, encrypted = metrics["privacy"], metrics["encrypted"]
    has_silos = "client_level" not in privacy
    unit = protected_unit(metrics["task"], has_silos=has_silos)
    level = privacy["record_level" if has_silos else "client_level"]
    spent = level["epsilon"]
    things = metrics["task"]["things"] if metrics["task"] else ("image", "images")
    one = f"{'an' if things[0] == 'image' else 'a'} {things[0]}"
    lines = [
        f"Test accuracy {100 * metrics['accuracy']['test']:.2f} %" + _beside_chance(metrics),
        "ε = ∞: this run is not private"
        if spent is None
        else f"ε = {spent:.4f} of {allowed:g} at δ = {level['delta']:g}, {unit}-level",
    ]
    if encrypted is not None:
        shared = encrypted.get("backend") == "shared"
        lines.append(
            f"{'Inference in shares' if shared else 'Encrypted inference'}: "
            f"{counted(encrypted['images'], *things)}, "
            f"{100 * encrypted['accuracy']:.2f} % right, "
            f"{100 * encrypted['agreement']:.2f} % as in the clear, "
            f"{encrypted['ms_per_image']:.1f} ms {one}, "
            + ("two workers" if shared else f"{encrypted['security_bits']} bits")
        )
    if metrics.get("encrypted_failure"):
        lines.append(
            "Encrypted inference was not tested: the questions failed "
            f"({metrics['encrypted_failure']}; the reason is in the log)"
        )
    return [*lines, f"Results: {folder}", where_to_look(folder)]


def _beside_chance(metrics: dict[str, Any]) -> str:
    """What an accuracy on a user's own data is to be compared with; data of the app are even."""
    matrix = metrics["accuracy"].get("confusion")
    if not (metrics["task"] and matrix):
        return ""
    share = 100 * commonest_class(matrix)
    return f", and {share:.2f} % by always answering the commonest class"


def where_to_look(folder: Path) -> str:
    """The line that names a run's report."""
    return f"Open {folder / 'report.html'}"


def trained_model(results: Path) -> tuple[str, Path]:
    """The model's name and its weights; ``SettingError`` if the run has not finished."""
    weights = results / "model.safetensors"
    unfinished = ResultsFolder(results.resolve())
    if unfinished.checkpoint.exists() and not unfinished.finished:
        raise SettingError(
            f"{results} is the folder of a run that has not finished; if it broke off, go on with "
            f"`{unfinished.resume_command}`"
        )
    try:
        name = read_json((results / "config.json").read_text())["model"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingError(
            f"{results} is not the folder of a run (config.json cannot be read); train one with "
            "`python -m flower_app run` and give results/latest"
        ) from error
    known = isinstance(name, str) and (name in MODELS or results.joinpath(TASK_FILE).is_file())
    if not known or not weights.is_file():
        raise SettingError(f"{results} holds no model of this app; give a finished run's folder")
    return name, weights


def task_beside(weights: Path) -> Task | None:
    """The task whose model the weights in a results folder are; None for a model of the app's.

    Raises
    ------
    SettingError
        If the folder's files are not those of one run.
    """
    file = weights.with_name(TASK_FILE)
    if not file.is_file():
        return None
    try:
        recorded = read_json(weights.with_name("config.json").read_text())["task"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingError(
            f"{file.parent} holds a task.toml and no config.json that names it; keep the files of "
            "a run together"
        ) from error
    return read_task(file, home=Path(recorded).parent)


def _unusable(root: Path, why: str) -> SettingError:
    return wrong("results-dir", str(root), why)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(_finite(document), indent=2, ensure_ascii=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
