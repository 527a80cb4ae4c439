"""Ten thousand questions in shares over mutual TLS to two workers' processes: memory, material."""

import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Log, Row, Spread
from flower_app.shared.folders import PartyFolder
from flower_app.shared.model import write_shares
from flower_app.shared.session import begin_session, deal, started_worker
from privacy.shared_inference import DataOwner, RemoteWorkers, compile_model

_WARM_UP = 100
"""The first questions load kernels and fill pools of memory, which later ones use again."""
PARTIES = ("alice", "bob", "data owner", "provider")


def run(*, quick: bool, log: Log) -> list[Row]:
    """Deal, ask, and look at every party's memory after a warm-up and at the end."""
    questions = 300 if quick else 10_000
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(18, 5)),
    )
    compiled = compile_model(model, input_shape=(1, 14, 14), input_range=(0.0, 1.0))
    plan = compiled.plan
    log(f"{plan}")
    images = np.random.default_rng(0).random((questions + _WARM_UP, 1, 14, 14))
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made) / "session"
        begin_session(plan, folder, alice="localhost", bob="localhost", lifetime=timedelta(1))
        for worker, path in write_shares(compiled, PartyFolder(folder / "model-owner")).items():
            path.rename(PartyFolder(folder / worker).model_file)
        deal(folder, _WARM_UP)
        before = _resident("self")
        begun = time.perf_counter()
        deal(folder, questions)
        dealing = time.perf_counter() - begun
        growth = {"provider": _resident("self") - before}
        log(f"material for {questions} more questions in {dealing:.1f} s")
        own = PartyFolder(folder / "data-owner")
        listen = ("--listen", "127.0.0.1:0")
        bob, at = stack.enter_context(started_worker("bob", folder / "bob", *listen))
        calls = (*listen, "--bob", str(at))
        alice, there = stack.enter_context(started_worker("alice", folder / "alice", *calls))
        owner = DataOwner(plan, own.letter(), own.material)
        context = own.context(listens=False)
        workers = stack.enter_context(RemoteWorkers(owner, alice=there, bob=at, context=context))
        places = {"alice": str(alice.pid), "bob": str(bob.pid), "data owner": "self"}
        memory, seconds, numbers, error = {}, [], [], 0.0
        for turn, image in enumerate(images):
            if turn == _WARM_UP:
                memory = {name: _resident(place) for name, place in places.items()}
            numbers.append(owner.material.next_question)
            begun = time.perf_counter()
            logits = workers.logits(image)
            seconds.append(time.perf_counter() - begun)
            error = max(error, float(np.abs(logits - compiled.predict(image[None])).max()))
        growth |= {name: _resident(place) - memory[name] for name, place in places.items()}
        owner.close()
        left = len([*folder.rglob("*.material")])
    each = 1e3 * dealing / questions
    twice = len(numbers) - len({*numbers})
    return [
        *(
            Row("memory", f"{name}, growth over {questions}", "bytes", Spread.of([growth[name]]))
            for name in PARTIES
        ),
        Row("question", "from image to logits", "ms", Spread.of([1e3 * s for s in seconds])),
        Row("question", "dealing, sealing and writing", "ms", Spread.of([each])),
        Row("material", "pieces used twice", "", Spread.of([float(twice)])),
        Row("material", "files left", "", Spread.of([float(left)])),
        Row("answers", "error of a logit, of the proved", "", Spread.of([error / plan.error])),
    ]


def _resident(process: str) -> float:
    """Bytes of memory of a process."""
    fields = (Path("/proc") / process / "statm").read_text().split()
    return float(fields[1]) * 4096
