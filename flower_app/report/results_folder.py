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

from flower_app.counting import counted
from flower_app.errors import SettingError
from flower_app.models.specs import MODELS
from flower_app.settings import Settings
from privacy.files import replacement, write_durably

if TYPE_CHECKING:
    from flwr.app import ArrayRecord


_METRICS = "metrics.json"


@dataclass(frozen=True)
class ResultsFolder:
    """Where a run writes.

    Attributes
    ----------
    path : Path
        Absolute.
    """

    path: Path

    @classmethod
    def create(cls, settings: Settings, run_id: int) -> "ResultsFolder":
        """Make the folder of a new run.

        Raises
        ------
        SettingError
            If it cannot be made.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = results_root(settings) / f"{stamp}-{run_id % 2**32:08x}"
        try:
            path.mkdir()
        except OSError as error:
            raise _unusable(path.parent, f"{path} cannot be made: {error.strerror}") from error
        return cls(path)

    @property
    def operator_log(self) -> Path:
        """Where cohorts, node ids and reasons go: beside the folder, so that sharing it is safe."""
        folder = self.path.parent / "operator-logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self.path.name}.log"

    @property
    def ledger(self) -> Path:
        """The run's own ledger, where its population has no other."""
        return self.file("privacy-ledger.jsonl")

    @property
    def checkpoint(self) -> Path:
        """What a run that broke off goes on from."""
        return self.file("checkpoint.safetensors")

    @property
    def resumption(self) -> Path:
        """The run configuration, as a file for ``flwr run``, that goes on with this run."""
        return self.file("resume.toml")

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run, from any folder."""
        return f"python -m flower_app run {shlex.quote(f'resume={self.path}')}"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: ``metrics.json`` is the last that it writes."""
        return self.file(_METRICS).exists()

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all. Infinite and missing numbers become null."""
        write_durably(self.path / name, _json(document), mode=0o666)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, and so declare the run finished. All else must be there.

        All files get the time of the folder's first: later ones tell how long clients took.
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
        files = [path for path in self.path.iterdir() if path.is_file()]
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
    """The folder in which runs make theirs: ``results-dir`` or, by default, in the user's home.

    Never below the working directory of whatever daemon runs this.

    Raises
    ------
    SettingError
        If there is no such folder, and none can be made, or nothing can be written there.
    """
    root = Path(settings.results_dir or Path.home() / "bloomseal-results").expanduser()
    if not root.is_absolute():
        raise _unusable(
            Path(settings.results_dir),
            "it must be an absolute path, since the server does not run where you typed the "
            "command",
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(root, f"it cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise _unusable(root, "nothing can be written there")
    return root


def closing_lines(folder: Path) -> list[str]:
    """What a person is told of a finished run, :func:`where_to_look` last.

    Parameters
    ----------
    folder : Path
        The run's, with ``metrics.json`` and ``config.json``.
    """
    metrics = json.loads((folder / _METRICS).read_text())
    allowed = json.loads((folder / "config.json").read_text())["epsilon"]
    client_level, encrypted = metrics["privacy"]["client_level"], metrics["encrypted"]
    spent = client_level["epsilon"]
    lines = [
        f"Test accuracy {100 * metrics['accuracy']['test']:.2f} %",
        "ε = ∞: this run is not private"
        if spent is None
        else f"ε = {spent:.4f} of {allowed:g} at δ = {client_level['delta']:g}, client-level",
    ]
    if encrypted is not None:
        lines.append(
            f"Encrypted inference: {counted(encrypted['images'], 'image')}, "
            f"{100 * encrypted['accuracy']:.2f} % right, "
            f"{100 * encrypted['agreement']:.2f} % as in the clear, "
            f"{encrypted['ms_per_image']:.1f} ms an image, {encrypted['security_bits']} bits"
        )
    return [*lines, f"Results: {folder}", where_to_look(folder)]


def where_to_look(folder: Path) -> str:
    """The line that points a person at a run's report."""
    return f"Open {folder / 'report.html'}"


def trained_model(results: Path) -> tuple[str, Path]:
    """The name and the weights of the model in a results folder.

    Raises
    ------
    SettingError
        If the folder is not one of a finished run.
    """
    weights = results / "model.safetensors"
    unfinished = ResultsFolder(results.resolve())
    if unfinished.checkpoint.exists() and not unfinished.finished:
        raise SettingError(
            f"{results} is the folder of a run that has not finished; if it broke off, go on with "
            f"`{unfinished.resume_command}`"
        )
    try:
        name = json.loads((results / "config.json").read_text())["model"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingError(
            f"{results} is not the folder of a run (config.json cannot be read); train one with "
            "`python -m flower_app run` and give results/latest"
        ) from error
    if name not in MODELS or not weights.is_file():
        raise SettingError(f"{results} holds no model of this app; give a finished run's folder")
    return name, weights


def _unusable(root: Path, why: str) -> SettingError:
    return SettingError(f"results-dir = {str(root)!r} is wrong; {why}")


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
