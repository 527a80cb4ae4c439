"""A run's folder as an RO-Crate, read back by the reader of its makers."""

import json
import shutil
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from flower_app.__main__ import main
from tests.flower_app.app_runs import Run


@pytest.fixture
def folder(small_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run.folder, tmp_path / "run"))


def test_an_exported_run_says_what_each_file_is_and_what_was_guaranteed(
    folder: Path, small_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["about"] = {"controller": "A clinic", "contact": "dpo@clinic.example", "purpose": "why"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert main(["export", str(folder)]) == 0
    assert main(["export", str(folder)]) == 0  # again, over the first
    assert "ro-crate-metadata.json" in capsys.readouterr().out
    crate = ROCrate(folder)
    assert {part.id for part in crate.data_entities} == files
    (run,) = crate.get_by_type("CreateAction")
    assert {part.id for part in run["result"]} == files
    assert run["agent"]["name"] == "A clinic"
    assert run["instrument"]["softwareVersion"] == metrics["software"]["version"]
    figures = {each["name"]: each["value"] for each in crate.root_dataset["variableMeasured"]}
    level = small_run.metrics["privacy"]["client_level"]
    assert figures["epsilon"] == level["epsilon"]
    assert figures["delta"] == level["delta"]
    assert figures["test accuracy"] == small_run.metrics["accuracy"]["test"]
    assert crate.get("model.safetensors")["description"] == "The finished model"
    assert "not private" in crate.get("holdings.png")["description"]


def test_an_unfinished_run_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path)]) == 1
    assert "is not the folder of a finished run" in capsys.readouterr().err
