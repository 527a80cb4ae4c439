"""An owner's secret keys at rest: one encrypted file."""

import base64
import json
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from filelock import FileLock, Timeout

from privacy.arguments import text
from privacy.files import write_durably
from privacy.inference_service.errors import KeyFileError, KeyFileInUseError
from privacy.json_text import read_json

_MAGIC = b"bloomseal keys 1\n"
_HEAD = struct.Struct(f"<{len(_MAGIC)}sBBB16s12s")
_COST, _BLOCK, _PARALLEL = 17, 8, 1  # 128 MB; RFC 7914 and OWASP's recommendation of 2023


@dataclass(frozen=True)
class StoredKeys:
    """The content of a :class:`KeyFile`.

    The keys' name at the service, the digest of their plan in hexadecimal, and
    ``DataOwner.secret_state()``.
    """

    key_id: str
    plan: str
    state: bytes


class KeyFile:
    """Secret keys in a file that only its owner can read, encrypted under a passphrase.

    AES-256-GCM under a key from scrypt (RFC 7914; N = 2^17, r = 8, p = 1). One session at a time
    may use the file: use it as a context manager.

    **Guarantee.** Whoever gets the file learns nothing of the keys without the passphrase, and
    cannot alter it unnoticed.

    **Assumptions.** The passphrase is hard to guess.

    **Not covered.** An older copy of the file put in its place: the service then refuses the
    queries whose numbers it has seen. Memory of the running process.

    The file need not exist yet. A passphrase that is empty or no text, and a file or folder that
    cannot be used, raise :class:`KeyFileError`; a file that is in use elsewhere
    :class:`KeyFileInUseError` on entry.
    """

    def __init__(self, path: str | os.PathLike[str], passphrase: str) -> None:
        if not passphrase:
            raise KeyFileError("the passphrase is empty; give one, or use one-time keys")
        self._path = Path(path)
        try:
            self._passphrase = passphrase.encode()
        except UnicodeEncodeError:
            # Not chained: the error holds the passphrase.
            raise KeyFileError(
                "the passphrase holds bytes that are no UTF-8 text; give one that is typed in a "
                "UTF-8 locale, or of plain letters"
            ) from None
        self._salt = secrets.token_bytes(16)
        self._cipher: AESGCM | None = None
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        # One for each time that it is entered, so that they exclude each other; and not of this
        # thread: another may leave.
        lock = FileLock(f"{self._path}.lock", mode=0o600, thread_local=False)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            remedy = "wait for it, or use another file, or one-time keys"
            raise KeyFileInUseError(f"another session uses {self._path}; {remedy}") from error
        except OSError as error:
            raise KeyFileError(
                f"{self._path} cannot be used: {error.strerror}; name a file in a folder of yours"
            ) from error
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def load(self) -> StoredKeys | None:
        """The saved keys; None if there are none.

        Another passphrase, a damaged file, and one that is open to others are refused.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be read: {error.strerror}") from error
        if os.name == "posix" and self._path.stat().st_mode & 0o077:
            raise KeyFileError(f"{self._path} is open to others; chmod 600 {self._path}")
        if len(content) < _HEAD.size or not content.startswith(_MAGIC):
            raise KeyFileError(f"{self._path} is not a file of keys; remove it or name another")
        head = content[: _HEAD.size]
        _, cost, block, parallel, self._salt, nonce = _HEAD.unpack(head)
        if (cost, block, parallel) != (_COST, _BLOCK, _PARALLEL):
            raise self._of_another_release()
        self._cipher = self._derived()
        try:
            stored = read_json(self._cipher.decrypt(nonce, content[_HEAD.size :], head))
        except InvalidTag as error:
            self._cipher = None
            raise KeyFileError(
                f"{self._path} does not open: another passphrase, or a damaged file. Without the "
                "passphrase the keys are lost: remove the file, and new ones are made"
            ) from error
        except ValueError as error:
            raise self._of_another_release() from error
        try:
            name, plan = text("key_id", stored["key_id"]), text("plan", stored["plan"])
            return StoredKeys(name, plan, base64.b64decode(stored["state"]))
        except (LookupError, TypeError, ValueError) as error:
            raise self._of_another_release() from error

    def save(self, keys: StoredKeys) -> None:
        """Put keys in the file, in place of those before; a failed write leaves it as it was."""
        if self._cipher is None:
            self._cipher = self._derived()
        nonce = secrets.token_bytes(12)
        head = _HEAD.pack(_MAGIC, _COST, _BLOCK, _PARALLEL, self._salt, nonce)
        content = {
            "key_id": keys.key_id,
            "plan": keys.plan,
            "state": base64.b64encode(keys.state).decode(),
        }
        sealed = self._cipher.encrypt(nonce, json.dumps(content).encode(), head)
        try:
            write_durably(self._path, head + sealed)
        except OSError as error:
            raise KeyFileError(f"{self._path} cannot be written: {error.strerror}") from error

    def _of_another_release(self) -> KeyFileError:
        return KeyFileError(f"{self._path} was written by another release; remove it")

    def _derived(self) -> AESGCM:
        derive = Scrypt(salt=self._salt, length=32, n=1 << _COST, r=_BLOCK, p=_PARALLEL)
        return AESGCM(derive.derive(self._passphrase))
