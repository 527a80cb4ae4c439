"""A link between two parties: whole messages over one connection.

A frame is its length, 4 bytes, and a message.
"""

import contextlib
import select
import socket
import ssl
import struct
import time

from privacy.arguments import number, whole
from privacy.shared_inference.closing import Closing
from privacy.shared_inference.errors import LinkError

_LENGTH = struct.Struct("<I")
_SMALL = 1 << 15
"""Bytes that a system takes from both sides at once, so that they need no turns."""
_CHUNK = 1 << 16


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
        self._timeout = number("timeout", timeout, above=0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self._timeout)

    @property
    def timeout(self) -> float:
        """Seconds to wait for the other party, each time; may be changed."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds
        try:
            self._connection.settimeout(seconds)
        except OSError as error:
            raise self._failed(error) from error

    def fileno(self) -> int:
        """Of the connection, for ``select``."""
        return self._connection.fileno()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come, not even the end of the connection."""
        try:
            return not select.select([self._connection], [], [], 0)[0]
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
            self._connection.sendall(_LENGTH.pack(len(message)) + message)
        except OSError as error:
            raise self._failed(error) from error

    def receive(self) -> bytes:
        """The next message.

        Raises
        ------
        LinkError
            If the other party is gone, silent, or sends more than ``max_bytes``.
        """
        try:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            self._check(length)
            return bytes(self._exactly(length))
        except OSError as error:
            raise self._failed(error) from error

    def exchange(self, message: bytes) -> bytes:
        """Send a message while the other party sends one, which is returned; raises as both do."""
        if len(message) <= _SMALL:
            self.send(message)
            return self.receive()
        try:
            self._connection.settimeout(0)
            received = self._both(_LENGTH.pack(len(message)) + message)
            self._connection.settimeout(self._timeout)
        except OSError as error:
            raise self._failed(error) from error
        return received

    def close(self) -> None:
        """Close the connection; who waits on it in another thread gets a LinkError."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, count: int) -> bytearray:
        received = bytearray(count)
        view = memoryview(received)
        filled = 0
        while filled < count:
            taken = self._connection.recv_into(view[filled:])
            if not taken:
                raise ConnectionError("it closed the connection")
            filled += taken
        return received

    def _both(self, frame: bytes) -> bytes:
        """Send and receive in turns, so that full buffers on both sides stop neither."""
        waiting, received = memoryview(frame), bytearray()
        due = _LENGTH.size
        last = time.monotonic()
        while waiting or len(received) < due:
            moved = False
            if waiting:
                sent = self._tried_send(waiting)
                waiting, moved = waiting[sent:], sent > 0
            if len(received) < due:
                part = self._tried_receive(due - len(received))
                received += part
                moved = moved or bool(part)
                if due == _LENGTH.size == len(received):
                    due += self._check(_LENGTH.unpack(received)[0])
            if moved:
                last = time.monotonic()
            elif time.monotonic() - last > self._timeout:
                raise TimeoutError
            else:
                select.select([self._connection], [self._connection] if waiting else [], [], 0.1)
        return bytes(received[_LENGTH.size :])

    def _tried_send(self, waiting: memoryview) -> int:
        try:
            return self._connection.send(waiting[:_CHUNK])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def _tried_receive(self, count: int) -> bytes:
        try:
            part = self._connection.recv(min(count, _CHUNK))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        if not part:
            raise ConnectionError("it closed the connection")
        return part

    def _check(self, length: int) -> int:
        if length > self._max_bytes:
            raise ConnectionError(f"it announced {length} bytes, {self._max_bytes} are allowed")
        return length

    def _failed(self, error: OSError) -> LinkError:
        """The error for the caller; the connection is of no use any more."""
        self.close()
        if isinstance(error, TimeoutError):
            return LinkError(f"the other party said nothing for {self._timeout:g} s")
        return LinkError(f"the other party is gone: {error}")
