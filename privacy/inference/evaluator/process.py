"""The evaluator in a process of its own: SEAL never releases Python's lock, and may crash.

The child is a program of the project's own that compiles its model and calls
:func:`serve_evaluations`; :class:`EvaluatorProcess` starts it and speaks with it in frames over
its standard streams. Public material and queries go in, answers come out; there is no frame for
a secret key.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self, cast

from privacy.inference.compile import CompiledModel
from privacy.inference.errors import EvaluatorFailedError, EvaluatorTimeoutError, MessageError
from privacy.inference.evaluator.evaluator import Evaluator
from privacy.inference.evaluator.memory import evaluation_room, limit_memory
from privacy.inference.plan import Plan

_LARGEST_FRAME = 1 << 28  # bytes
_MATERIAL, _QUERY, _FORGET, _LIMIT = b"M", b"Q", b"F", b"L"
_NUMBER = struct.Struct(">Q")
_DONE, _REFUSED = b"+", b"-"
_LEAVE_SECONDS = 30.0


class EvaluatorProcess:
    """An evaluator behind a process boundary, for one or more data owners.

    Each owner's keys lie in a slot of their own. A query is answered under the keys of the slot
    that it is given for, and no others.

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
        Seconds that one step (compiling, reading keys, one answer) may take; see
        :attr:`timeout`.
    owners : int
        How many owners' keys it is meant to hold at once.
    memory : int, optional
        Bytes of address space that it may take beside the compiled model; by default what the
        plan needs for so many owners, with slack. Enforced on Linux.

    Attributes
    ----------
    plan : Plan
        Of the model that it holds.
    owners : int
        As given.
    timeout : float
        Seconds for the next step.
    memory : int
        What it may take beside the compiled model, in bytes.

    Raises
    ------
    EvaluatorFailedError
        If it ends before it has given its plan, with its last words.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout: float = 300.0,
        owners: int = 4,
        memory: int | None = None,
    ) -> None:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env=environment,
        )
        self._begin(
            child,
            cast(BinaryIO, child.stdin),
            cast(BinaryIO, child.stdout),
            errors,
            timeout=timeout,
            owners=owners,
            memory=memory,
        )

    @classmethod
    def holding(
        cls,
        compiled: CompiledModel,
        *,
        timeout: float = 300.0,
        owners: int = 4,
        memory: int | None = None,
    ) -> Self:
        """Start one for a model that this process has compiled, without a program of its own.

        Parameters
        ----------
        compiled : CompiledModel
        timeout, owners, memory
            As for the class.

        Notes
        -----
        Python's ``multiprocessing`` starts it, which imports the main module again: guard what a
        script does by ``if __name__ == "__main__"``.
        """
        # A socket for each direction: closing one tells the child that there is no more to do.
        (to_child, frames), (from_child, answers) = socket.socketpair(), socket.socketpair()
        # A forked child could inherit a lock that another thread holds. What was encoded for
        # SEAL stays here: its objects cannot travel.
        child = multiprocessing.get_context("spawn").Process(
            target=_serve_sockets, args=(frames, answers, replace(compiled)), daemon=True
        )
        with to_child, frames, from_child, answers:
            child.start()
            streams = to_child.makefile("wb"), from_child.makefile("rb")
        started = cls.__new__(cls)
        started._begin(
            _Spawned(child), *streams, None, timeout=timeout, owners=owners, memory=memory
        )
        return started

    def _begin(
        self,
        child: "_Child",
        to_child: BinaryIO,
        from_child: BinaryIO,
        errors: BinaryIO | None,
        *,
        timeout: float,
        owners: int,
        memory: int | None,
    ) -> None:
        self.owners = owners
        self.timeout = timeout
        self._process = child
        self._to_child, self._from_child, self._errors = to_child, from_child, errors
        try:
            self.plan = Plan.from_json(self._exchange().decode())
            if memory is None:
                memory = evaluation_room(self.plan, owners=owners)
            self.memory = memory
            self._ask(_LIMIT, memory, b"")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        try:
            self._process.wait(0)
        except subprocess.TimeoutExpired:
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def use_keys(self, material: bytes, *, slot: int = 0) -> None:
        """Hold this public material in a slot from now on, and forget what was there before.

        Raises
        ------
        MessageError
            If it is not public material of this plan.
        EvaluatorFailedError
            If the process ended over it.
        """
        self._ask(_MATERIAL, slot, material)

    def evaluate(self, query: bytes, *, slot: int = 0) -> tuple[bytes, float]:
        """Answer a query of the owner whose keys are in a slot.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took, its masking included.

        Raises
        ------
        MessageError
            If it is not a query of this plan and owner, or was answered before.
        EvaluatorFailedError
            If the process ended over it.
        """
        reply = self._ask(_QUERY, slot, query)
        (seconds,) = struct.unpack_from(">d", reply)
        return reply[8:], seconds

    def forget(self, slot: int) -> None:
        """Drop the keys in a slot, if there are any, and free their memory.

        Raises
        ------
        EvaluatorFailedError
            If the process ended.
        """
        self._ask(_FORGET, slot, b"")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # it has ended, and did not read all
            self._to_child.close()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from_child.close()
        if self._errors is not None:
            self._errors.close()

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer gets an error."""
        self._process.kill()
        self._process.wait()

    def _ask(self, kind: bytes, number: int, content: bytes) -> bytes:
        if len(content) >= _LARGEST_FRAME - _NUMBER.size:
            raise MessageError(f"a message of {len(content):,} bytes is larger than any")
        reply = self._exchange(kind, _NUMBER.pack(number), content)
        if reply[:1] == _REFUSED:
            raise MessageError(reply[1:].decode())
        return reply[1:]

    def _exchange(self, *parts: bytes) -> bytes:
        """Write a frame of these parts, if there are any, and read one; in time."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self.timeout, end)
        timer.start()
        try:
            if parts:
                _write_frame(self._to_child, *parts)
            frame = _read_frame(self._from_child)
        except ConnectionError as error:
            raise self._last_words(late.is_set()) from error
        finally:
            timer.cancel()
        if frame is None:
            raise self._last_words(late.is_set())
        return frame

    def _last_words(self, late: bool) -> EvaluatorFailedError:
        code = self._process.wait()
        words = "its last words are above"
        if self._errors is not None:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip()[-2000:]
        if late:
            return EvaluatorTimeoutError(
                f"the evaluator's process took more than {self.timeout:g} s and was ended "
                f"(code {code}): {words}"
            )
        return EvaluatorFailedError(f"the evaluator's process ended (code {code}): {words}")


