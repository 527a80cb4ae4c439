"""Where a client keeps its part of the protocol between the stages of a round."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock
from flwr.app import ConfigRecord, Context

from privacy.files import write_durably
from privacy.secure_aggregation.errors import UnreadableStateError

_KEY = "secure-aggregation"
_FILE = "secure-aggregation.state"
_IDENTITY_BYTES = 32
_DIGEST_BYTES = 32


@dataclass
class Remembered:
    """What a client remembers; ``None`` before the first message."""

    identity: bytes | None = None
    state: bytes | None = None


class ClientMemory(Protocol):
    """Keeps a client's state. It holds secrets and stays with the client."""

    def locked(self, context: Context) -> AbstractContextManager[Remembered]:
        """The state of this client, for the length of a ``with`` block.

        Nobody else holds it meanwhile. It is kept as the block leaves it, also by an exception,
        before anything can be sent that follows from it.
        """


class ContextMemory:
    """In Flower's ``Context.state``: for simulations, and for an honest-but-curious server.

    Flower keeps it in the SuperNode's memory: a SuperNode that restarts has left its round. A
    server that sends one client two messages at once can have both answered from the same state,
    and so gather both kinds of share for one node: against a malicious server use ``FolderMemory``.
    """

    @contextmanager
    def locked(self, context: Context) -> Iterator[Remembered]:
        """See ``ClientMemory.locked``; ``UnreadableStateError`` if the app has written into it."""
        remembered = _from_record(context.state.get(_KEY))
        try:
            yield remembered
        finally:
            if remembered.identity is not None and remembered.state is not None:
                context.state[_KEY] = ConfigRecord(
                    {"identity": remembered.identity, "state": remembered.state}
                )


@dataclass(frozen=True)
class FolderMemory:
    """In a file of the node's own, behind a lock, synchronised to disk before each answer.

    Parameters
    ----------
    folder : path-like
        A folder that only this node uses. Do not restore an older copy of it: a client whose
        state is rolled back can be made to open twice.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise TypeError(f"folder is {self.folder!r}; give the path of a folder")
        if not os.fspath(self.folder):
            raise ValueError("folder is empty; give the path of a folder")
        object.__setattr__(self, "folder", Path(self.folder))

    @contextmanager
    def locked(self, context: Context) -> Iterator[Remembered]:
        """See ``ClientMemory.locked``; ``UnreadableStateError`` names the file and the remedy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _FILE
        with FileLock(path.with_suffix(".lock")):
            remembered = _read(path)
            try:
                yield remembered
            except UnreadableStateError as error:
                raise _unreadable(path) from error
            finally:
                _write(path, remembered)


def _from_record(record: object) -> Remembered:
    if record is None:
        return Remembered()
    if isinstance(record, ConfigRecord) and set(record) == {"identity", "state"}:
        identity, state = record["identity"], record["state"]
        if isinstance(identity, bytes) and isinstance(state, bytes):
            return Remembered(identity, state)
    raise UnreadableStateError(
        f"context.state[{_KEY!r}] is not what secure aggregation kept there: the app has written "
        "over it. This client takes part in no further round of this run; let the app use another "
        "name"
    )


def _read(path: Path) -> Remembered:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Remembered()
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest or len(payload) <= _IDENTITY_BYTES:
        raise _unreadable(path)
    return Remembered(payload[:_IDENTITY_BYTES], payload[_IDENTITY_BYTES:])


def _unreadable(path: Path) -> UnreadableStateError:
    return UnreadableStateError(
        f"{path} was written by another version of secure aggregation, or is damaged, and this "
        "client takes part in no round; let the version that wrote it finish its run, or move the "
        "file away and begin anew: the sums that it took part in are forgotten then "
        "(docs/how-to/secure-aggregation.md)"
    )


def _write(path: Path, remembered: Remembered) -> None:
    if remembered.identity is None or remembered.state is None:
        return  # nothing happened yet
    payload = remembered.identity + remembered.state
    write_durably(path, hashlib.sha256(payload).digest() + payload)
