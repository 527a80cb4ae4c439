"""The service: encrypted questions to one compiled model, over HTTP."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from privacy.inference import EvaluatorPool
from privacy.inference.errors import EvaluatorFailedError, MessageError
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.keys import KeyStore
from privacy.inference_service.limits import Clock, QueueSlots, RateLimiter, ServiceLimits
from privacy.inference_service.metrics import CONTENT_TYPE, Metrics
from privacy.inference_service.page import Page, add_page, check_origins
from privacy.inference_service.questions import Questions
from privacy.inference_service.refusals import refusal_of
from privacy.inference_service.tokens import Authentication, Caller, TokenFile
from privacy.untrusted_text import one_line

_BYTES = "application/octet-stream"
_SWEEP_SECONDS = 60.0
_BUSY_SECONDS = 1
_HEADERS = {"Cache-Control": "no-store"}

_log = logging.getLogger(__name__)


def create_app(
    pool: EvaluatorPool,
    *,
    authentication: Authentication,
    limits: ServiceLimits | None = None,
    page: Page | None = None,
    origins: Sequence[str] = (),
    clock: Clock = time.monotonic,
) -> FastAPI:
    """Make the service for one model; serve it with :class:`ServiceServer`.

    ``GET /health`` is for everybody. An owner's token is needed for ``GET /v1/plan``,
    ``GET /v1/keys/binding``, ``PUT /v1/keys`` (public material, bound to that),
    ``DELETE /v1/keys/{id}`` and ``POST /v1/keys/{id}/answers`` (a query; the answer comes back),
    an operator's for ``GET /metrics``. Bodies are the messages of :mod:`privacy.inference`,
    errors JSON.

    **Guarantee.** A query is answered at most once, under keys that the same token sent, whichever
    process answers. Material is bound to its token and to this start of the service: captured, it
    is refused under another token and after a restart. A message has the plan's size before it is
    read into memory, and is authenticated before a process sees it. A message over which a process
    dies costs one request.

    **Assumptions.** TLS between owner and service: tokens, and the session key in the public
    material, travel through it.

    **Not covered.** Whether answers are right; when and how much an owner asks, which the service
    sees. Whoever holds both a token and the session key in captured material can make new material
    of it; under another token that is refused while this start of the service remembers it.

    Parameters
    ----------
    pool : EvaluatorPool
        Holds the model. The caller closes it.
    authentication : Authentication
        A :class:`TokenFile`, or :class:`InsecureNoAuthentication`.
    limits : ServiceLimits, optional
    page : Page, optional
        Served at ``/``, without a token: owners ask from a browser.
    origins : sequence of str
        Of pages elsewhere that may ask, such as ``https://clinic.example``; no other site's may.
        ``null`` stands for files on a disk, and for whatever page hides its origin.
    clock : callable
        For rates and expiry.

    Raises
    ------
    ValueError
        If an origin is none: a pattern, without its scheme, or with a path.
    """
    check_origins(origins)
    app = _Service(pool, authentication, limits or ServiceLimits(), clock).app
    if page is not None:
        add_page(app, page, copies="null" in origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "PUT", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Server-Timing", "Retry-After"],
        )
    return app


class _Service:
    def __init__(
        self,
        pool: EvaluatorPool,
        authentication: Authentication,
        limits: ServiceLimits,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._authentication = authentication
        self._limits = limits
        self._plan = pool.plan.to_json().encode()
        self._start = secrets.token_bytes(32)  # bindings end with this process
        self._keys = KeyStore(
            pool, owners=limits.owners, lifetime=3600 * limits.key_hours, clock=clock
        )
        self._rate = RateLimiter(limits.requests_per_minute, clock)
        self._slots = QueueSlots(pool.processes + limits.queue)
        file = authentication.questions_file if isinstance(authentication, TokenFile) else None
        self._questions = Questions(file)
        self._metrics = Metrics(
            queued=lambda: self._slots.taken,
            owners=lambda: len(self._keys),
            key_sets=lambda: self._keys.sets,
            running=lambda: pool.running,
        )
        self._restarting: set[asyncio.Task[None]] = set()
        # No pages that describe the service to a stranger.
        self.app = FastAPI(
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
            redirect_slashes=False,
        )
        self.app.state.limits = limits
        self._add_routes()
        for kind in (Exception, HTTPException, ServiceError, MessageError, EvaluatorFailedError):
            self.app.add_exception_handler(kind, self._refused)

    def _add_routes(self) -> None:
        app, plan = self.app, self._pool.plan
        Owner = Annotated[Caller, Depends(self._owner)]

        @app.get("/health", name="health")
        async def health() -> Response:
            up = self._pool.running > 0
            return JSONResponse(
                {"status": "ok" if up else "starting"}, 200 if up else 503, headers=_HEADERS
            )

        @app.get("/metrics", name="metrics", dependencies=[Depends(self._operator)])
        async def metrics() -> Response:
            return Response(self._metrics.text(), media_type=CONTENT_TYPE, headers=_HEADERS)

        @app.get("/v1/plan", name="plan", dependencies=[Depends(self._owner)])
        async def get_plan(request: Request) -> Response:
            return self._done(request, Response(self._plan, media_type="application/json"))

        @app.get("/v1/keys/binding", name="binding")
        async def get_binding(request: Request, owner: Owner) -> Response:
            return self._done(request, JSONResponse({"binding": self._binding(owner).hex()}))

        @app.put("/v1/keys", name="keys")
        async def put_keys(request: Request, owner: Owner) -> Response:
            sets = self._limits.key_sets * (self._limits.owners if owner.shared else 1)
            async with self._body(request, owner, plan.public_bytes) as material:
                name, seconds = await asyncio.to_thread(
                    self._keys.put,
                    _identity(owner),
                    material,
                    binding=self._binding(owner),
                    sets=sets,
                )
            return self._done(request, JSONResponse({"key_id": name, "expires_in": int(seconds)}))

        @app.delete("/v1/keys/{name}", name="keys-back")
        async def delete_keys(name: str, request: Request, owner: Owner) -> Response:
            await asyncio.to_thread(self._keys.remove, _identity(owner), name)
            return self._done(request, Response(status_code=204))

        @app.post("/v1/keys/{name}/answers", name="answers")
        async def answer(name: str, request: Request, owner: Owner) -> Response:
            await asyncio.to_thread(self._keys.get, _identity(owner), name)  # before the body
            async with self._body(request, owner, plan.query_bytes) as query:
                keys = await asyncio.to_thread(self._keys.get, _identity(owner), name)
                async with self._questions.one_of(owner):
                    evaluated, seconds = await asyncio.wrap_future(self._pool.submit(keys, query))
            self._metrics.evaluation.observe(seconds)
            timing = {"Server-Timing": f"evaluation;dur={1000 * seconds:.3f}"}
            return self._done(request, Response(evaluated, media_type=_BYTES, headers=timing))

    def _binding(self, owner: Caller) -> bytes:
        """The binding of an owner's material: its token, and this start of the service."""
        return hmac.digest(self._start, _identity(owner).encode(), hashlib.sha256)

    def _owner(self, request: Request) -> Caller:
        return self._caller(request, "owner")

    def _operator(self, request: Request) -> Caller:
        return self._caller(request, "operator")

    def _caller(self, request: Request, role: str) -> Caller:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self._authentication.caller(token if scheme.lower() == "bearer" else "")
        if caller is None:
            raise ServiceError(
                "no-token",
                401,
                "the token is missing, not known or expired",
                "ask the operator for one",
            )
        if caller.role != role:
            remedy = f"use a token made for an {role}"
            raise ServiceError("wrong-token", 403, f"this is for an {role}'s token", remedy)
        return caller

    @contextlib.asynccontextmanager
    async def _body(self, request: Request, owner: Caller, size: int) -> AsyncIterator[bytes]:
        """Read a body of exactly this size, and hold a slot of the queue until it is answered.

        Size, rate and queue are checked before the body is read.
        """
        _check_length(request, size)
        wait = self._rate.wait(owner.name)
        if wait > 0:
            raise ServiceError(
                "too-many",
                429,
                f"more than {self._limits.requests_per_minute} requests a minute",
                "wait, then ask again",
                retry_after=int(wait) + 1,
            )
        refusal = self._slots.take(owner.name)
        if refusal is not None:
            status, reason = refusal
            remedy = "wait, then ask again"
            raise ServiceError("busy", status, reason, remedy, retry_after=_BUSY_SECONDS)
        try:
            yield await self._read(request, size)
        finally:
            self._slots.give_back(owner.name)

    async def _read(self, request: Request, size: int) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > size:
                        break
        except TimeoutError as error:
            reason = "the request's body did not arrive in time"
            raise ServiceError("slow", 408, reason, "send it again") from error
        except ClientDisconnect as error:
            raise ServiceError("cut", 400, "the request ended early", "send it again") from error
        if len(body) != size:
            reason = f"the body has {len(body):,} bytes, not {size:,}"
            raise ServiceError("wrong-size", 400, reason, "send it again")
        return bytes(body)

    def _done(self, request: Request, response: Response) -> Response:
        response.headers.update(_HEADERS)
        self._metrics.count(_endpoint(request), "done")
        return response

    async def _refused(self, request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        if isinstance(error, EvaluatorFailedError):
            _log.error("%s", one_line(str(error)))
            self._metrics.failed_evaluators.inc()
            task = asyncio.create_task(self._start_all())
            self._restarting.add(task)
            task.add_done_callback(self._restarting.discard)
        self._metrics.count(_endpoint(request), refusal.code)
        headers = dict(_HEADERS)
        if refusal.retry_after is not None:
            headers["Retry-After"] = str(refusal.retry_after)
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.status in (401, 403, 408, 411, 413):
            headers["Connection"] = "close"  # the rest of the request is not read
        return JSONResponse(refusal.to_dict(), refusal.status, headers=headers)

    async def _start_all(self) -> None:
        try:
            await asyncio.to_thread(self._pool.start_all)
        except EvaluatorFailedError as error:
            _log.error("an evaluator does not come up: %s", one_line(str(error)))

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_SECONDS)
                await asyncio.to_thread(self._keys.sweep)

        tasks = [asyncio.create_task(sweep()), asyncio.create_task(self._start_all())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(self._keys.clear)


def _identity(owner: Caller) -> str:
    """The owner of keys: the next token of a name has no part in the keys of its last one."""
    return f"{owner.name}/{owner.token_id}"


def _check_length(request: Request, size: int) -> None:
    declared = request.headers.get("content-length", "")
    chunked = "transfer-encoding" in request.headers
    if chunked or not declared.isdecimal() or not declared.isascii():
        raise ServiceError(
            "no-length", 411, "the request does not say how long it is", "send Content-Length alone"
        )
    if int(declared) != size:
        larger = int(declared) > size
        raise ServiceError(
            "too-large" if larger else "wrong-size",
            413 if larger else 400,
            f"a message of this kind has {size:,} bytes, this one {int(declared):,}",
            "fetch the plan again, and send what its keys and queries are",
        )


def _endpoint(request: Request) -> str:
    return str(getattr(request.scope.get("route"), "name", "none"))
