"""Inference on secret shares between two local processes, beside CrypTen with the same weights."""

import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks._peers.asking import Asked, Reply
from benchmarks._peers.environments import PEERS, NotMeasuredError, interpreter
from benchmarks._peers.serving import Case as PeerCase
from benchmarks._peers.serving import write_case
from benchmarks.encrypted_inference.cases import Case, train, tutorial_cnn
from benchmarks.encrypted_peers import layers
from benchmarks.harness import Log, Row, Spread
from privacy.inference import Square
from privacy.shared_inference import (
    DataOwner,
    Link,
    Party,
    Plan,
    Provider,
    SharedModel,
    Worker,
    compile_model,
    converse,
    share_model,
)
from privacy.shared_inference.material import worker_piece_bytes

BATCH = 256
_DELAYED = 10
_BATCHES = 4
"""That CrypTen is asked about, the first of which is not counted."""
DELAYS = (0.001, 0.02)
"""Seconds there and back, made by waiting half of it at every exchange."""
_END, _MATERIAL, _PREPARE, _QUESTION, _CLOCK = (bytes([kind]) for kind in range(5))
Images = NDArray[np.float64]


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))


def _relu_cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.ReLU() if isinstance(layer, Square) else layer for layer in tutorial_cnn())
    )


def _pooling_cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def _case(name: str, make: Callable[[], nn.Sequential], epochs: int) -> Case:
    return Case(name, make, "pixels", (0.0, 1.0), epochs)


CASES = (
    _case("linear", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), 3),
    _case("mlp, square", _mlp, 3),
    _case("cnn, squares", tutorial_cnn, 3),
    _case("cnn, relu", _relu_cnn, 3),
    _case("cnn, relu and maxpool", _pooling_cnn, 3),
)


@dataclass
class Times:
    """Milliseconds of one question, by what is done: by the wall's clock, and by processors'."""

    dealing: list[float]
    ahead: list[float]
    online: list[float]
    whole: list[float]
    processor: list[float]
    worker: list[float]
    wrong: int = 0
    error: float = 0.0
    exchanges: float = 0.0
    sent: float = 0.0


def run(*, quick: bool, log: Log) -> list[Row]:
    """Ask one image at a time, and batches; then CrypTen about the same images, in turns."""
    torch.manual_seed(0)
    rows: list[Row] = []
    (crypten,) = (peer for peer in PEERS if peer.module == "crypten")
    python: Path | None = None
    missing = ""
    try:
        python = interpreter(crypten, make=not quick, log=log)
    except NotMeasuredError as reason:
        missing = f"{crypten.title}: not measured: {reason}"
    for case in CASES[:2] if quick else CASES:
        model, sample, test, _ = train(case, quick=quick)
        compiled = _compiled(model, sample, 1)
        log(f"{case.name}:\n{compiled.plan}")
        images = test[: 20 if quick else 100]
        ours, theirs = Times([], [], [], [], [], []), Times([], [], [], [], [], [])
        delayed = {delay: Times([], [], [], [], [], []) for delay in DELAYS}
        with ExitStack() as stack:
            ask = stack.enter_context(_session(compiled))
            peer: Asked | None = None
            if python is not None:
                try:
                    peer = _peer(stack, python, PeerCase(layers(model), images))
                except NotMeasuredError as reason:
                    missing, python = f"{crypten.title}: not measured: {reason}", None
            for turn, image in enumerate([0, *range(len(images))]):
                _count(ours, ask(images[image : image + 1], 0.0), counted=turn > 0)
                if peer is not None:
                    _count_peer(theirs, peer.ask(image), counted=turn > 0)
            theirs_delayed: dict[float, list[float]] = {delay: [] for delay in DELAYS}
            for delay, times in delayed.items():
                for image in range(_DELAYED):
                    _count(times, ask(images[image : image + 1], delay / 2), counted=True)
                    if peer is not None:
                        reply = peer.ask(image, delay / 2)
                        theirs_delayed[delay].append(1e3 * reply.evaluation)
        title = crypten.title if peer is not None else missing
        rows += _single(case.name, compiled, ours, theirs if peer is not None else None, title)
        for delay, times in delayed.items():
            metric = f"online, {1e3 * delay:g} ms there and back"
            peers = Spread.of(theirs_delayed[delay]) if theirs_delayed[delay] else None
            rows.append(Row(case.name, metric, "ms", Spread.of(times.online), peers, title))
        many = _compiled(model, sample, BATCH)
        batches, theirs = Times([], [], [], [], [], []), Times([], [], [], [], [], [])
        count = 3 if quick else 10
        starts = [turn * BATCH % (len(test) - BATCH) for turn in range(count + 1)]
        with ExitStack() as stack:
            ask = stack.enter_context(_session(many))
            peer = None
            if python is not None:
                groups = np.stack([test[start : start + BATCH] for start in starts[:_BATCHES]])
                peer = _peer(stack, python, PeerCase(layers(model), groups))
            for turn, start in enumerate(starts):
                _count(batches, ask(test[start : start + BATCH], 0.0), counted=turn > 0)
                if peer is not None and turn < _BATCHES:
                    reply = peer.ask(turn)
                    _count_peer(theirs, reply, counted=turn > 0)
        rows += _batches(case.name, many, batches, theirs, title)
        for row in rows[-12:]:
            log(f"{row.case:<22} {row.metric:<44} {row.ours.median:.5g} {row.unit}")
    return rows


