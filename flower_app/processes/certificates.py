"""Certificates and node keys for a deployment on one machine, and for parties that share.

Several machines of a deployment make theirs with ``openssl`` and ``ssh-keygen``: see
``docs/how-to/deployment.md``.
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = timedelta(days=2)
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True)
class Certificates:
    """A SuperLink's certificate, and its authority's.

    Attributes
    ----------
    ca : Path
        The certificate of the authority; public.
    certificate, key : Path
        The SuperLink's own; the key is mode 0600.
    """

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class NodeKey:
    """A SuperNode's identity.

    Attributes
    ----------
    private, public : Path
        In OpenSSH's format, as Flower reads them; the private one is mode 0600.
    """

    private: Path
    public: Path


def make_certificates(folder: Path, host: str = "localhost") -> Certificates:
    """Make an authority and a certificate for this machine's loopback, valid for two days.

    The authority's key is not stored, so nobody can sign with it again.

    Parameters
    ----------
    folder : Path
        For the files; made if it is missing.
    host : str
        Named in the certificate beside ``localhost`` and 127.0.0.1: another address of loopback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hosts = [*dict.fromkeys(("localhost", "127.0.0.1", host))]
    authority = _Authority("bloomseal demonstration authority", _LIFETIME)
    server, server_key = authority.sign("localhost", hosts, [ExtendedKeyUsageOID.SERVER_AUTH])
    made = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    made.ca.write_bytes(authority.certificate)
    made.certificate.write_bytes(server)
    _write_secret(made.key, server_key)
    return made


def make_party_certificates(
    parties: Mapping[str, tuple[tuple[Path, Path, Path], str | None]], *, lifetime: timedelta
) -> None:
    """Make an authority and certificates with which each party calls and listens: mutual TLS.

    The authority's key is not stored: it signs these parties' certificates and no others.

    Parameters
    ----------
    parties : mapping of str to (files, host)
        By the common name: files for the certificate, its key and the authority's certificate,
        and the host name or IP address where the party listens, or None.
    lifetime : timedelta

    Raises
    ------
    ValueError
        If a host is no name.
    """
    authority = _Authority("bloomseal authority for shared inference", lifetime)
    usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signed = {
        name: authority.sign(name, [] if host is None else _also_loopback(host), usage)
        for name, (_, host) in parties.items()
    }
    for name, (files, _) in parties.items():
        certificate, key = signed[name]
        files[0].write_bytes(certificate)
        _write_secret(files[1], key)
        files[2].write_bytes(authority.certificate)


class _Authority:
    """Signs certificates as long as this object lives."""

    def __init__(self, name: str, lifetime: timedelta) -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())
        self._name, self._lifetime = _name(name), lifetime
        self.certificate = (
            _certificate(self._name, self._name, self._key, lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )
        """PEM."""

    def sign(
        self, name: str, hosts: Sequence[str], usage: Sequence[x509.ObjectIdentifier]
    ) -> tuple[bytes, bytes]:
        """A certificate and its key, PEM, for whoever listens at ``hosts``."""
        key = ec.generate_private_key(ec.SECP384R1())
        builder = (
            _certificate(_name(name), self._name, key, self._lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return (
            signed.public_bytes(serialization.Encoding.PEM),
            _private_bytes(key, serialization.PrivateFormat.PKCS8),
        )


def make_node_key(folder: Path, name: str) -> NodeKey:
    """Make a SuperNode's key pair, on the curve that Flower asks for (P-384).

    Parameters
    ----------
    folder : Path
        For the files; made if it is missing.
    name : str
        The files' name: ``name`` and ``name.pub``, as ``ssh-keygen`` names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    made = NodeKey(folder / name, folder / f"{name}.pub")
    _write_secret(made.private, _private_bytes(key, serialization.PrivateFormat.OpenSSH))
    made.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    return made


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _also_loopback(host: str) -> list[str]:
    return [host, "127.0.0.1"] if host == "localhost" else [host]


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(
                f"host is {host!r}; give a name of ASCII letters, digits, hyphens and dots "
                "(xn--... for one with others), or an IP address, without a port"
            ) from None
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
