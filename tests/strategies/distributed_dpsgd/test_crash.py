"""kill -9 in a step: server and silos go on, and both ledgers hold all that was released."""

import math
import signal
from pathlib import Path

import pytest
from flwr.app import ArrayRecord

from privacy.accounting import Budget, Repeated, read_ledger
from privacy.training import DataPolicy
from strategies import Checkpointing, InProcessGrid, ServerSGD
from strategies.accounted_strategy import AccountedStrategy
from strategies.checkpoint import Checkpoint
from tests.strategies.crash_run import ROUNDS, exit_code
from tests.strategies.distributed_dpsgd.silos import initial, policy, silo_app, strategy_of


def silos(folder: Path) -> tuple[AccountedStrategy, InProcessGrid, ArrayRecord]:
    """Four silos in the server's process, each with a ledger of its own on the disk."""

    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=folder / f"silo-{silo}.jsonl")

    strategy = strategy_of(
        folder,
        budget=Budget(math.inf, 1e-5),
        optimizer=ServerSGD(momentum=0.5),
        checkpointing=Checkpointing(folder / "checkpoint", resume=True),
    )
    return strategy, InProcessGrid(silo_app(kept), 4), initial()


@pytest.mark.parametrize("step", ["after the ledger", "after the rename"])
def test_killed_in_a_step_and_resumed(step: str, tmp_path: Path) -> None:
    assert exit_code(tmp_path, step, 2, silos) == -signal.SIGKILL
    before = read_ledger(tmp_path / "ledger.jsonl").records
    assert Checkpoint.load(tmp_path / "checkpoint").position.records <= len(before)
    assert exit_code(tmp_path, "none", 0, silos) == 0
    records = read_ledger(tmp_path / "ledger.jsonl").records
    assert records[: len(before)] == before
    played_twice = step == "after the ledger"
    assert len(records) == ROUNDS + played_twice
    assert len({record.run for record in records}) == 1
    for silo in range(4):
        own = read_ledger(tmp_path / f"silo-{silo}.jsonl")
        charged = sum(e.times if isinstance(e, Repeated) else 1 for e in own.events)
        assert charged >= len(records), "a silo took a step that it did not pay for"
