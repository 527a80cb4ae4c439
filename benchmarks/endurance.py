"""Encrypted inference ten thousand times over: memory, and messages that were tampered with."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import Log, Row, Spread
from privacy.inference import DataOwner, Evaluator, Square, compile_model
from privacy.inference.errors import MessageError

_WARM_UP = 20
"""The first calls load kernels and fill pools of memory, which later ones use again."""


def run(*, quick: bool, log: Log) -> list[Row]:
    """Encrypt in one client, cycle keys in one service, and mutate messages."""
    times = 300 if quick else 10_000
    torch.manual_seed(0)
    # Rotations, relinearisation and rescaling all happen, in the smallest ring that has them.
    model = nn.Sequential(nn.Linear(64, 32), Square(), nn.Linear(32, 10))
    compiled = compile_model(model, input_shape=(64,), input_range=(-1.0, 1.0), tolerance=0.5)
    log(f"{compiled.plan}")
    x = np.random.default_rng(0).uniform(-1, 1, 64)
    owner = DataOwner(compiled.plan)
    material = owner.public_material()

    def cycle() -> None:
        # Keys are loaded, used once and dropped, as in a service with many owners.
        owner.decrypt(Evaluator(compiled, material).evaluate(owner.encrypt(x)))

    rows = []
    for name, action in (("encryptions", lambda: owner.encrypt(x)), ("full cycles", cycle)):
        warming, growth = _growth(action, times)
        log(
            f"{times} {name}: {growth / 1e6:.1f} MB, {warming / 1e6:.1f} MB in the first {_WARM_UP}"
        )
        rows.append(Row(name, f"growth over {times}", "bytes", Spread.of([growth])))
        rows.append(Row(name, f"growth in the first {_WARM_UP}", "bytes", Spread.of([warming])))
    accepted = _accepted_mutants(owner, Evaluator(compiled, material), x, mutants=times)
    rows.append(Row("mutated messages", f"accepted of {times}", "", Spread.of([float(accepted)])))
    return rows


def _growth(action: Callable[[], object], times: int) -> tuple[float, float]:
    """Growth of resident memory in the first calls, and in all of them together."""
    before = _resident_bytes()
    for _ in range(_WARM_UP):
        action()
    warm = _resident_bytes()
    for _ in range(times - _WARM_UP):
        action()
    return warm - before, _resident_bytes() - before


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def _accepted_mutants(
    owner: DataOwner, evaluator: Evaluator, x: NDArray[np.float64], *, mutants: int
) -> int:
    generator = np.random.default_rng(0)
    messages: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (owner.encrypt(x), evaluator.evaluate),
        (evaluator.evaluate(owner.encrypt(x)), owner.decrypt),
    ]
    accepted = 0
    for index in range(mutants):
        message, receive = messages[index % len(messages)]
        mutant = bytearray(message)
        kind = index % 3
        if kind == 0:
            # Headers are where the meaning is; half of the flips go there.
            end = (len(mutant), 70)[index // 3 % 2]
            mutant[generator.integers(end)] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del mutant[generator.integers(len(mutant)) :]
        else:
            start = int(generator.integers(len(mutant) - 8))
            mutant[start : start + 8] = generator.bytes(8)
        try:
            receive(bytes(mutant))
        except MessageError:
            continue
        accepted += bytes(mutant) != message
    return accepted
