"""``python -m flower_app population FILE KEY.pub ...``: lists a deployment's clients, for good."""

import argparse
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from flower_app.errors import SettingError, counted
from strategies import Population, key_identity


def add_command(commands: Any) -> None:
    """Add ``population`` to the app's command line."""
    parser = commands.add_parser(
        "population",
        description="Reads the SuperNodes' public keys and writes the file for the setting "
        "population-file. Then only nodes with these keys are clients, and each key is one client, "
        "however often it registers.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument(
        "keys", type=Path, nargs="+", metavar="KEY.pub", help="as given to flwr supernode register"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the file.

    Raises
    ------
    SettingError
        If a key cannot be read, or two are the same, or the file is there already.
    """
    if options.file.exists():
        raise SettingError(
            f"{options.file} is there already; a population is frozen for its ledger: write a new "
            "population to a new file, with a ledger of its own"
        )
    identities: dict[str, Path] = {}
    for path in options.keys:
        identity = _identity(path)
        if identity in identities:
            raise SettingError(f"{path} holds the same key as {identities[identity]}; give it once")
        identities[identity] = path
    Population(tuple(identities)).save(options.file)
    print(f"{options.file} lists {counted(len(identities), 'client')}.")
    return 0


def _identity(path: Path) -> str:
    try:
        written = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingError(f"{path} is not there; give the public keys' files") from error
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from error
    try:
        key = serialization.load_ssh_public_key(written)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path} is not a public key of OpenSSH's format: {error}") from error
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key_identity(key.public_bytes(serialization.Encoding.PEM, form))