class _Child(Protocol):
    """A process, as ``subprocess.Popen`` is one."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class _Spawned:
    """A process of ``multiprocessing``, which several threads may wait for."""

    def __init__(self, process: "multiprocessing.context.SpawnProcess") -> None:
        self._process = process
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        if not multiprocessing.connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("evaluator", timeout or 0)
        with self._lock:
            self._process.join()
            return self._process.exitcode or 0


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
    _leave_interrupts_to_the_parent()
    _serve(compiling(), sys.stdin.buffer, answers)


def _serve_sockets(frames: socket.socket, answers: socket.socket, compiled: CompiledModel) -> None:
    with frames.makefile("rb") as reading, answers.makefile("wb") as writing:
        frames.close()
        answers.close()
        _leave_interrupts_to_the_parent()
        _serve(compiled, reading, writing)


def _leave_interrupts_to_the_parent() -> None:
    """A terminal sends Ctrl-C to both; the parent may want to finish what was begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _serve(compiled: CompiledModel, frames: BinaryIO, answers: BinaryIO) -> None:
    compiled.encoded.prepare()  # what cannot be encoded fails here, before anyone makes keys
    _write_frame(answers, compiled.plan.to_json().encode())
    held: dict[int, Evaluator] = {}
    while (frame := _read_frame(frames)) is not None:
        kind, (number,), content = frame[:1], _NUMBER.unpack_from(frame, 1), frame[9:]
        begun = time.perf_counter()
        reply = b""
        try:
            if kind == _MATERIAL:
                held.pop(number, None)  # the keys before go, whatever becomes of these
                held[number] = Evaluator(compiled, content)
            elif kind == _QUERY:
                if number not in held:
                    raise MessageError("a query came before its public material")
                reply = held[number].evaluate(content)
                reply = struct.pack(">d", time.perf_counter() - begun) + reply
            elif kind == _FORGET:
                held.pop(number, None)
            elif kind == _LIMIT:
                limit_memory(number)
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
