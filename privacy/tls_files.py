"""Certificates with their keys, from files: wrong ones are named before anybody calls."""

import os
import ssl
from pathlib import Path


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have a context show a certificate; nobody is asked for a passphrase.

    Parameters
    ----------
    context : SSLContext
    certificate : path
        PEM, with its chain.
    key : path
        The certificate's, PEM and not encrypted.

    Raises
    ------
    OSError
        If a file cannot be read, or holds something else; the message names the parameter.
    """
    _check_readable("certificate", certificate)
    _check_readable("key", key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise _unusable("certificate", certificate, "it holds no certificate") from error
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except _EncryptedError as error:
        raise _unusable("key", key, "it is encrypted") from error
    except ssl.SSLError as error:
        reason = "it holds no key"
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"it is not that of {os.fspath(certificate)!r}"
        elif error.reason:  # OpenSSL's words, such as EE_KEY_TOO_SMALL
            reason = error.reason.replace("_", " ").lower()
        raise _unusable("key", key, reason) from error


class _EncryptedError(Exception):
    """OpenSSL wants a passphrase."""


def _refuse() -> str:
    raise _EncryptedError


def _check_readable(name: str, file: Path) -> None:
    try:
        is_file = Path(file).is_file()  # opening a pipe would wait for its writer
        if is_file:
            Path(file).open("rb").close()
    except OSError as error:
        raise _unusable(name, file, str(error.strerror)) from error
    if not is_file:
        raise _unusable(name, file, "it is not there, or no file")


def _unusable(name: str, file: Path, reason: str) -> OSError:
    give = "a certificate with its chain" if name == "certificate" else "its key, not encrypted"
    return OSError(
        f"{name} is {os.fspath(file)!r}, which cannot be used: {reason}; give {give}, PEM"
    )
