"""The evaluator in a process of its own, with a limit on its memory and on its time.

The child is a program that compiles its model or loads it, and calls :func:`serve_evaluations`;
``python -m privacy.inference.evaluator FILE`` is one.
:class:`EvaluatorProcess` starts it and exchanges frames with it over its standard streams: public
material and queries go in, answers come out. No frame carries a secret key.
"""

import contextlib
import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self, TypeVar, cast

import psutil

from privacy.arguments import of_kind, seconds, whole
from privacy.inference.ckks import warm_up
from privacy.inference.errors import EvaluatorFailedError, EvaluatorTimeoutError, MessageError
from privacy.inference.evaluator.evaluator import Evaluator
from privacy.inference.packed_model import PackedModel
from privacy.inference.plan import Plan

_T = TypeVar("_T")
_LARGEST_FRAME = 1 << 28  # bytes
_MATERIAL, _QUERY, _FORGET, _LIMIT = b"M", b"Q", b"F", b"L"
_NUMBER, _SECONDS = struct.Struct(">Q"), struct.Struct(">d")
_DONE, _REFUSED = b"+", b"-"
_EXIT_SECONDS = 30.0
_SLACK = 256 << 20
_COPIES = 4  # of a message while it is read: as bytes, residues, doubles, intermediate results


class _WrongFrameError(ValueError):
    """A frame that no program of this release sends; the message says what it is."""


class EvaluatorProcess:
    """An evaluator behind a process boundary, for one or more data owners.

    Each owner's keys lie in a slot of their own. A query is answered under the keys of its slot
    and no others. Methods raise :class:`MessageError` for a message that is refused, and
    :class:`EvaluatorFailedError` if the process ended, or was ended because it sent what no
    evaluator does; its message holds the end of the process's standard error.

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
    owners : int
        How many owners' keys it is meant to hold at once.
    memory : int, optional
        Bytes of address space that it may take beside the compiled model; by default what the
        plan needs for so many owners, with slack. Enforced on Linux.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another kind or out of range; nothing was started.
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
        of_kind("command", command, (list, tuple), "the program and its arguments in a list")
        self.owners = whole("owners", owners, least=1)
        self.timeout = timeout
        if memory is not None:
            memory = whole("memory", memory, least=1, most=(1 << 63) - 1, give="a number of bytes")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env=environment,
        )
        self._to_child = cast(BinaryIO, self._process.stdin)
        self._from_child = cast(BinaryIO, self._process.stdout)
        try:
            self.plan = self._read(_plan, self._exchange())
            self.memory = _memory_needed(self.plan, owners=owners) if memory is None else memory
            self._request(_LIMIT, self.memory, b"")
        except BaseException:
            self.close()
            raise

    @property
    def timeout(self) -> float:
        """Seconds that one step may take; may be set anew between steps."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._timeout = seconds("timeout", value)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use_keys(self, material: bytes, *, slot: int = 0) -> None:
        """Put public material in a slot, whose keys before go even if this is refused."""
        self._request(_MATERIAL, slot, material)

    def evaluate(self, query: bytes, *, slot: int = 0) -> tuple[bytes, float]:
        """Answer a query of the owner whose keys are in a slot.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took, its masking included.
        """
        return self._read(_answer, self._request(_QUERY, slot, query))

    def forget(self, slot: int) -> None:
        """Drop the keys in a slot, if there are any, and free their memory."""
        self._request(_FORGET, slot, b"")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # it ended before it read everything
            self._to_child.close()
        self._await_end()
        self._from_child.close()
        self._errors.close()

    def kill(self) -> None:
        """End the process at once; whoever waits for its answer gets an error."""
        self._process.kill()
        self._process.wait()

    def _request(self, kind: bytes, number: int, content: bytes) -> bytes:
        if len(content) >= _LARGEST_FRAME - _NUMBER.size:
            raise MessageError(f"a message of {len(content):,} bytes is larger than any")
        return self._read(_content, self._exchange(kind, _NUMBER.pack(number), content))

    def _read(self, reader: Callable[[bytes], _T], frame: bytes) -> _T:
        """What a frame of the process holds; it is ended where that is no evaluator's."""
        try:
            return reader(frame)
        except _WrongFrameError as error:
            raise self._failure(error) from error

    def _exchange(self, *parts: bytes) -> bytes:
        """Write a frame of these parts, if there are any, and read one, within the timeout."""
        too_slow = threading.Event()

        def end() -> None:
            too_slow.set()
            self._process.kill()

        timer = threading.Timer(self.timeout, end)
        timer.start()
        try:
            if parts:
                _write_frame(self._to_child, *parts)
            frame = _read_frame(self._from_child)
        except ConnectionError:
            frame = None
        except _WrongFrameError as error:
            raise self._failure(error) from error
        finally:
            timer.cancel()
        if frame is None:
            raise self._failure(too_slow=too_slow.is_set())
        return frame

    def _failure(
        self, wrong: "_WrongFrameError | None" = None, *, too_slow: bool = False
    ) -> EvaluatorFailedError:
        """The error once the process has ended, of itself or, for what it sent, now."""
        if wrong is not None:
            self.kill()
        code = self._await_end()
        self._errors.seek(0)
        output = self._errors.read().decode(errors="replace").strip()[-2000:]
        if too_slow:
            return EvaluatorTimeoutError(
                f"the evaluator's process took more than {self.timeout:g} s and was ended "
                f"(code {code}): {output}"
            )
        how = "ended" if wrong is None else f"sent {wrong} and was ended"
        return EvaluatorFailedError(f"the evaluator's process {how} (code {code}): {output}")

    def _await_end(self) -> int:
        """The process's code, once it has ended; one that does not is ended."""
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def serve_evaluations(compiling: Callable[[], PackedModel]) -> None:
    """Run the evaluator's process for the model that ``compiling()`` returns.

    It answers requests from the standard input until that ends; everything else that the process
    prints goes to its standard error.
    """
    # Answers leave through the original standard output; whatever a library prints does not.
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # A terminal sends Ctrl-C to both processes; the parent may want to finish what was begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    compiled = compiling()
    _ = compiled.encoded  # what cannot be encoded fails here, before anyone makes keys
    warm_up()  # no question waits for the compiler, and no limit counts its memory
    _write_frame(replies, compiled.plan.to_json().encode())
    evaluators: dict[int, Evaluator] = {}
    while (frame := _read_frame(requests)) is not None:
        kind, (number,), content = frame[:1], _NUMBER.unpack_from(frame, 1), frame[9:]
        begun = time.perf_counter()
        reply = b""
        try:
            if kind == _MATERIAL:
                evaluators.pop(number, None)  # the keys before go, even where these are refused
                evaluators[number] = Evaluator(compiled, content)
            elif kind == _QUERY:
                if number not in evaluators:
                    raise MessageError("a query came before its public material")
                reply = evaluators[number].evaluate(content)
                reply = _SECONDS.pack(time.perf_counter() - begun) + reply
            elif kind == _FORGET:
                evaluators.pop(number, None)
            elif kind == _LIMIT:
                _limit_memory(number)
            else:
                raise ValueError(f"a frame of kind {kind!r} is not known")
        except MessageError as error:
            _write_frame(replies, _REFUSED, str(error).encode())
        else:
            _write_frame(replies, _DONE, reply)


