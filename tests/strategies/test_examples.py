"""Other projects' code that plugs the strategy in runs as it stands."""

import importlib
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.accounting import read_ledger
from strategies import run_in_process

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run an example's app from its folder in this process, away from its files."""
    loaded: list[str] = []

    def run(folder: Path, nodes: int, **config: Any) -> None:
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        app = project["tool"]["flwr"]["app"]
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        parts = []
        for component in ("serverapp", "clientapp"):
            module, _, name = app["components"][component].partition(":")
            loaded.append(module.partition(".")[0])
            parts.append(getattr(importlib.import_module(module), name))
        run_in_process(*parts, num_nodes=nodes, run_config=app["config"] | config)

    yield run
    for name in [n for n in sys.modules if n.partition(".")[0] in loaded]:
        del sys.modules[name]


def test_scikit_learn(play: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty rounds, ε = 8: far better than guessing (63 % of the patients are of one kind)."""
    pytest.importorskip("sklearn")
    play(EXAMPLES / "sklearn_breast_cancer", 100)
    told = capsys.readouterr().out
    assert float(told.split("accuracy ")[1].split()[0]) > 0.75
    ledger = read_ledger(tmp_path / "cancer-ledger.jsonl")
    assert len(ledger.records) == 30
    assert 7.9 < ledger.epsilon(1e-3) <= 8.0


def test_numpy(
    play: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """ε = 3: of 1,000 households nearly all days are told; ten are warned (60 % is guessing)."""
    folder = EXAMPLES / "numpy_from_fedavg"
    added = [
        line for line in (folder / "README.md").read_text().splitlines() if line.startswith("+")
    ]
    assert len(added) <= 10
    server = (folder / "meters" / "server_app.py").read_text()
    assert all(line.removeprefix("+") in server for line in added)
    logging.getLogger("flwr").addHandler(caplog.handler)
    play(folder, 1000)
    assert float(capsys.readouterr().out.split("accuracy ")[1]) > 0.85
    assert "drowns" not in caplog.text
    assert 2.9 < read_ledger(tmp_path / "meters-ledger.jsonl").epsilon(1e-5) <= 3.0
    play(folder, 10, ledger=str(tmp_path / "few.jsonl"))
    assert "The noise drowns what the clients teach" in caplog.text


def test_pytorch_before_and_after(
    play: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The diff of a few lines leads from the FedAvg project to ours, and ours is private."""
    folder = EXAMPLES / "pytorch_from_fedavg"
    diff = (folder / "fedavg-to-dpfedavg.diff").read_text()
    changed = [line for line in diff.splitlines()[2:] if line[0] in "+-"]
    assert len(changed) <= 12

    play(folder, 50)
    told = capsys.readouterr().out
    assert "round 10: accuracy" in told
    assert read_ledger(tmp_path / "digits-ledger.jsonl").epsilon(1e-3) <= 8.0

    before = tmp_path / "before"
    (before / "digits").mkdir(parents=True)
    for name in ("digits/__init__.py", "digits/task.py", "digits/client_app.py"):
        (before / name).write_text((folder / name).read_text())
    (before / "pyproject.toml").write_text((folder / "pyproject.toml").read_text())
    server = before / "digits/server_app.py"
    server.write_text((folder / "digits/server_app.py").read_text())
    subprocess.run(["patch", "-p1", "-R", "-s"], input=diff.encode(), cwd=before, check=True)
    assert "DPFedAvg" not in server.read_text()
    for name in [n for n in sys.modules if n.partition(".")[0] == "digits"]:
        del sys.modules[name]
    play(before, 20)
    assert "round 10: accuracy" in capsys.readouterr().out


def test_hospitals(play: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From CSV files to encrypted answers: few steps, at an ε at which they teach something."""
    folder = EXAMPLES / "hospitals_tabular"
    tables, results = tmp_path / "tables", tmp_path / "results"
    settings = {"steps": 8, "learning-rate": 0.2, "tables": str(tables), "results": str(results)}

    def run(module: str, *arguments: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        done = subprocess.run(
            [sys.executable, "-m", f"hospitals.{module}", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "site-6: 3,571 rows of 1,090 persons" in run("tables", tables)
    play(folder, 6, **settings)
    told = capsys.readouterr().out
    # Of 4,689 persons for training; the noise of a mean is a hundredth of its range here.
    ages = told.split("xage     mean")[1].split()
    assert 20 < float(ages[0]) < 31
    assert "'accuracy':" in told
    assert "step 8 of 8: ε = 3.00" in told
    assert _area_under_curve(results, tables) > 0.66  # 0.72 without privacy, 0.5 by guessing
    for ledger in [results / "ledger.jsonl", *tables.glob("site-*/ledger.jsonl")]:
        assert 2.9 < read_ledger(ledger).epsilon(1e-5) <= 3.0
    answers = run("ask", results, tables).splitlines()
    assert len(answers) == 10
    assert all(line.endswith(("no visit", "visits a doctor")) for line in answers)


def _area_under_curve(results: Path, tables: Path) -> float:
    """Of the model on the patients that are kept for testing."""
    from sklearn.metrics import roc_auc_score

    ask, task = (importlib.import_module(f"hospitals.{name}") for name in ("ask", "task"))
    model = ask.Scaled(results)
    files = sorted(tables.glob("site-*/visits.csv"))
    parts = [task.load(path, test=True) for path in files]
    inputs = torch.tensor(np.concatenate([part.features for part in parts]), dtype=torch.float32)
    inputs = torch.where(inputs.isnan(), model.means, inputs)
    with torch.no_grad():
        outputs = model(inputs)
    labels = np.concatenate([part.labels for part in parts])
    return float(roc_auc_score(labels, outputs[:, 1] - outputs[:, 0]))
