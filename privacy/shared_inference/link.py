"""A link between two parties: whole messages over one connection.

A frame is its length, 4 bytes, and a message.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import time

from privacy.arguments import seconds, whole
from privacy.shared_inference.closing import Closing
from privacy.shared_inference.errors import LinkError

_LENGTH = struct.Struct("<I")
_SMALL = 1 << 15
"""Bytes that a system takes from both sides at once, so that they need no turns."""
_BUFFER = 1 << 16
_AT_ONCE = 5e-4
"""Seconds for which what is due is looked for without rest: to be woken up takes that long."""
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))
"""Let another process have the processor, if one wants it."""


class Link(Closing):
    """Messages to and from one other party.

    Parameters
    ----------
    connection : socket.socket
        Connected; an ``ssl.SSLSocket`` wherever it leaves the machine. The link closes it.
    max_bytes : int
        Of a message that is taken.
    timeout : float
        Seconds to wait for the other party, each time.
    """

    def __init__(
        self, connection: socket.socket, *, max_bytes: int = 1 << 28, timeout: float = 30.0
    ) -> None:
        self._connection = connection
        self._max_bytes = whole("max_bytes", max_bytes, least=1, most=2**32 - 1)
        self.timeout = timeout
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._large: bytearray | None = None  # a message that is larger than the buffer
        self._rest = self._buffer  # where what comes next is put

    @property
    def timeout(self) -> float:
        """Seconds to wait for the other party, each time; may be changed."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._timeout = seconds("timeout", value)

    def fileno(self) -> int:
        """Of the connection, for ``select``."""
        return self._connection.fileno()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come, not even the end of the connection."""
        try:
            buffered = self._large is not None or self._buffered > 0
            return not buffered and not select.select([self._connection], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises
        ------
        LinkError
            If the other party is gone, or takes nothing.
        """
        try:
            for part in _framed(message):
                waiting = part
                while waiting:
                    sent = self._tried_send(waiting)
                    waiting = waiting[sent:]
                    if not sent:
                        self._wait(writing=True)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def receive(self) -> bytes:
        """The next message.

        Raises
        ------
        LinkError
            If the other party is gone, silent, or sends more than ``max_bytes``.
        """
        try:
            return self._received()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def exchange(self, message: bytes) -> bytes:
        """Send a message while the other party sends one, which is returned; raises as both do."""
        if len(message) <= _SMALL:
            self.send(message)
            return self.receive()
        try:
            return self._both(message)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connection; who waits on it in another thread gets a LinkError."""
        with contextlib.suppress(OSError):
            # Not a secured socket's own, which drops its encryption first: who sends in another
            # thread would then send in the clear.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        self._connection.close()

    def _received(self) -> bytes:
        """The next message, for which it waits."""
        at_once = time.monotonic() + _AT_ONCE
        while (message := self._complete()) is None:
            if self._tried_receive():
                continue
            if time.monotonic() < at_once:
                _yield()
            else:
                self._wait(reading=True)
        return message

    def _both(self, message: bytes) -> bytes:
        """Send and receive in turns, so that full buffers on both sides stop neither."""
        parts, received = _framed(message), self._complete()
        while parts or received is None:
            moved = False
            if parts:
                sent = self._tried_send(parts[0])
                parts[0], moved = parts[0][sent:], sent > 0
                if not parts[0]:
                    del parts[0]
            if received is None:
                moved = self._tried_receive() or moved
                received = self._complete()
            if not moved:
                self._wait(reading=received is None, writing=bool(parts))
        return received

    def _tried_send(self, waiting: memoryview) -> int:
        try:
            return self._connection.send(waiting)
        except _NOT_YET:
            return 0

    def _tried_receive(self) -> bool:
        """Read on, if something has come."""
        try:
            count = self._connection.recv_into(self._rest)
        except _NOT_YET:
            return False
        if not count:
            raise ConnectionError("it closed the connection")
        self._rest = self._rest[count:]
        return True

    def _complete(self) -> bytes | None:
        """The next message, once it is here as a whole."""
        if self._large is None:
            buffered = self._buffered
            if buffered < _LENGTH.size:
                return None
            length = self._check(_LENGTH.unpack_from(self._buffer)[0])
            end = _LENGTH.size + length
            if end <= _BUFFER:
                if buffered < end:
                    return None
                message = bytes(self._buffer[_LENGTH.size : end])
                self._buffer[: buffered - end] = self._buffer[end:buffered]
                self._rest = self._buffer[buffered - end :]
                return message
            self._large = bytearray(length)
            self._large[: buffered - _LENGTH.size] = self._buffer[_LENGTH.size : buffered]
            self._rest = memoryview(self._large)[buffered - _LENGTH.size :]
        if self._rest:
            return None
        message, self._large, self._rest = bytes(self._large), None, self._buffer
        return message

    @property
    def _buffered(self) -> int:
        """Bytes in the buffer."""
        return _BUFFER - len(self._rest)

    def _wait(self, *, reading: bool = False, writing: bool = False) -> None:
        """Wait until the connection is ready for either."""
        own = [self._connection]
        ready = select.select(own * reading, own * writing, [], self._timeout)
        if not any(ready):
            raise TimeoutError

    def _check(self, length: int) -> int:
        if length > self._max_bytes:
            raise ConnectionError(f"it announced {length} bytes, {self._max_bytes} are allowed")
        return length

    def _failed(self, error: OSError | ValueError) -> LinkError:
        """The error for the caller; the connection is of no use any more."""
        self.close()
        if isinstance(error, TimeoutError):
            return LinkError(f"the other party said nothing for {self._timeout:g} s")
        return LinkError(f"the other party is gone: {error}")


def _framed(message: bytes) -> list[memoryview]:
    """A frame; a large one in two parts, since it is not copied."""
    length = _LENGTH.pack(len(message))
    if len(message) <= _SMALL:
        return [memoryview(length + message)]
    return [memoryview(length), memoryview(message)]
