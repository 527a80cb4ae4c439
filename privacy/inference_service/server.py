"""The service's HTTP server: uvicorn, with a deadline for each step that a stranger can delay.

uvicorn waits for the head of a first request without limit, and asyncio a minute for a TLS
handshake: a few hundred such connections would keep everybody else out.
"""

import asyncio
import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from privacy.arguments import seconds
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.limits import ServiceLimits
from privacy.tls_files import load_certificate

_CONNECTIONS = 256
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_AMBIGUOUS = ServiceError(
    "ambiguous-length",
    400,
    "the request says in more than one way where it ends",
    "send one Content-Length and no Transfer-Encoding",
)
_NO_HTTP = ServiceError(
    "no-http", 400, "this is not a request of HTTP/1.1", "see docs/how-to/service.md"
)


class ServiceServer(uvicorn.Server):
    """Serves an app made by :func:`create_app`; call :meth:`run`.

    **Guarantee.** A connection is dropped if its TLS handshake or its request's head is not
    complete after ``head_seconds``, or if for ``body_seconds`` it does not take an answer, or goes
    on with a request that was answered. A request whose length can be read in two ways
    (Content-Length with Transfer-Encoding, or twice) is refused before the app sees it: no proxy
    and this server can differ over where it ends.

    **Not covered.** Strangers who open connections faster than these deadlines drop them: at most
    256 are served at once.

    Parameters
    ----------
    app : FastAPI
        Its limits are this server's.
    certificate, key : Path, optional
        PEM, the key not encrypted; without them plain HTTP is spoken.
    host : str
    port : int
        Where to listen, unless :meth:`run` is given sockets.
    shutdown_seconds : float
        For requests under way, when the server ends.

    Raises
    ------
    TypeError, ValueError
        If ``shutdown_seconds`` is wrong, or one of certificate and key is given without the other.
    OSError
        If they cannot be read, or hold something else.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 8443,
        shutdown_seconds: float = 60.0,
    ) -> None:
        check_certificate(certificate, key)
        patience = seconds("shutdown_seconds", shutdown_seconds)
        limits: ServiceLimits = app.state.limits
        self._head_seconds = limits.head_seconds
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=_protocol(limits),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=int(patience) + 1,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end: at the address given, or on sockets that listen already."""
        with asyncio.Runner(loop_factory=lambda: _Loop(self._head_seconds)) as runner:
            runner.run(self.serve(sockets=sockets))


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Refuse files of a certificate and its key with which no server can start.

    Raises
    ------
    ValueError
        If one of them is given without the other.
    OSError
        If they cannot be read, or hold something else; the message names the parameter.
    """
    if (certificate is None) != (key is None):
        raise ValueError("certificate and key belong together; give both, or neither")
    if certificate is not None and key is not None:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose servers have a deadline for TLS; uvicorn has no setting for it."""

    def __init__(self, tls_seconds: float) -> None:
        super().__init__()
        self._tls_seconds = tls_seconds

    async def create_server(self, *args: Any, **settings: Any) -> Any:
        if settings.get("ssl") is not None:
            settings["ssl_handshake_timeout"] = self._tls_seconds
            settings["ssl_shutdown_timeout"] = self._tls_seconds
        return await super().create_server(*args, **settings)


class _Connection(h11.Connection):
    """Checks the head of each request as it came: h11 merges two equal lengths into one."""

    ambiguous = False

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0]
            end = _END_OF_HEAD.search(head)
            if end is not None and _is_ambiguous(head[: end.start()]):
                self.ambiguous = True
                raise h11.RemoteProtocolError(_AMBIGUOUS.message)
        return super().next_event()


def _is_ambiguous(head: bytes) -> bool:
    """Whether a request's head declares the length of its body more than once."""
    lengths, chunked = 0, False
    for line in head.split(b"\n")[1:]:
        name, _, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):  # a folded line could continue a length
            return True
        if name.strip().lower() == b"content-length":
            lengths += 1 + value.count(b",")
        chunked |= name.strip().lower() == b"transfer-encoding"
    return lengths > 1 or (lengths > 0 and chunked)


def _protocol(limits: ServiceLimits) -> type[H11Protocol]:
    class Protocol(_Protocol):
        head_seconds, rest_seconds = limits.head_seconds, limits.body_seconds

    return Protocol


class _Protocol(H11Protocol):
    """One connection, aborted where a deadline passes."""

    head_seconds: float
    rest_seconds: float

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.conn = self._strict = _Connection(h11.SERVER)
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    def _expect(self, part: str, due: bool, patience: float) -> None:
        """Start the deadline of a part if it is due, else cancel it."""
        if not due and part in self._deadlines:
            self._deadlines.pop(part).cancel()
        elif due and part not in self._deadlines:
            self._deadlines[part] = self.loop.call_later(patience, self.transport.abort)

    def _expect_the_sender(self) -> None:
        conn = self.conn
        # Between requests uvicorn's own timer runs; ours run while a head is arriving, and while
        # the rest of a request arrives that was answered already.
        begun = conn.their_state is h11.IDLE and bool(conn.trailing_data[0])
        unread = conn.their_state is h11.SEND_BODY and conn.our_state is h11.DONE
        self._expect("head", begun, self.head_seconds)
        self._expect("rest", unread, self.rest_seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        # asyncio does so itself only where a listening socket names its protocol. Without, the end
        # of an answer waits for the client's acknowledgement of its beginning, some 40 ms.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect("head", True, self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        for part in list(self._deadlines):
            self._expect(part, False, 0.0)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._expect_the_sender()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_the_sender()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect("reader", True, self.rest_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect("reader", False, 0.0)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # a response has begun: no other can be sent
            return
        refusal = _AMBIGUOUS if self._strict.ambiguous else _NO_HTTP
        body = json.dumps(refusal.to_dict()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=refusal.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