def _peer(stack: ExitStack, python: Path, case: PeerCase) -> Asked:
    """CrypTen's two parties, ready for a case's questions."""
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "case.npz"
    write_case(file, case)
    return stack.enter_context(Asked([str(python), "-m", "benchmarks._peers.crypten", str(file)]))


def _count_peer(times: Times, reply: Reply, *, counted: bool) -> None:
    if not counted:
        return
    times.online.append(1e3 * reply.evaluation)
    times.whole.append(1e3 * reply.end_to_end)
    times.processor.append(1e3 * reply.costs["processor"])
    times.exchanges, times.sent = reply.costs["exchanges"], reply.costs["bytes"]


def _compiled(model: nn.Module, sample: Images, batch: int) -> SharedModel:
    return compile_model(
        model,
        input_shape=sample.shape[1:],
        input_range=(0.0, 1.0),
        sample=sample,
        batch_size=batch,
    )


def _single(
    case: str, compiled: SharedModel, ours: Times, theirs: Times | None, title: str
) -> list[Row]:
    online = None if theirs is None else Spread.of(theirs.online)
    whole = None if theirs is None else Spread.of(theirs.whole)
    processor = None if theirs is None else Spread.of(theirs.processor)
    exchanges = None if theirs is None else Spread.of([theirs.exchanges])
    sent = None if theirs is None else Spread.of([theirs.sent])
    plan = compiled.plan
    details = {"proved_error": plan.error, "measured_error": ours.error, "wrong": ours.wrong}
    return [
        Row(
            case, "one image, online", "ms", Spread.of(ours.online), online, title, details=details
        ),
        Row(case, "one image, with masking and reading", "ms", Spread.of(ours.whole), whole, title),
        Row(case, "dealing", "ms", Spread.of(ours.dealing)),
        Row(case, "a worker's work ahead", "ms", Spread.of(ours.ahead)),
        Row(case, "one image, all processors", "ms", Spread.of(ours.processor), processor, title),
        Row(case, "exchanges", "", Spread.of([float(plan.exchanges)]), exchanges, title),
        Row(
            case,
            "exchanged each way",
            "bytes",
            Spread.of([float(plan.exchanged_bytes)]),
            sent,
            title,
        ),
        Row(case, "material of worker 1", "bytes", Spread.of([float(worker_piece_bytes(plan, 1))])),
        Row(case, "largest logit error", "", Spread.of([ours.error])),
    ]


def _batches(
    case: str, compiled: SharedModel, times: Times, theirs: Times, title: str
) -> list[Row]:
    def share(values: list[float]) -> Spread:
        return Spread.of([value / BATCH for value in values])

    def row(metric: str, name: str, *, beside: bool) -> Row:
        ours, other = share(getattr(times, name)), getattr(theirs, name)
        peer = share(other) if beside and other else None
        return Row(case, f"batch of {BATCH}, {metric}, an image", "ms", ours, peer, title)

    return [
        row("online", "online", beside=True),
        row("online, a worker's processor", "worker", beside=False),
        row("dealing", "dealing", beside=False),
        row("a worker's work ahead", "ahead", beside=False),
        row("all processors", "processor", beside=True),
    ]


