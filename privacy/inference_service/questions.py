"""Counts of the questions under tokens that may ask so many."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from filelock import FileLock

from privacy.files import write_durably
from privacy.inference_service.errors import ServiceError, TokenFileError
from privacy.inference_service.tokens import Caller
from privacy.json_text import read_json


class Questions:
    """Counts the questions of tokens that may ask so many.

    **Guarantee.** No more are answered than the token allows, over restarts and by all services
    that share the file together: a question is on the disk before it is evaluated.

    **Not covered.** A service that ends in the middle of a question: it stays counted.

    Parameters
    ----------
    path : Path or None
        Where counts are kept; None for as long as this object lasts.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}

    def asked(self, caller: Caller) -> int:
        """How many a caller has asked."""
        with self._lock:
            return self._read().get(caller.token_id, 0)

    @contextlib.asynccontextmanager
    async def one_of(self, caller: Caller) -> AsyncIterator[None]:
        """Count one more, unless the block raises.

        Raises
        ------
        ServiceError
            If all that the caller may ask have been asked.
        TokenFileError
            If the file is none of counts, or cannot be written.
        """
        if caller.questions is None:
            yield
            return
        await asyncio.to_thread(self._change, caller, caller.questions, 1)
        try:
            yield
        except BaseException:
            # In a thread, for another service may have the file; it goes on if this is cancelled.
            await asyncio.shield(asyncio.to_thread(self._change, caller, caller.questions, -1))
            raise

    def check(self) -> None:
        """Raise a ``TokenFileError`` where counts could not be kept."""
        with self._lock, self._kept():
            pass

    def _change(self, caller: Caller, most: int, step: int) -> None:
        with self._lock, self._kept():
            self._count(caller, most, step)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Read the counts, and write what the block makes of them, unless it raises."""
        if self._path is None:
            yield
            return
        try:
            with FileLock(f"{self._path}.lock", mode=0o600):
                self._asked = self._read()
                yield
                write_durably(self._path, json.dumps(self._asked).encode())
        except OSError as error:
            raise TokenFileError(
                f"{self._path} cannot be written ({error.strerror}), and it counts the questions "
                "of invitations; keep tokens in a folder that the service may write into"
            ) from error

    def _count(self, caller: Caller, most: int, step: int) -> None:
        asked = self._asked.get(caller.token_id, 0) + step
        if asked > most:
            raise ServiceError(
                "used-up",
                403,
                f"the {most} questions of this invitation have been asked",
                "ask the operator for another",
            )
        self._asked[caller.token_id] = asked

    def _read(self) -> dict[str, int]:
        if self._path is None:
            return self._asked
        try:
            content = read_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise TokenFileError(f"{self._path} is not a file of counts: {error}") from error
        if not isinstance(content, dict) or not all(
            type(count) is int and count >= 0 for count in content.values()
        ):
            raise TokenFileError(f"{self._path} is not a file of counts")
        return dict(content)
