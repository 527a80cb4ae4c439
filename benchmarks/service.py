"""Encrypted questions over HTTPS on loopback, beside the bare evaluation."""

import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Log, Row, Spread, interleave
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from flower_app.processes.certificates import make_certificates
from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    EvaluatorPool,
    EvaluatorProcess,
    compile_model,
    serve_evaluations,
)
from privacy.inference_service import (
    Page,
    ServiceClient,
    ServiceLimits,
    ServiceServer,
    TokenFile,
    create_app,
)

_UNLIMITED = sys.maxsize >> 20


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure each model of the app, with random weights: they change no time."""
    rows = []
    for name in ("hog-linear",) if quick else ("hog-linear", "mlp", "cnn"):
        compiled = compiled_model(name)
        with running(name) as (pool, url, authority, token):
            client = partial(ServiceClient, url, token=token, ca=authority)
            log(f"{name}: {pool.processes} processes")
            rows += _latency(name, compiled, client(), repetitions=15 if quick else 51)
            rows += _throughput(name, compiled, pool, client, images=60 if quick else 200)
    return rows


def compiled_model(name: str) -> CompiledModel:
    """A model of the app with random weights."""
    spec = MODELS[name]
    torch.manual_seed(0)
    model = build_model(name)
    last = [layer for layer in model if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=0.05)
    return compile_model(model, input_shape=spec.shape, input_range=(spec.low, spec.high))


def _start_evaluator(name: str) -> EvaluatorProcess:
    program = "import sys; from benchmarks import service; service.evaluate(sys.argv[1])"
    return EvaluatorProcess([sys.executable, "-c", program, name])


def evaluate(name: str) -> None:
    """Be an evaluator's process."""
    serve_evaluations(lambda: compiled_model(name))


@contextlib.contextmanager
def running(
    name: str, *, page: Page | None = None
) -> Iterator[tuple[EvaluatorPool, str, Path, str]]:
    """The pool, the URL, the authority and a token of a running service."""
    with (
        tempfile.TemporaryDirectory() as made,
        EvaluatorPool(partial(_start_evaluator, name)) as pool,
    ):
        pool.start_all()
        certificates, tokens = make_certificates(Path(made)), TokenFile(Path(made) / "tokens.json")
        limits = ServiceLimits(queue=4 * pool.processes, requests_per_minute=_UNLIMITED)
        listening = socket.create_server(("127.0.0.1", 0))
        server = ServiceServer(
            create_app(pool, authentication=tokens, limits=limits, page=page),
            certificate=certificates.certificate,
            key=certificates.key,
            shutdown_seconds=0,
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"https://localhost:{listening.getsockname()[1]}"
            yield pool, url, certificates.ca, tokens.add("benchmark")
        finally:
            server.should_exit = True
            thread.join()


def _inputs(compiled: CompiledModel, count: int) -> np.ndarray:
    plan = compiled.plan
    return np.random.default_rng(0).uniform(*plan.input_range, (count, *plan.input_shape))


def _latency(
    name: str, compiled: CompiledModel, client: ServiceClient, *, repetitions: int
) -> list[Row]:
    """Milliseconds from query to answer: over HTTPS, and by an evaluator in this process."""
    plan = compiled.plan
    owner, (x,) = DataOwner(plan), _inputs(compiled, 1)
    material = owner.public_material()
    queries = [[owner.encrypt(x) for _ in range(repetitions + 1)] for _ in range(2)]
    evaluator, over, bare = Evaluator(compiled, material), iter(queries[0]), iter(queries[1])
    with client:
        key_id = client.send_keys(owner.public_material(binding=client.key_binding()))
        spent = interleave(
            {
                "service": lambda: client.ask(key_id, next(over), answer_bytes=plan.answer_bytes),
                "bare": lambda: evaluator.evaluate(next(bare)),
            },
            repetitions=repetitions,
        )
    ours, peer = (_milliseconds(spent[way]) for way in ("service", "bare"))
    return [Row(name, "a request over HTTPS", "ms", ours, peer, "the bare evaluation")]


def _throughput(
    name: str,
    compiled: CompiledModel,
    pool: EvaluatorPool,
    client: "partial[ServiceClient]",
    *,
    images: int,
) -> list[Row]:
    """Answers a second over two connections a process, and of one evaluator here."""
    plan = compiled.plan
    owner, (x,) = DataOwner(plan), _inputs(compiled, 1)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    rates: dict[str, list[float]] = {"service": [], "bare": []}
    lanes = 2 * pool.processes
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(lanes) as threads:
        clients = [stack.enter_context(client()) for _ in range(lanes)]
        key_id = clients[0].send_keys(owner.public_material(binding=clients[0].key_binding()))

        def ask(lane: int, queries: list[bytes]) -> None:
            for query in queries:
                clients[lane].ask(key_id, query, answer_bytes=plan.answer_bytes)

        for _ in range(4):
            queries = [owner.encrypt(x) for _ in range(images)]
            begun = time.perf_counter()
            list(threads.map(ask, range(lanes), [queries[i::lanes] for i in range(lanes)]))
            rates["service"].append(images / (time.perf_counter() - begun))
            queries = [owner.encrypt(x) for _ in range(images)]
            begun = time.perf_counter()
            for query in queries:
                evaluator.evaluate(query)
            rates["bare"].append(images / (time.perf_counter() - begun))
    # The first turn sends keys to every process.
    ours, peer = (Spread.of(rates[way][1:]) for way in ("service", "bare"))
    return [
        Row(name, "all processes", "images/s", ours, peer, "one bare evaluator", True),
    ]


def _milliseconds(spread: Spread) -> Spread:
    return Spread(spread.median * 1e3, spread.low * 1e3, spread.high * 1e3, spread.repetitions)