@dataclass(frozen=True)
class _Answered:
    """What one question took, in seconds, and how far its logits are off."""

    dealing: float
    ahead: float
    online: float
    whole: float
    processor: float
    worker: float
    wrong: int
    error: float


def _count(times: Times, answered: _Answered, *, counted: bool) -> None:
    """The first turn fills caches, and is not counted."""
    if not counted:
        return
    for name in ("dealing", "ahead", "online", "whole", "processor", "worker"):
        getattr(times, name).append(1e3 * getattr(answered, name))
    times.wrong += answered.wrong
    times.error = max(times.error, answered.error)


@contextmanager
def _session(compiled: SharedModel) -> Iterator[Callable[[Images, float], _Answered]]:
    """The provider, the data owner and alice here, bob in a process of his own."""
    plan, provider = compiled.plan, Provider(compiled.plan)
    models = share_model(compiled, provider.letter(Party.MODEL_OWNER))
    owner = DataOwner(plan, provider.letter(Party.DATA_OWNER))
    alice = Worker(plan, provider.letter(Party.ALICE), models[0])
    spawned = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        given = (address, plan.to_bytes(), provider.letter(Party.BOB), models[1])
        process = spawned.Process(target=_bob, args=given, daemon=True)
        process.start()
        to_bob, between = (Link(server.accept()[0], timeout=300.0) for _ in range(2))
    with to_bob, between:

        def ask(images: Images, delay: float) -> _Answered:
            before = time.process_time()
            provision = provider.provision(1)
            dealing = time.process_time() - before
            alice.material.add(provision.alice)
            owner.material.add(provision.data_owner)
            bobs = [_clock(to_bob)]
            to_bob.exchange(_MATERIAL + provision.bob)
            start = time.perf_counter()
            alice.prepare()
            ahead = time.perf_counter() - start
            to_bob.exchange(_PREPARE)
            exchange = partial(_delayed, between, delay) if delay else between.exchange
            moments = [time.perf_counter()]
            question = owner.ask(images)
            moments.append(time.perf_counter())
            worker = time.process_time()
            to_bob.send(_QUESTION + question.for_bob)
            mine = converse(alice.answer(question.for_alice), exchange)
            worker = time.process_time() - worker
            his = to_bob.receive()
            moments.append(time.perf_counter())
            logits = owner.logits(question, mine, his)
            moments.append(time.perf_counter())
            processor = time.process_time() - before + _clock(to_bob) - bobs[0]
            clear = compiled.predict(images)
            return _Answered(
                dealing=dealing,
                ahead=ahead,
                online=moments[2] - moments[1],
                whole=moments[3] - moments[0],
                processor=processor,
                worker=worker,
                wrong=int((logits.argmax(axis=1) != clear.argmax(axis=1)).sum()),
                error=float(np.abs(logits - clear).max()),
            )

        try:
            yield ask
        finally:
            to_bob.send(_END)
            process.join()


def _delayed(link: Link, delay: float, message: bytes) -> bytes:
    """An exchange whose answer is on the way for so long: both sides send at once."""
    time.sleep(delay)
    return link.exchange(message)


def _clock(link: Link) -> float:
    """Seconds of bob's processor."""
    return float(link.exchange(_CLOCK))


def _bob(address: tuple[str, int], plan: bytes, letter: bytes, model: bytes) -> None:
    """Be the other worker, until there are no more questions."""
    torch.set_num_threads(1)
    bob = Worker(Plan.from_bytes(plan), letter, model)
    to_owner, between = (Link(socket.create_connection(address), timeout=300.0) for _ in range(2))
    with to_owner, between:
        while (message := to_owner.receive())[:1] != _END:
            kind, body = message[:1], message[1:]
            if kind == _QUESTION:
                to_owner.send(converse(bob.answer(body), between.exchange))
            elif kind == _CLOCK:
                to_owner.send(str(time.process_time()).encode())
            else:
                if kind == _MATERIAL:
                    bob.material.add(body)
                else:
                    bob.prepare()
                to_owner.send(b"done")
