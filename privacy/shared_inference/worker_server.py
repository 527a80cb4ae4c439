"""A worker as a server: the data owner's questions over mutual TLS, one at a time."""

import contextlib
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from functools import partial

from privacy.arguments import convert, seconds, whole
from privacy.shared_inference.between import Between
from privacy.shared_inference.closing import Closing
from privacy.shared_inference.endpoints import Address, call, stranger, welcome
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError
from privacy.shared_inference.frames import Kind, State, frame, refusal, split
from privacy.shared_inference.link import Link
from privacy.shared_inference.messages import OVERHEAD, Party, question_of
from privacy.shared_inference.worker import Worker, converse

_log = logging.getLogger(__name__)
_HANDSHAKE = 10.0
"""Seconds for a caller to say who it is."""
_STRANGERS = 64
"""Callers who have not said who they are yet; when one more comes, the oldest has to go."""
_FEW = 20
"""Questions left from which on the log asks for more material."""
DATA_OWNER = "data-owner"
"""In the certificate of whoever may ask."""


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of a worker's server.

    Attributes
    ----------
    connections : int
        At a time, of callers whose certificate is in order.
    idle_seconds : float
        After which a data owner's silent connection is closed.
    patience : float
        Seconds until the other worker must have begun with the same question.
    exchange_seconds : float
        To wait for each of the other worker's messages after that.
    """

    connections: int = 16
    idle_seconds: float = 600.0
    patience: float = 30.0
    exchange_seconds: float = 30.0

    def __post_init__(self) -> None:
        convert(self, "connections", whole, least=2)
        for name in ("idle_seconds", "patience", "exchange_seconds"):
            convert(self, name, seconds)


class WorkerServer(Closing):
    """Answers a data owner's questions with a worker.

    Parameters
    ----------
    worker : Worker
        With a folder, in which the provider's files of material are put.
    listening : socket.socket
        Bound. The server closes it.
    calling, listens : ssl.SSLContext
        From :func:`tls_context`: for calls to bob, and for callers.
    bob : Address, optional
        Where bob listens: for alice, who calls him.
    limits : WorkerLimits

    Notes
    -----
    **Guarantee.** Nothing of a question leaves before its material is spent on disk. A question
    that fails is lost, and the next one goes on.

    **Assumptions.** The authority's certificates are alice's, bob's and the data owner's.

    **Not covered.** Whoever has the data owner's certificate can open connections up to the limit,
    with which alice is turned away too, and send questions that are refused. Strangers who call
    faster than others can show a certificate keep them out.
    """

    def __init__(
        self,
        worker: Worker,
        listening: socket.socket,
        *,
        listens: ssl.SSLContext,
        calling: ssl.SSLContext | None = None,
        bob: Address | None = None,
        limits: WorkerLimits | None = None,
    ) -> None:
        self._limits = limits or WorkerLimits()
        self._worker, self._listening, self._context = worker, listening, listens
        self._alice = worker.party == Party.ALICE
        if self._alice != (bob is not None and calling is not None):
            raise ValueError(
                "alice's server has bob's address and a context to call him, bob's not"
            )
        plan = worker.plan
        self._question_bytes = 8 * plan.inputs * plan.batch_size + OVERHEAD + 1
        self._exchange_bytes = plan.exchanged_bytes + OVERHEAD
        dial = None
        if bob is not None and calling is not None:
            sizes = {"timeout": self._limits.patience, "max_bytes": self._exchange_bytes}
            dial = partial(call, bob, "bob", calling, **sizes)  # type: ignore[arg-type]
        self._between = Between(
            "bob" if self._alice else "alice",
            call=dial,
            patience=self._limits.patience,
            timeout=self._limits.exchange_seconds,
        )
        self._turn = threading.Lock()
        self._places = threading.Semaphore(self._limits.connections)
        self._strangers = _Strangers()
        self._told_left: int | None = None

    def serve(self) -> None:
        """Serve until an exception ends it, such as KeyboardInterrupt."""
        while True:
            connection, _ = self._listening.accept()
            try:
                caller = stranger(connection, self._context, timeout=_HANDSHAKE)
            except LinkError as error:
                _log.info("%s", error)
                continue
            self._strangers.enter(caller)
            threading.Thread(target=self._attend, args=(caller,), daemon=True).start()

    def reply(self, received: bytes) -> bytes:
        """The frame that answers a data owner's; a refusal where there is no answer."""
        try:
            kind, body = split(received)
            if kind == Kind.STATE:
                return frame(Kind.STATE, self._state().to_bytes())
            if kind == Kind.QUESTION:
                with self._turn:
                    return frame(Kind.ANSWER, self._answer(body))
            raise MessageError(f"a frame of kind {kind}; use the same release everywhere")
        except (MaterialError, MessageError, LinkError) as error:
            _log.warning("no answer: %s", error)
            return refusal(error)

    def close(self) -> None:
        """Close the listening socket and the workers' link, and let the folder go."""
        self._listening.close()
        self._between.close()
        self._worker.close()

    def _state(self) -> State:
        material = self._worker.material
        with self._turn:
            self._look()
            return State(self._worker.plan.digest, material.next_question, material.left)

    def _answer(self, question: bytes) -> bytes:
        if not self._worker.material.left:
            self._look()
        conversation = self._worker.answer(question)
        try:
            # The conversation has checked the question before it exchanges anything.
            return converse(
                conversation, lambda m: self._between.exchange(question_of(question), m)
            )
        except (LinkError, MessageError):
            self._between.close()
            raise
        finally:
            conversation.close()

    def _look(self) -> None:
        """Take in new material; a file that is none is logged."""
        try:
            came = self._worker.material.look()
        except (MaterialError, MessageError) as error:
            _log.warning("%s", error)
            return
        if came:
            _log.info("material for %d more questions", came)

    def _ahead(self) -> None:
        """Work ahead of the next question; a piece that is no good is refused when it is due."""
        with self._turn:
            material = self._worker.material
            if material.left <= _FEW:
                self._look()
                if material.left != self._told_left:
                    self._told_left = material.left
                    _log.warning("material left, in questions: %d", material.left)
            if material.left and not self._worker.prepared:
                with contextlib.suppress(MaterialError, MessageError):
                    self._worker.prepare()

    def _attend(self, caller: ssl.SSLSocket) -> None:
        """Hear a caller out."""
        try:
            try:
                name = welcome(caller)
            finally:
                self._strangers.leave(caller)
            if not self._places.acquire(blocking=False):
                caller.close()
                raise LinkError(f"a caller was turned away: {self._limits.connections} are here")
            try:
                self._serve(name, caller)
            finally:
                self._places.release()
        except LinkError as error:
            _log.info("%s", error)

    def _serve(self, name: str, caller: ssl.SSLSocket) -> None:
        """Take alice's link, or answer the data owner until it goes."""
        if name == "alice" and not self._alice:
            timeout = self._limits.exchange_seconds
            self._between.offer(Link(caller, max_bytes=self._exchange_bytes, timeout=timeout))
            return
        if name != DATA_OWNER:
            caller.close()
            raise LinkError(f"a caller was refused: its certificate is that of {name!r:.40}")
        timeout = self._limits.idle_seconds
        with Link(caller, max_bytes=self._question_bytes, timeout=timeout) as link:
            self._ahead()
            while True:
                link.send(self.reply(link.receive()))
                self._ahead()


class _Strangers:
    """Callers who have not said who they are."""

    def __init__(self) -> None:
        self._callers: list[ssl.SSLSocket] = []
        self._lock = threading.Lock()

    def enter(self, caller: ssl.SSLSocket) -> None:
        """Take one in; the oldest goes where there are too many."""
        with self._lock:
            self._callers.append(caller)
            over = self._callers[:-_STRANGERS]
            for oldest in over:
                # Not the secured socket's own, which would take its state from under its thread.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            del self._callers[: len(over)]

    def leave(self, caller: ssl.SSLSocket) -> None:
        """Forget one, who has said who it is or will not."""
        with self._lock, contextlib.suppress(ValueError):
            self._callers.remove(caller)
