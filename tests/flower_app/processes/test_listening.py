"""Where the app's services listen."""

import re
import socket

import pytest

from flower_app.errors import SettingError
from flower_app.processes.listening import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_every_address_of_loopback_is_listened_on(host: str) -> None:
    with listen(host, 0) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port), timeout=30):
            pass


def test_a_name_of_both_is_listened_to_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0] for host in ("::1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with listen("localhost", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "port"), [("a..b", 0), ("192.0.2.1", 0), ("127.0.0.1", 70_000), ("127.0.0.1", -1)]
)
def test_what_cannot_be_listened_on_is_refused_in_a_sentence(host: str, port: int) -> None:
    with pytest.raises(SettingError, match=re.escape(f"cannot listen on {host}, port {port}: ")):
        listen(host, port)


def test_a_port_that_is_taken_is_refused() -> None:
    with listen("::1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"cannot listen on ::1, port {port}: "):
            listen("::1", port)
