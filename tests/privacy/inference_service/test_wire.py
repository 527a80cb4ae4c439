"""What strangers may do to the service's connections: hold one up, or say two lengths."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flower_app.processes.certificates import Certificates
from privacy.inference_service import ServiceClient, ServiceLimits, ServiceServer
from privacy.inference_service.errors import ServiceError
from tests.privacy.inference_service.serving import CONTRACT, Service

Serve = Callable[..., AbstractContextManager[Service]]
GENEROUS = 30.0
"""Seconds in which a connection must end that the service cuts off after a fraction of one."""


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection, which it must."""
    connection.settimeout(GENEROUS)
    parts = []
    # Cut off in the middle, TLS and TCP say so as an error.
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_no_part_of_an_answer_waits_until_the_part_before_it_is_acknowledged(
    service: Service,
) -> None:
    with service.connect() as raw:
        raw.sendall(HEALTH)
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        (protocol,) = service.server.server_state.connections
        connection = protocol.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "begun",
    [b"", b"G", b"GET /health HTTP/1.1\r\n", HEALTH[:-1], HEALTH[:-2] + b"X-More: 1\r\n"],
)
def test_a_head_that_does_not_finish_is_dropped(serve: Serve, begun: bytes) -> None:
    with serve(head_seconds=0.2) as service, service.connect() as raw:
        raw.sendall(begun)
        assert read_to_end(raw) == b""
        with service.connect() as other:  # and others are answered
            other.sendall(HEALTH)
            assert other.recv(100).startswith(b"HTTP/1.1 200")


def test_the_head_of_a_later_request_is_dropped_too(serve: Serve) -> None:
    with serve(head_seconds=0.2) as service, service.connect() as raw:
        raw.sendall(HEALTH)
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += raw.recv(1 << 16)
        raw.sendall(HEALTH[:20])
        assert read_to_end(raw) == b""


def test_a_handshake_that_does_not_finish_is_dropped(serve: Serve) -> None:
    with serve(head_seconds=0.2) as service:
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection(("127.0.0.1", service.port)) as raw:
                raw.sendall(begun)
                assert read_to_end(raw) == b""


def test_a_request_that_takes_longer_than_its_head_may_is_answered(serve: Serve) -> None:
    """The deadline is of the head: not of the body, nor of the answer, nor of the next request."""
    with serve(head_seconds=1.0, body_seconds=20.0) as service:
        ada = service.owner()
        query = ada.query()
        with service.connect() as raw, service.connect() as clock:
            raw.sendall(ada.head(f"Content-Length: {len(query)}\r\n"))
            assert raw.recv(1000).startswith(b"HTTP/1.1 100")
            assert read_to_end(clock) == b""  # longer than a head may take has passed
            raw.sendall(query)
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")


def test_the_rest_of_a_request_that_was_answered_is_not_waited_for(serve: Serve) -> None:
    """Else a byte now and then of a body that nobody reads would keep a connection for good."""
    with serve(body_seconds=0.2) as service, service.connect() as raw:
        raw.sendall(HEALTH[:-2] + b"Content-Length: 1000000\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += raw.recv(1 << 16)
        raw.sendall(b"x")  # which ends uvicorn's own wait for a next request
        assert read_to_end(raw) == b""


def test_an_answer_that_nobody_takes_is_not_kept() -> None:
    """What the kernels hold of it is still read; the server has let go of the rest."""
    size = 50_000_000
    app = FastAPI()
    app.state.limits = ServiceLimits(body_seconds=0.2, head_seconds=1.0)

    @app.get("/")
    async def large() -> Response:
        return Response(bytes(size))

    server = ServiceServer(app)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = listening.getsockname()
            with socket.create_connection(address) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                taken = len(raw.recv(1))
                with socket.create_connection(address) as clock:
                    assert read_to_end(clock) == b""  # longer than may be waited has passed
                taken += len(read_to_end(raw))
            assert 0 < taken < size
        finally:
            server.should_exit = True
            thread.join()


def test_heads_are_waited_for_seconds_only() -> None:
    assert ServiceLimits().head_seconds <= 10


AMBIGUOUS = [
    "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n",
    "transfer-ENCODING: chunked\r\ncontent-LENGTH: {n}\r\n",
    "Content-Length: {n}\r\nContent-Length: {n}\r\n",
    "Content-Length: {n}\r\nX-Other: 1\r\ncontent-length: {n}\r\n",
    "Content-Length: {n}\r\nContent-Length: 1\r\n",
    "Content-Length: {n}, {n}\r\n",
    "Content-Length: {n}\r\n , {n}\r\n",
    "Content-Length:\r\n {n}\r\n",
    "Content-Length: {n}\nTransfer-Encoding: chunked\n",
]


@pytest.mark.parametrize("lengths", AMBIGUOUS)
def test_a_request_whose_end_can_be_read_in_two_ways_is_refused(
    service: Service, lengths: str
) -> None:
    ada = service.owner()
    query = ada.query()
    said = lengths.format(n=len(query))
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(query), query) if "chunked" in said else query
    with service.connect() as raw:
        raw.sendall(ada.head(said).replace(b"Expect: 100-continue\r\n", b""))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            raw.sendall(body)
        head, _, told = read_to_end(raw).partition(b"\r\n\r\n")
    if head:  # else the refusal was lost with the connection, to a sender who went on sending
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(told)["error"] == "ambiguous-length"
    # It was not answered: nobody took the query.
    assert ada.keys.decrypt(ada.send(query)).labels


