"""A party's folder: all that it needs to take part in a session of inference in shares."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from flower_app.errors import CommandFailedError
from privacy.shared_inference import Party, Plan, tls_context
from privacy.shared_inference.errors import MessageError

NAMES = {
    Party.ALICE: "alice",
    Party.BOB: "bob",
    Party.DATA_OWNER: "data-owner",
    Party.MODEL_OWNER: "model-owner",
}
"""Of folders, and on certificates."""


@dataclass(frozen=True)
class PartyFolder:
    """A folder that ``provider begin`` made for somebody; secret, as a whole."""

    path: Path

    @property
    def material(self) -> Path:
        """Where files of material are put."""
        return self.path / "material"

    @property
    def plan_file(self) -> Path:
        """The public plan."""
        return self.path / "plan"

    @property
    def letter_file(self) -> Path:
        """The provider's letter."""
        return self.path / "letter"

    @property
    def model_file(self) -> Path:
        """A worker's share of the model."""
        return self.path / "model"

    @property
    def tls_files(self) -> tuple[Path, Path, Path]:
        """Certificate, key, and the authority's certificate."""
        return self.path / "tls.crt", self.path / "tls.key", self.path / "ca.crt"

    def plan(self) -> Plan:
        """The plan; a damaged one is a CommandFailedError."""
        return read_plan(self.plan_file)

    def letter(self) -> bytes:
        """The provider's letter."""
        return read_file(self.letter_file, "`provider begin` makes it")

    def model(self) -> bytes:
        """A worker's share of the model."""
        return read_file(self.model_file, "the model owner makes it with `share model`")

    def context(self, *, listens: bool) -> ssl.SSLContext:
        """Mutual TLS with the folder's certificate; a damaged one is a CommandFailedError."""
        try:
            return tls_context(*self.tls_files, listens=listens)
        except OSError as error:  # ssl.SSLError too
            raise CommandFailedError(
                f"the certificates in {self.path} cannot be used ({error}); copy the folder again "
                "from the provider"
            ) from error


def read_plan(path: Path) -> Plan:
    """A plan from a file.

    Raises
    ------
    CommandFailedError
        If there is none, or it is damaged.
    """
    try:
        return Plan.from_bytes(read_file(path, "the model owner makes it with `share plan`"))
    except MessageError as error:
        raise CommandFailedError(f"{path}: {error}") from error


def read_file(path: Path, remedy: str) -> bytes:
    """A file's content; ``remedy`` says where a missing one comes from."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailedError(f"{path} cannot be read ({error.strerror}); {remedy}") from error


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone may read.

    Raises
    ------
    CommandFailedError
        If it is there already, or cannot be written; then nothing of it is left.
    """
    try:
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise CommandFailedError(f"{path} cannot be written: {error.strerror}") from error
