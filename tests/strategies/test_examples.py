"""Other projects' code that plugs the strategy in runs as it stands."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting import read_ledger
from strategies import run_in_process

EXAMPLES = Path(__file__).parents[2] / "examples"


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
