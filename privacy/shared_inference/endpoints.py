"""Who is at the other end: connections with mutual TLS, whose certificates name the parties.

What crosses is encrypted and authenticated already, for one question. TLS says who speaks before
there is one, and hides where messages begin and end. A certificate's common name is its party's:
``alice``, ``bob`` or ``data-owner``.
"""

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from privacy.arguments import convert, shown, whole
from privacy.shared_inference.errors import LinkError
from privacy.shared_inference.link import Link
from privacy.tls_files import load_certificate

MAX_PORT = 65_535


@dataclass(frozen=True)
class Address:
    """Where a party listens."""

    host: str
    port: int

    def __post_init__(self) -> None:
        convert(self, "port", whole, least=0, most=MAX_PORT)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """An address written as ``host:port``.

        Raises
        ------
        ValueError
            If it is none.
        """
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
            raise ValueError(f"{shown(text)} is no address; give host:port, such as localhost:7441")
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def tls_context(certificate: Path, key: Path, authority: Path, *, listens: bool) -> ssl.SSLContext:
    """Mutual TLS: who is here has ``certificate`` and ``key``, who is there one of ``authority``.

    Parameters
    ----------
    certificate, key, authority : path
        PEM files. ``authority`` signs the parties' certificates and no others.
    listens : bool
        Whether this side waits for the other.

    Raises
    ------
    OSError
        If a file cannot be read, or holds something else.
    """
    side = ssl.PROTOCOL_TLS_SERVER if listens else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    load_certificate(context, certificate, key)
    return context


def call(
    address: Address, name: str, context: ssl.SSLContext, *, timeout: float, max_bytes: int
) -> Link:
    """A link to the party ``name``, which listens at an address.

    Raises
    ------
    LinkError
        If nobody listens there, or somebody else.
    """
    where = f"{name} at {address}"
    try:
        connection = socket.create_connection((address.host, address.port), timeout)
    except (OSError, UnicodeError) as error:
        raise LinkError(f"{where} cannot be reached: {error}; is it running?") from error
    try:
        secured = context.wrap_socket(connection, server_hostname=address.host)
        _check_name(secured, name)
    except (OSError, ValueError) as error:
        connection.close()
        raise LinkError(f"{where} is refused: {error}") from error
    return Link(secured, timeout=timeout, max_bytes=max_bytes)


def stranger(
    connection: socket.socket, context: ssl.SSLContext, *, timeout: float
) -> ssl.SSLSocket:
    """Somebody who has called, of whom nothing is known yet; :func:`welcome` waits for more.

    Raises
    ------
    LinkError
        If it is gone.
    """
    try:
        connection.settimeout(timeout)
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:
        connection.close()
        raise LinkError(f"a caller was refused: {error}") from error


def welcome(caller: ssl.SSLSocket) -> str:
    """The name on a stranger's certificate, whose connection is secured then.

    Raises
    ------
    LinkError
        If it shows no certificate of the authority's, or says nothing.
    """
    try:
        caller.do_handshake()
        return _name(caller)
    except (OSError, ValueError) as error:
        caller.close()
        raise LinkError(f"a caller was refused: {error}") from error


def _check_name(secured: ssl.SSLSocket, name: str) -> None:
    own = _name(secured)
    if own != name:
        secured.close()
        raise ConnectionError(f"its certificate is that of {shown(own)}")


def _name(secured: ssl.SSLSocket) -> str:
    """The common name of the other side's certificate, which was verified."""
    certificate = secured.getpeercert() or {}
    subject: tuple[tuple[tuple[str, str], ...], ...] = certificate.get("subject", ())  # type: ignore[assignment]
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) != 1:
        raise ConnectionError("its certificate has no common name")
    return names[0]
