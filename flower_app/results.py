"""The results folder of a run: one folder each, and ``latest`` points at the newest."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from safetensors.torch import save_file

from flower_app.model_specs import MODELS
from flower_app.settings import SettingError, Settings


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
        """Make the folder, below ``results-dir`` or, by default, the user's home.

        Never below the working directory of whatever daemon runs this.

        Raises
        ------
        SettingError
            If it cannot be made.
        """
        root = Path(settings.results_dir or Path.home() / "bloomseal-results").expanduser()
        if not root.is_absolute():
            raise SettingError(
                f"results-dir = {settings.results_dir!r} is wrong; it must be an absolute path, "
                "since the server does not run where you typed the command"
            )
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = root / f"{stamp}-{run_id % 2**32:08x}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise SettingError(
                f"results-dir = {str(root)!r} is wrong; {path} cannot be made: {error.strerror}"
            ) from error
        return cls(path)

    @property
    def operator_log(self) -> Path:
        """Where cohorts, node ids and reasons go: beside the folder, so that sharing it is safe."""
        folder = self.path.parent / "operator-logs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{self.path.name}.log"

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all. Infinite and missing numbers become null."""
        text = json.dumps(_finite(document), indent=2, ensure_ascii=False) + "\n"
        temporary = self.path / f".{name}"
        temporary.write_text(text)
        temporary.replace(self.path / name)

    def write_model(self, arrays: ArrayRecord) -> None:
        """Write the model as safetensors."""
        tensors = {name: t.contiguous() for name, t in arrays.to_torch_state_dict().items()}
        save_file(tensors, self.path / "model.safetensors")

    def become_latest(self) -> None:
        """Point ``latest`` at this folder."""
        link = self.path.parent / "latest"
        temporary = self.path.parent / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.path.name)
        temporary.replace(link)


def trained_model(results: Path) -> tuple[str, Path]:
    """The name and the weights of the model in a results folder.

    Raises
    ------
    SettingError
        If the folder is not one of a finished run.
    """
    weights = results / "model.safetensors"
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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
