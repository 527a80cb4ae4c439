"""Bearer tokens: who may ask, and who may read the metrics."""

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from filelock import FileLock

from privacy.arguments import convert, lifetime_hours, number, shown, text, whole
from privacy.files import write_durably
from privacy.inference_service.errors import TokenFileError
from privacy.json_text import read_json

Role = Literal["owner", "operator"]

_PREFIX = "bloomseal_"
_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROLE = re.compile("owner|operator")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Caller:
    """The holder of a token.

    Attributes
    ----------
    name : str
    role : {"owner", "operator"}
        An owner sends keys and asks; an operator reads metrics.
    token_id : str
        Distinguishes the tokens that one name had, one after the other; it is no secret.
    shared : bool
        Whether many people may ask under this name, who must leave room for each other.
    questions : int or None
        How many questions may be asked under the token, for an invitation that is limited so.
    """

    name: str
    role: Role
    token_id: str = ""
    shared: bool = False
    questions: int | None = None

    def __post_init__(self) -> None:
        if self.questions is not None:
            convert(self, "questions", whole, least=1)


class Authentication(Protocol):
    """Recognises callers."""

    def caller(self, token: str) -> Caller | None:
        """The holder of a token; None if it is nobody's."""


class InsecureNoAuthentication:
    """Everybody who can reach the service is one and the same owner; nobody reads metrics."""

    def caller(self, token: str) -> Caller:
        """The one owner, whatever the token."""
        return Caller("anybody", "owner", shared=True)


@dataclass(frozen=True)
class _Entry:
    name: str
    role: Role
    sha256: str
    expires: float | None = None  # seconds since 1970
    questions: int | None = None

    def __post_init__(self) -> None:
        for name, pattern in (("name", _NAME), ("role", _ROLE), ("sha256", _SHA256)):
            value = text(name, getattr(self, name))
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is {shown(value)}, which is none")
        if self.expires is not None:
            convert(self, "expires", number)
        if self.questions is not None:
            convert(self, "questions", whole, least=1)

    @property
    def caller(self) -> Caller:
        return Caller(self.name, self.role, self.sha256[:16], questions=self.questions)


class TokenFile:
    """Tokens in a file that only its owner can read, as hashes.

    Its methods raise :class:`TokenFileError` if the file or a name cannot be used.

    **Guarantee.** Whoever reads the file cannot act for anybody: tokens have 256 random bits, of
    which the file holds SHA-256. Hashes are compared in constant time.

    **Assumptions.** Tokens travel over TLS.

    **Not covered.** A token that its holder gives away; remove it.

    Parameters
    ----------
    path : path-like
        It need not exist yet. Changes are seen at the next request, without a restart.
    clock : callable
        Seconds since 1970.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: tuple[int, int, int] | None = None
        self._entries: tuple[_Entry, ...] = ()

    @property
    def questions_file(self) -> Path:
        """Where services count the questions of tokens that may ask so many."""
        return self._path.with_name(f"{self._path.name}.questions")

    def add(
        self,
        name: str,
        *,
        role: Role = "owner",
        hours: float | None = None,
        questions: int | None = None,
    ) -> str:
        """Make a token, of which only the hash is stored, for a name that has none.

        Parameters
        ----------
        name : str
        role : {"owner", "operator"}
        hours : float, optional
            After which nobody knows it any more; by default it lasts until it is removed.
        questions : int, optional
            How many may be asked under it, in all.
        """
        expires = None
        if hours is not None:
            expires = self._clock() + 3600 * lifetime_hours("hours", hours)
        if questions is not None:
            questions = whole("questions", questions, least=1)
        if not _NAME.fullmatch(name):
            raise TokenFileError(
                f"{name!r} is not a name for a token; use up to 64 letters, digits, '.', '_', '-'"
            )
        with self._changing():
            entries = self._load()
            if any(entry.name == name for entry in entries):
                raise TokenFileError(f"{name!r} has a token; remove it first, or take another name")
            token = _PREFIX + secrets.token_urlsafe(_BYTES)
            self._write((*entries, _Entry(name, role, _hash(token), expires, questions)))
        return token

    def remove(self, name: str) -> None:
        """Revoke the token of a name."""
        with self._changing():
            entries = self._load()
            left = tuple(entry for entry in entries if entry.name != name)
            if len(left) == len(entries):
                raise TokenFileError(f"{name!r} has no token in {self._path}")
            self._write(left)

    def callers(self) -> list[Caller]:
        """The holders of tokens."""
        return [entry.caller for entry in self._load()]

    def caller(self, token: str) -> Caller | None:
        """The holder of a token; None if it is nobody's, or has expired."""
        digest, caller = _hash(token), None
        for entry in self._load():  # to the end: the time reveals nothing of the place
            if hmac.compare_digest(entry.sha256, digest):
                over = entry.expires is not None and entry.expires <= self._clock()
                caller = None if over else entry.caller
        return caller

    def _changing(self) -> FileLock:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(f"{self._path}.lock", mode=0o600)

    def _write(self, entries: tuple[_Entry, ...]) -> None:
        content = {"tokens": [asdict(entry) for entry in entries]}
        write_durably(self._path, json.dumps(content, indent=2).encode())

    def _load(self) -> tuple[_Entry, ...]:
        with self._lock:
            try:
                status = self._path.stat()
            except FileNotFoundError:
                return ()
            if os.name == "posix" and status.st_mode & 0o077:
                raise TokenFileError(f"{self._path} is open to others; chmod 600 {self._path}")
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
            if state != self._read_at:
                try:
                    read = read_json(self._path.read_text())["tokens"]
                    self._entries = tuple(_Entry(**entry) for entry in read)
                except (OSError, ValueError, LookupError, TypeError) as error:
                    raise TokenFileError(
                        f"{self._path} is not a file of tokens: {error}"
                    ) from error
                self._read_at = state
            return self._entries


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
