"""The evaluator in a process of its own: SEAL never releases Python's lock, and may crash.

The child is a program of the project's own that compiles its model and calls
:func:`serve_evaluations`; :class:`EvaluatorProcess` starts it and speaks with it in frames over
its standard streams. Public material and queries go in, answers come out; there is no frame for
a secret key.
"""

import contextlib
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from privacy.inference._wire import MessageError
from privacy.inference.compiled import CompiledModel
from privacy.inference.evaluator import Evaluator
from privacy.inference.plan import Plan

_LARGEST_FRAME = 1 << 28  # bytes
_MATERIAL, _QUERY = b"M", b"Q"
_DONE, _REFUSED = b"+", b"-"
_LEAVE_SECONDS = 30.0


class EvaluatorFailed(RuntimeError):
    """The evaluator's process ended, or was ended for taking too long."""


class EvaluatorProcess:
    """An evaluator behind a process boundary, for one data owner after the other.

    Parameters
    ----------
    command : sequence of str
        Starts a program that calls :func:`serve_evaluations` and writes nothing else to its
        standard output.
    environment : mapping of str to str, optional
        Its environment; by default this process's own.
    folder : Path, optional
        Where it starts; by default here.
    timeout : float
        Seconds that one step (compiling, reading keys, one answer) may take.

    Attributes
    ----------
    plan : Plan
        Of the model that it holds.

    Raises
    ------
    EvaluatorFailed
        If it ends before it has given its plan, with its last words.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout: float = 300.0,
    ) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env=environment,
        )
        try:
            self.plan = Plan.from_json(self._exchange().decode())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def use_keys(self, material: bytes) -> None:
        """Work for the owner of this public material from now on, and forget the one before.

        Raises
        ------
        MessageError
            If it is not public material of this plan.
        EvaluatorFailed
            If the process ended over it.
        """
        self._ask(_MATERIAL, material)

    def evaluate(self, query: bytes) -> tuple[bytes, float]:
        """Answer a query of the present owner.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took, its masking included.

        Raises
        ------
        MessageError
            If it is not a query of this plan and owner, or was answered before.
        EvaluatorFailed
            If the process ended over it.
        """
        reply = self._ask(_QUERY, query)
        (seconds,) = struct.unpack_from(">d", reply)
        return reply[8:], seconds

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and did not read all
            cast(BinaryIO, self._process.stdin).close()
        try:
            self._process.wait(timeout=_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        cast(BinaryIO, self._process.stdout).close()
        self._errors.close()

    def _ask(self, kind: bytes, content: bytes) -> bytes:
        if len(content) >= _LARGEST_FRAME:
            raise MessageError(f"a message of {len(content):,} bytes is larger than any")
        reply = self._exchange(kind, content)
        if reply[:1] == _REFUSED:
            raise MessageError(reply[1:].decode())
        return reply[1:]

    def _exchange(self, *parts: bytes) -> bytes:
        """Write a frame of these parts, if there are any, and read one; in time."""
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.start()
        try:
            if parts:
                _write_frame(cast(BinaryIO, self._process.stdin), *parts)
            frame = _read_frame(cast(BinaryIO, self._process.stdout))
        except BrokenPipeError as error:
            raise self._last_words() from error
        finally:
            timer.cancel()
        if frame is None:
            raise self._last_words()
        return frame

    def _last_words(self) -> EvaluatorFailed:
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return EvaluatorFailed(f"the evaluator's process ended (code {code}): {words[-2000:]}")


def serve_evaluations(compiling: Callable[[], CompiledModel]) -> None:
    """Be the evaluator's process: answer what comes over the standard input until it ends.

    Whatever else this process prints from now on goes to its standard error.

    Parameters
    ----------
    compiling : callable
        Gives the model.

    Raises
    ------
    ValueError
        If the frames are not those of :class:`EvaluatorProcess`.
    """
    # Answers leave through the original standard output; whatever a library prints does not.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    compiled = compiling()
    compiled.encoded.prepare()  # what cannot be encoded fails here, before anyone makes keys
    _write_frame(answers, compiled.plan.to_json().encode())
    evaluator: Evaluator | None = None
    while (frame := _read_frame(sys.stdin.buffer)) is not None:
        kind, content = frame[:1], frame[1:]
        begun = time.perf_counter()
        try:
            if kind == _MATERIAL:
                evaluator = None  # the keys before go, whatever becomes of these
                evaluator = Evaluator(compiled, content)
                reply = b""
            elif kind == _QUERY:
                if evaluator is None:
                    raise MessageError("a query came before its public material")
                reply = evaluator.evaluate(content)
                reply = struct.pack(">d", time.perf_counter() - begun) + reply
            else:
                raise ValueError(f"a frame of kind {kind!r} is not known")
        except MessageError as error:
            _write_frame(answers, _REFUSED, str(error).encode())
        else:
            _write_frame(answers, _DONE, reply)


def _write_frame(stream: BinaryIO, *parts: bytes) -> None:
    """Write one frame: its length, then its bytes."""
    stream.write(struct.pack(">I", sum(map(len, parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def _read_frame(stream: BinaryIO) -> bytes | None:
    """Read one frame; None at the end.

    Raises
    ------
    ValueError
        If a frame is larger than any that is meant.
    """
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    if size > _LARGEST_FRAME:
        raise ValueError(f"a frame declares {size:,} bytes, more than any has")
    body = stream.read(size)
    return body if len(body) == size else None
