"""Certificates and keys from files: all that makes no pair is refused, by name, at once."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from flower_app.processes.certificates import make_certificates
from privacy.shared_inference import tls_context
from privacy.tls_files import load_certificate

WRONG_PAIRS = [
    ("junk", "server.key", "certificate is '.*/junk', .* it holds no certificate"),
    ("server.key", "server.crt", "certificate is '.*/server.key', .* it holds no certificate"),
    ("none", "server.key", "certificate is '.*/none', .* it is not there"),
    ("server.crt", "none", "key is '.*/none', .* it is not there"),
    ("server.crt", "", "key is '.*', .* it is not there, or no file"),
    ("server.crt", "x" * 300, "key is '.*', .*File name too long"),
    ("server.crt", "junk", "key is '.*/junk', .* it holds no key"),
    ("server.crt", "server.crt", "key is '.*/server.crt', .* it holds no key"),
    ("server.crt", "another/server.key", "key is '.*/another/server.key', .* not that of '.*crt'"),
    ("server.crt", "encrypted.key", "key is '.*/encrypted.key', .* it is encrypted"),
]


def tls_files(folder: Path) -> Path:
    """A folder with a certificate and its key, and with what makes no pair with them."""
    made = make_certificates(folder)
    make_certificates(folder / "another")
    (folder / "junk").write_text("no PEM")
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    form, locked = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    encrypted = key.private_bytes(serialization.Encoding.PEM, form, locked)
    (folder / "encrypted.key").write_bytes(encrypted)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls_files(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(("certificate", "key", "words"), WRONG_PAIRS)
def test_files_that_make_no_pair_are_refused_by_name(
    certificate: str, key: str, words: str, files: Path
) -> None:
    with pytest.raises(OSError, match=words):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files / certificate, files / key)
    for listens in (True, False):
        with pytest.raises(OSError, match=words):
            tls_context(files / certificate, files / key, files / "ca.crt", listens=listens)
