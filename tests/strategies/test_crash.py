"""kill -9 at every step of a round: the run goes on, and ε is never below what was released."""

import signal
from pathlib import Path

import pytest

from privacy.accounting import read_ledger
from strategies.checkpoint import Checkpoint
from tests.strategies.crash_run import ROUNDS, exit_code

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


def state(folder: Path) -> tuple[float, int, int]:
    """ε by the ledger, how many rounds were paid, how many were released."""
    ledger = read_ledger(folder / "ledger.jsonl")
    released = folder / "released"
    shown = len(released.read_text().split()) if released.exists() else 0
    return ledger.epsilon(1e-5), len(ledger.records), shown


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_and_resumed(step: str, tmp_path: Path) -> None:
    """Killed in round 1, resumed, killed in round 2, resumed to the end."""
    folder, last = tmp_path, 0.0
    for number in (1, 2):
        assert exit_code(folder, step, number) == -signal.SIGKILL
        spent, paid, shown = state(folder)
        assert paid >= shown, "a release that nobody paid for"
        assert spent >= last
        last = spent
        kept = Checkpoint.load(folder / "checkpoint")  # whole, whatever happened
        assert kept.round in (number - 1, number)
        assert kept.position.records <= paid
    assert exit_code(folder, "none", 0) == 0
    ended = (folder / "ended").read_text()
    spent, paid, shown = state(folder)
    assert paid >= shown
    assert last <= spent <= 4.0, "the budget is the same"
    assert str(spent) in ended
    replayed = step in STEPS[2:9]  # paid, but not yet in a checkpoint
    records = read_ledger(folder / "ledger.jsonl").records
    assert [r.round for r in records[:2]] == ([1, 1] if replayed else [1, 2])
    assert ("budget" in ended) == replayed  # rounds paid twice are missing at the end
    assert len(records) == ROUNDS
    assert len({r.run for r in records}) == 1
