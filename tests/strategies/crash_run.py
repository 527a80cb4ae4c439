"""A run, for a process of its own, that kills itself at a given step of a given round."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from privacy.accounting import Full, Ledger
from strategies import Budget, Checkpointing, DPFedAvg, InProcessGrid, ServerSGD
from strategies.accounted_strategy import AccountedStrategy
from strategies.checkpoint import Checkpoint
from tests.strategies.federation import grid_of, model

ROUNDS = 4

PROCESSES = multiprocessing.get_context("forkserver")
# One server forks all processes of these tests, so it has loaded what any of them needs.
PROCESSES.set_forkserver_preload(
    [
        __name__,
        "tests.strategies.distributed_dpsgd.silos",
        "dp_accounting.pld.privacy_loss_distribution",
    ]
)


def exit_code(*arguments: Any) -> int:
    """Of :func:`run` in a process of its own; negative for the signal that killed it."""
    process = PROCESSES.Process(target=run, args=arguments)
    process.start()
    process.join(timeout=600)
    assert process.exitcode is not None, f"{arguments}: still running"
    return process.exitcode


def fedavg(folder: Path) -> tuple[AccountedStrategy, InProcessGrid, ArrayRecord]:
    """DPFedAvg with four clients."""
    strategy = DPFedAvg(
        population=4,
        sampling=Full(),
        clipping=1.0,
        budget=Budget(epsilon=4.0, delta=1e-5),
        optimizer=ServerSGD(momentum=0.5),
        ledger=folder / "ledger.jsonl",
        checkpointing=Checkpointing(folder / "checkpoint", resume=True),
    )
    return strategy, grid_of(4), model((50,))


def run(
    folder: Path,
    step: str,
    fatal: int,
    make: Callable[[Path], tuple[AccountedStrategy, InProcessGrid, ArrayRecord]] = fedavg,
) -> None:
    """Run what is made, and die where told; with the step ``none`` run to the end.

    Goes on from the checkpoint where there is one. Appends whatever it releases to
    ``released``, and writes how it ended to ``ended``.
    """
    path = folder / "checkpoint"
    strategy, grid, initial = make(folder)
    now = [0]

    def at(name: str) -> None:
        if (step, fatal) == (name, now[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: str, after: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kw: Any) -> Any:
            at(before)
            result = inner(*args, **kw)
            at(after)
            return result

        setattr(owner, name, outer)

    def release(server_round: int, replies: Any) -> Any:
        now[0] = server_round
        at("before the replies")
        arrays, metrics = aggregate(server_round, replies)
        with (folder / "released").open("a") as file:
            file.write(f"{server_round}\n")
            file.flush()
            os.fsync(file.fileno())
        at("after the release")
        return arrays, metrics

    aggregate = strategy.aggregate_train
    strategy.aggregate_train = release  # type: ignore[method-assign]
    around(Ledger, "append", "before the ledger", "after the ledger")
    around(strategy.optimizer, "step", "before the step", "after the step")
    around(Checkpoint, "save", "before the checkpoint", "after the checkpoint")

    replace = Path.replace

    def renaming(self: Path, target: Any) -> Path:
        if Path(target) == path:
            at("before the rename")
            # Half a file where the whole one is being made: what a lost page would leave.
            if step == "during the write" and now[0] == fatal:
                self.write_bytes(self.read_bytes()[: self.stat().st_size // 2])
                at("during the write")
        moved = replace(self, target)
        if Path(target) == path:
            at("after the rename")
        return moved

    Path.replace = renaming  # type: ignore[method-assign,assignment]
    result = strategy.start(grid, initial, num_rounds=ROUNDS)
    report = result.privacy
    assert report is not None
    (folder / "ended").write_text(f"{report.epsilon} {report.rounds} {report.stopped}")
