"""A real service over TLS on loopback, and owners who ask it."""

import contextlib
import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flower_app.processes.certificates import Certificates
from privacy.inference import (
    CompiledModel,
    DataOwner,
    EvaluatorPool,
    EvaluatorProcess,
    InputContract,
    compile_model,
)
from privacy.inference_service import (
    Authentication,
    Page,
    ServiceClient,
    ServiceLimits,
    ServiceServer,
    TokenFile,
    create_app,
)

ROOT = Path(__file__).parents[3]
CONTRACT = InputContract((8,), (-1.0, 1.0), classes=3)
X = np.random.default_rng(0).uniform(-1, 1, (4, 8))


@contextlib.contextmanager
def serve_command(
    served: Path, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A running ``serve``, and the arguments of ``ask`` that it prints."""
    command = [sys.executable, "-m", "flower_app", "serve", str(served), "--port", "0"]
    with subprocess.Popen(
        [*command, "--workers", "1", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        printed = shlex.split(next(line for line in lines if "flower_app ask" in line))
        try:
            yield process, printed[printed.index("ask") :]
        finally:
            process.kill()


def small_model() -> CompiledModel:
    torch.manual_seed(0)
    return compile_model(nn.Sequential(nn.Linear(8, 3)), input_shape=(8,), input_range=(-1.0, 1.0))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """A running service.

    Attributes
    ----------
    tokens
        One for each of "ada", "ben", "cyd" and "dan", and one of the operator.
    """

    pool: EvaluatorPool
    port: int
    certificates: Certificates
    tokens: dict[str, str]
    token_file: TokenFile
    clock: Clock
    closing: contextlib.ExitStack
    server: ServiceServer

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, name: str | None = "ada") -> ServiceClient:
        token = None if name is None else self.tokens.get(name, name)
        client = ServiceClient(self.url, token=token, ca=self.certificates.ca)
        return self.closing.enter_context(client)

    def owner(self, name: str = "ada") -> "Asking":
        return Asking(self, name)

    def connect(self) -> ssl.SSLSocket:
        """A connection for requests that no well-behaved client sends."""
        context = ssl.create_default_context(cafile=self.certificates.ca)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost")


class Asking:
    """An owner with keys at the service, who sees every message."""

    def __init__(self, service: Service, name: str) -> None:
        self.token = service.tokens[name]
        self.client = service.client(name)
        self.plan = self.client.plan(CONTRACT)
        self.keys = DataOwner(self.plan)
        self.material = self.keys.public_material(binding=self.client.key_binding())
        self.key_id = self.client.send_keys(self.material)

    def query(self) -> bytes:
        return self.keys.encrypt(X[0])

    def send(self, query: bytes, *, key_id: str | None = None) -> bytes:
        size = self.plan.answer_bytes
        return self.client.ask(key_id or self.key_id, query, answer_bytes=size)[0]

    def label(self) -> int:
        return self.keys.decrypt(self.send(self.query())).label

    def head(self, length: str = "") -> bytes:
        """The head of a request for an answer; the service says 100 when it reads on."""
        return (
            f"POST /v1/keys/{self.key_id}/answers HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {self.token}\r\n{length}Expect: 100-continue\r\n\r\n"
        ).encode()


def worker_with_keys(pool: EvaluatorPool) -> EvaluatorProcess:
    (process,) = [worker.process for worker in pool._workers if worker.slots]
    assert process is not None
    assert process.pid is not None
    return process


class _Recorder:
    def __init__(self, app: Any, bodies: list[tuple[str, bytes]]) -> None:
        self.app, self.bodies = app, bodies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        parts: list[bytes] = []

        async def heard() -> Any:
            message = await receive()
            parts.append(message.get("body", b""))
            return message

        await self.app(scope, heard, send)
        if scope["type"] == "http":
            self.bodies.append((scope["method"], b"".join(parts)))


@contextlib.contextmanager
def serving(
    pool: EvaluatorPool,
    certificates: Certificates,
    folder: Path,
    *,
    tokens: TokenFile | None = None,
    authentication: Authentication | None = None,
    page: Page | None = None,
    origins: tuple[str, ...] = (),
    bodies: list[tuple[str, bytes]] | None = None,
    **limits: Any,
) -> Iterator[Service]:
    """A service: with four new owners and an operator, or the tokens of one before.

    ``bodies`` takes the method and body of each request as it arrives.
    """
    made: dict[str, str] = {}
    file = tokens
    if file is None:
        file = TokenFile(folder / "tokens.json")
        made = {name: file.add(name) for name in ("ada", "ben", "cyd", "dan")}
        made["operator"] = file.add("operator", role="operator")
    clock = Clock()
    app = create_app(
        pool,
        authentication=authentication or file,
        limits=ServiceLimits(**limits),
        page=page,
        origins=origins,
        clock=clock,
    )
    if bodies is not None:
        app.add_middleware(_Recorder, bodies=bodies)
    # The socket listens before the server runs: nobody need wait for it.
    listening = socket.create_server(("127.0.0.1", 0))
    server = ServiceServer(app, certificate=certificates.certificate, key=certificates.key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        port = listening.getsockname()[1]
        # Clients leave before the server does, which would wait for them.
        with contextlib.ExitStack() as closing:
            yield Service(pool, port, certificates, made, file, clock, closing, server)
    finally:
        server.should_exit = True
        thread.join()
