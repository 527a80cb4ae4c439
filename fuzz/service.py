"""Encrypted inference over HTTP: requests to the service, and what a service answers."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from fuzz.edits import EDITS, edited
from fuzz.encrypted import compiled
from fuzz.target import Target
from privacy.inference import DataOwner, EvaluatorPool, EvaluatorProcess, InputContract
from privacy.inference.errors import MessageError, PlanRefusedError
from privacy.inference_service import (
    InsecureNoAuthentication,
    OwnerSession,
    ServiceClient,
    ServiceLimits,
    create_app,
)
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_names import key_id

_EXPECTED = frozenset({200, 204, 400, 401, 403, 404, 405, 408, 409, 410, 411, 413, 429, 503})
_X = [0.0, 1.0, 0.5, 0.25]


def service() -> Target:
    """A request: its line and headers, an empty line, and edits of the good body.

    The body is public material for ``PUT``, a question for ``POST``; without a header
    ``content-length`` the right one is sent.
    """
    model = Path(tempfile.mkdtemp(prefix="fuzz-")) / "model"
    compiled("coefficients").save(model)
    command = [sys.executable, "-m", "privacy.inference.evaluator", str(model)]
    pool = EvaluatorPool(lambda: EvaluatorProcess(command), processes=1)
    limits = ServiceLimits(requests_per_minute=10**6)
    app = create_app(pool, authentication=InsecureNoAuthentication(), limits=limits)
    loop = asyncio.new_event_loop()
    owner = DataOwner(pool.plan)

    def send(method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        return loop.run_until_complete(_answered(app, method, path, headers, body))

    _, bound = send("GET", "/v1/keys/binding", {}, b"")
    material = owner.public_material(binding=bytes.fromhex(json.loads(bound)["binding"]))
    name = key_id(material)
    sent = str(len(material))
    status, _ = send("PUT", "/v1/keys", {"content-length": sent}, material)
    assert status == 200, status

    def read(content: bytes) -> None:
        head, _, edits = content.partition(b"\n\n")
        line, *lines = head.decode("latin-1").split("\n")
        method, _, path = line.partition(" ")
        method = method if method in ("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS") else "POST"
        if method == "DELETE" and name in path:
            return  # the keys are needed again
        good = {"PUT": material, "POST": owner.encrypt(_X) if method == "POST" else b""}
        body = edited(good.get(method, b""), edits)
        headers = dict(each.partition(":")[::2] for each in lines)
        headers = {key.lower().strip(): value.strip() for key, value in headers.items()}
        headers.setdefault("content-length", str(len(body)))
        status, answered = send(method, path.replace("NAME", name), headers, body)
        if status not in _EXPECTED:
            raise AssertionError(f"{status}: {answered[:200]!r}")

    lines = (
        b"GET /health",
        b"GET /v1/plan",
        b"GET /v1/keys/binding\nauthorization: Bearer x",
        b"GET /metrics",
        b"PUT /v1/keys",
        b"POST /v1/keys/NAME/answers",
        b"POST /v1/keys/NAME/answers\ncontent-length: 10",
        b"POST /v1/keys/" + b"ab" * 16 + b"/answers\ntransfer-encoding: chunked",
        b"DELETE /v1/keys/" + b"ab" * 16,
    )
    seeds = tuple(line + b"\n\n" + edits for line in lines for edits in EDITS)
    return Target(read, (), seeds)


async def _answered(
    app: Any, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, bytes]:
    """Status and body of a response, as a server of ASGI gets it."""
    where, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": where or "/",
        "raw_path": where.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 443),
    }
    status, parts = 0, []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)


def service_client() -> Target:
    """What a service answers to a data owner: a status, a header's value, and a body.

    The first answers are those that are given; then the service is gone. Where the first byte is a
    ``p`` the owner asks for the plan, else a question, which begins with keys.
    """
    plan = compiled("coefficients").plan
    contract = InputContract((4,), (0.0, 1.0), classes=2)
    answers: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if not answers:
            raise httpx.ConnectError("it is gone", request=request)
        status, _, rest = answers.pop(0).partition(b" ")
        timing, _, body = rest.partition(b"\n")
        code = int(status) if status[:4].isdigit() and 200 <= int(status[:4]) < 600 else 500
        headers = [(b"server-timing", timing.replace(b"\r", b""))]
        return httpx.Response(code, headers=headers, stream=httpx.ByteStream(body))

    client = ServiceClient("https://localhost", token="x")  # noqa: S106
    client._http = httpx.Client(base_url="https://localhost", transport=httpx.MockTransport(answer))

    def read(content: bytes) -> None:
        answers[:] = content[1:].split(b"\n---\n")[:8]
        if content[:1] == b"p":
            client.plan(contract)
            return
        waited: list[float] = []
        try:
            OwnerSession(client, plan, wait=waited.append).ask(_X)
        finally:
            assert all(0 <= seconds < 3600 for seconds in waited), waited

    keys = b' 200 \n{"binding": "00ff"}'
    seeds = (
        keys + b"\n---\n200 \n{}\n---\n200 evaluation;dur=3.1\nan answer",
        keys + b'\n---\n429 \n{"error": "busy", "retry_after": 3}',
        b' 503 \n{"retry_after": 1}\n---\n' + keys[1:],
        b' 503 \n{"retry_after": -5}\n---\n' + keys[1:],
        b' 503 \n{"retry_after": 1' + 400 * b"0" + b"}\n---\n" + keys[1:],
        b" 200 \n[]",
        b'p410 \n{"error": "keys-gone", "message": "m", "remedy": "r"}',
        b"p200 \n" + plan.to_json().encode(),
    )
    refusals = (ServiceError, MessageError, PlanRefusedError)
    return Target(read, refusals, seeds)
