"""kill -9 at every step of a round: the run goes on, and ε is never below what was released."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash_run import ROUNDS

from privacy.accounting import read_ledger
from strategies import Checkpoint

STEPS = [
    "before the replies",
    "before the ledger",
    "after the ledger",
    "before the step",
    "after the step",
    "after the release",
    "before the checkpoint",
    "during the write",
    "before the rename",
    "after the rename",
    "after the checkpoint",
]
HERE = Path(__file__).parent


def run(folder: Path, step: str, number: int) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return subprocess.run(
        [sys.executable, str(HERE / "crash_run.py"), str(folder), step, str(number)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def state(folder: Path) -> tuple[float, int, int]:
    """ε by the ledger, how many rounds were paid, how many were released."""
    ledger = read_ledger(folder / "ledger.jsonl")
    released = folder / "released"
    shown = len(released.read_text().split()) if released.exists() else 0
    return ledger.epsilon(1e-5), len(ledger.records), shown


def play(folder: Path, step: str) -> None:
    """Killed in round 1, resumed, killed in round 2, resumed to the end."""
    last = 0.0
    for number in (1, 2):
        killed = run(folder, step, number)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        spent, paid, shown = state(folder)
        assert paid >= shown, "a release that nobody paid for"
        assert spent >= last
        last = spent
        kept = Checkpoint.load(folder / "checkpoint")  # whole, whatever happened
        assert kept.round in (number - 1, number)
        assert kept.position.records <= paid
    ended = run(folder, "none", 0)
    assert ended.returncode == 0, ended.stderr[-2000:]
    spent, paid, shown = state(folder)
    assert paid >= shown
    assert last <= spent <= 4.0, "the budget is the same"
    assert str(spent) in ended.stdout
    replayed = step in STEPS[2:9]  # paid, but not yet in a checkpoint
    records = read_ledger(folder / "ledger.jsonl").records
    assert [r.round for r in records[:2]] == ([1, 1] if replayed else [1, 2])
    assert ("budget" in ended.stdout) == replayed  # rounds paid twice are missing at the end
    assert len(records) == ROUNDS
    assert len({r.run for r in records}) == 1


@pytest.mark.parametrize("half", [0, 1])
def test_killed_at_every_step(half: int, tmp_path: Path) -> None:
    folders = {step: tmp_path / step.replace(" ", "-") for step in STEPS[half::2]}
    for folder in folders.values():
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(play, folder, step) for step, folder in folders.items()]:
            future.result()
