"""The workers' link, as one of them sees it: made anew when it fails, and in step.

Alice calls bob. Whatever goes wrong about a question closes the link, so that nothing of it is left
when the next one begins. The first message of a question is sent again over a new link, for a
while: the other worker may have been restarted, or have lost a question that this one never saw.
The same bytes go out again, so that this tells nobody anything.
"""

import threading
import time
from collections.abc import Callable

from privacy.shared_inference.errors import LinkError
from privacy.shared_inference.link import Link
from privacy.shared_inference.messages import OVERHEAD, question_of

_PAUSES = (0.05, 10.0)
"""Seconds between calls, from the first on; they double."""


class Between:
    """Exchanges with the other worker.

    Parameters
    ----------
    other : str
        The other worker's name.
    call : callable, optional
        Makes a link, for the worker who calls.
    patience : float
        Seconds until the other worker must have begun with a question.
    timeout : float
        Seconds to wait for it after that, each time.
    """

    def __init__(
        self, other: str, *, call: Callable[[], Link] | None, patience: float, timeout: float
    ) -> None:
        self._other, self._call = other, call
        self._patience, self._timeout = patience, timeout
        self._link: Link | None = None
        self._question: int | None = None
        self._changed = threading.Condition()

    def offer(self, link: Link) -> None:
        """Take a link on which the other worker has called."""
        with self._changed:
            if self._link is not None:
                self._link.close()
            self._link = link
            self._changed.notify_all()

    def exchange(self, question: int, message: bytes) -> bytes:
        """Send a message about a question, and return the other worker's.

        Raises
        ------
        LinkError
            If the other worker is gone, silent, or at another question.
        """
        if question != self._question:
            received = self._first(question, message)
            self._question = question
            return received
        if self._link is None:
            raise LinkError(f"{self._other} is gone")
        try:
            return self._link.exchange(message)
        except LinkError:
            self.close()
            raise

    def close(self) -> None:
        """Close the link; the next question makes a new one."""
        with self._changed:
            self._question = None
            if self._link is not None:
                self._link.close()
                self._link = None

    def _first(self, question: int, message: bytes) -> bytes:
        end = time.monotonic() + self._patience
        while True:
            link = self._open(end)
            try:
                link.timeout = max(end - time.monotonic(), 0.01)
                received = link.exchange(message)
            except LinkError as error:
                self._drop(link)
                if time.monotonic() >= end:
                    raise LinkError(
                        f"{self._other} did not begin with question {question} within "
                        f"{self._patience:g} s: {error}"
                    ) from error
                continue
            asked = question_of(received) if len(received) >= OVERHEAD else -1
            if asked == question:
                link.timeout = self._timeout
                return received
            self._drop(link)
            if asked > question:
                raise LinkError(f"{self._other} is at question {asked}, and this is {question}")

    def _open(self, end: float) -> Link:
        """The link, made where there is none."""
        pause = _PAUSES[0]
        while True:
            with self._changed:
                if self._call is None:
                    self._changed.wait_for(
                        lambda: self._link is not None, max(end - time.monotonic(), 0)
                    )
                if self._link is not None:
                    return self._link
                if self._call is None:
                    raise LinkError(
                        f"{self._other} has not called for {self._patience:g} s; is it running?"
                    )
                try:
                    self._link = self._call()
                except LinkError:
                    if time.monotonic() + pause >= end:
                        raise
                else:
                    return self._link
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])

    def _drop(self, link: Link) -> None:
        """Close a link that failed, if it is still the one."""
        link.close()
        with self._changed:
            if self._link is link:
                self._link = None