def test_a_second_request_in_one_breath_is_looked_at_as_well(service: Service) -> None:
    ada = service.owner()
    hidden = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"
    with service.connect() as raw:
        raw.sendall(HEALTH + hidden)
        answers = read_to_end(raw)
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"ambiguous-length" in answers
    assert ada.label() >= 0


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.sampled_from(
            ["Content-Length: 0", "content-length:0", "Transfer-Encoding: chunked", "X-A: 1"]
        ),
        max_size=4,
    )
)
def test_heads_are_refused_if_and_only_if_they_say_two_lengths(
    service: Service, lines: list[str]
) -> None:
    lengths = sum(line.lower().startswith("content-length") for line in lines)
    chunked = any(line.startswith("Transfer") for line in lines)
    head = "".join(f"{line}\r\n" for line in ["GET /health HTTP/1.1", "Host: localhost", *lines])
    ambiguous = lengths > 1 or (lengths and chunked)
    if sum(line.startswith("Transfer") for line in lines) > 1:
        return  # two codings, which HTTP itself refuses
    with service.connect() as raw:
        raw.sendall(head.encode() + b"\r\n" + (b"0\r\n\r\n" if chunked else b""))
        assert (b" 400 " in raw.recv(100)) == bool(ambiguous)


def test_what_is_no_http_is_answered_with_the_services_own_error(service: Service) -> None:
    with service.connect() as raw:
        raw.sendall(b"SSH-2.0-hello\r\n\r\n")
        head, _, told = read_to_end(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(told)["error"] == "no-http"


# The owner's client ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"url": "localhost:8443"}, "url is"),
        ({"url": "https://"}, "url is"),
        ({"url": "https://localhost:99999"}, "url is"),
        ({"url": "ftp://localhost"}, "url is"),
        ({"url": None}, "url is None"),
        ({"url": "http://localhost:1"}, "insecure_no_tls=True"),
        ({"token": "two words"}, "token holds"),
        ({"token": "bloomseal_x\n"}, "token holds"),
        ({"token": "schlüssel"}, "token holds"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": None}, "timeout is None"),
    ],
)
def test_a_client_names_the_argument_that_is_wrong(
    arguments: dict[str, object], names: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=names) as caught:
        ServiceClient(**({"url": "https://localhost:1"} | arguments))  # type: ignore[arg-type]
    assert "--" not in str(caught.value)
    assert "two words" not in str(caught.value)  # a token is a secret


def test_an_authority_that_cannot_be_used_is_named(tmp_path: Path, service: Service) -> None:
    (tmp_path / "empty.pem").touch()
    for wrong in (tmp_path / "none.pem", str(tmp_path / "empty.pem"), tmp_path):
        with pytest.raises(OSError, match="ca is"):
            ServiceClient(service.url, ca=wrong)
    with ServiceClient(service.url) as stranger, pytest.raises(ServiceError) as caught:
        stranger.plan(CONTRACT)
    assert "ca=" in str(caught.value)
    assert "--ca" not in str(caught.value)


def test_a_server_is_made_only_with_a_certificate_and_its_key(certificates: Certificates) -> None:
    app, files = FastAPI(), certificates
    app.state.limits = ServiceLimits()
    for certificate, key in ((files.certificate, None), (None, files.key)):
        with pytest.raises(ValueError, match="certificate and key belong together"):
            ServiceServer(app, certificate=certificate, key=key)
    with pytest.raises(OSError, match=r"key is .* it holds no key"):
        ServiceServer(app, certificate=files.certificate, key=files.ca)
