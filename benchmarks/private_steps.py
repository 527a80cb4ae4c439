"""Clipped, noised steps of an MLP: ours beside jax_privacy's and Opake's own.

Each in a process of its own, on one thread; the turns alternate, and count seconds of the
processor. Both peers clip as many examples at once as is fastest for them here, and jax_privacy's
step is compiled. Their noise is floating-point's, ours exact.
"""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks._peers.environments import JAX_PRIVACY, OPAKE, NotMeasuredError, Peer, interpreter
from benchmarks.harness import Log, Row, Spread
from privacy.training import ClientLedger, ClipAndNoise, FullBatch, PublicCount, train

WIDTHS, EXAMPLES, STEPS = (784, 256, 128, 10), 64, 5
PEERS = ((JAX_PRIVACY, "jax_steps"), (OPAKE, "opake_steps"))
Seconds = Callable[[], float]


def run(*, quick: bool, log: Log) -> list[Row]:
    """Alternate ours and each peer that can be installed."""
    torch.set_num_threads(1)
    rows = []
    case = f"MLP {'-'.join(map(str, WIDTHS))}, {EXAMPLES} examples, z = 1"
    for peer, module in PEERS:
        try:
            turns = _turns(peer, module, quick=quick, log=log)
        except NotMeasuredError as reason:
            log(f"{peer.title} is not measured: {reason}")
            continue
        ours, theirs = (
            Spread.of([1e3 * t / STEPS for t in times]) for times in zip(*turns, strict=True)
        )
        log(f"{case}: ours {ours.median:.3g} ms, {peer.title} {theirs.median:.3g}")
        rows.append(Row(case, "step", "CPU ms", ours, theirs, peer.title))
    return rows


def _turns(peer: Peer, module: str, *, quick: bool, log: Log) -> list[tuple[float, float]]:
    with ExitStack() as stack:
        theirs, ours = _theirs(peer, module, stack, make=not quick, log=log), _ours()
        theirs(), ours()
        return [(ours(), theirs()) for _ in range(3 if quick else 11)]


def _ours() -> Seconds:
    layers: list[nn.Module] = []
    for size, following in pairwise(WIDTHS):
        layers += [nn.Linear(size, following), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    data = torch.rand(EXAMPLES, WIDTHS[0]), torch.randint(0, WIDTHS[-1], (EXAMPLES,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    ledger = ClientLedger(dataset="benchmark")
    protection = ClipAndNoise(
        clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=PublicCount()
    )

    def seconds() -> float:
        started = time.process_time()
        train(
            model,
            data,
            loss=cross_entropy,
            optimizer=optimizer,
            protection=protection,
            batches=FullBatch(steps=STEPS),
            ledger=ledger,
        )
        return time.process_time() - started

    return seconds


def _theirs(peer: Peer, module: str, stack: ExitStack, *, make: bool, log: Log) -> Seconds:
    """A process of the peer's, which does its steps whenever it is asked."""
    python = interpreter(peer, make=make, log=log)
    widths = "-".join(map(str, WIDTHS))
    process = stack.enter_context(
        subprocess.Popen(
            [str(python), "-m", f"benchmarks._peers.{module}", widths, str(EXAMPLES), str(STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
        )
    )
    stack.callback(process.kill)
    asked, answers = process.stdin, process.stdout
    if asked is None or answers is None:
        raise RuntimeError("the process has no pipes")

    def seconds() -> float:
        asked.write("\n")
        asked.flush()
        line = answers.readline()
        if not line:
            raise NotMeasuredError("its program ended")
        return float(line)

    return seconds