def _memory_needed(plan: Plan, *, owners: int) -> int:
    """Bytes that evaluating may take beside the model: keys of so many owners, a query, slack.

    A key is held in full where a message has a seed: two polynomials for each data prime of its
    level. A batch is computed as matrices of residues in double precision, the widest layer's
    beside the query's.
    """
    polynomial = 8 * plan.degree
    levels = [level for _, level in plan.rotation_levels]
    if plan.relin_level:
        levels.append(plan.relin_level)
    keys = 2 * polynomial * (len(plan.prime_bits) + sum(each * (each + 1) for each in levels))
    query = 2 * 8 * plan.degree * plan.levels * plan.ciphertexts
    work = query * (4 * _COPIES if plan.batch_size > 1 else _COPIES)
    return (owners + _COPIES) * keys + work + _SLACK


def _limit_memory(growth: int) -> None:
    """Limit this process to its address space of now and ``growth`` bytes more, on Linux only."""
    if sys.platform != "linux":
        return
    import resource

    most = psutil.Process().memory_info().vms + growth
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _plan(frame: bytes) -> Plan:
    """The plan in the first frame."""
    try:
        return Plan.from_json(frame.decode())
    except ValueError as error:
        raise _WrongFrameError(f"no plan ({error})") from error


def _content(reply: bytes) -> bytes:
    """What a reply holds; ``MessageError`` if it is a refusal."""
    kind, content = reply[:1], reply[1:]
    if kind == _REFUSED:
        raise MessageError(content.decode(errors="replace"))
    if kind != _DONE:
        raise _WrongFrameError(f"a reply of kind {kind!r}")
    return content


def _answer(content: bytes) -> tuple[bytes, float]:
    """An answer, and the seconds that it took."""
    if len(content) < _SECONDS.size:
        raise _WrongFrameError(f"an answer of {len(content)} bytes")
    (taken,) = _SECONDS.unpack_from(content)
    if not 0 <= taken < math.inf:
        raise _WrongFrameError(f"an answer that took {taken} s")
    return content[_SECONDS.size :], taken


def _write_frame(stream: BinaryIO, *parts: bytes) -> None:
    """Write one frame: its length, then its bytes."""
    stream.write(struct.pack(">I", sum(map(len, parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def _read_frame(stream: BinaryIO) -> bytes | None:
    """Read one frame; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    if size > _LARGEST_FRAME:
        raise _WrongFrameError(f"a frame of {size:,} bytes, more than any has")
    body = stream.read(size)
    return body if len(body) == size else None
