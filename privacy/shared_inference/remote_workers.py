"""The data owner's side of two workers' servers."""

import select
import ssl
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import seconds
from privacy.shared_inference.closing import Closing
from privacy.shared_inference.data_owner import DataOwner, Question
from privacy.shared_inference.endpoints import Address, call
from privacy.shared_inference.errors import LinkError, MessageError
from privacy.shared_inference.frames import Kind, State, frame, refused, split
from privacy.shared_inference.link import Link
from privacy.shared_inference.messages import OVERHEAD, Party
from privacy.shared_inference.worker import answer_bytes

_ROOM = 10_000
"""Bytes of a frame beside an answer's: a refusal in words."""
_WORKERS = {Party.ALICE: "alice", Party.BOB: "bob"}


class RemoteWorkers(Closing):
    """Asks two workers over mutual TLS; connects at the first question, and again after a loss.

    Parameters
    ----------
    owner : DataOwner
    alice, bob : Address
    context : ssl.SSLContext
        From :func:`tls_context`, with the data owner's certificate and ``listens=False``.
    timeout : float
        Seconds to wait for a worker, each time.

    Notes
    -----
    **Guarantee.** A question goes to the holders of the certificates ``alice`` and ``bob`` alone.
    One that fails is lost, with its material; no other is.
    """

    def __init__(
        self,
        owner: DataOwner,
        *,
        alice: Address,
        bob: Address,
        context: ssl.SSLContext,
        timeout: float = 60.0,
    ) -> None:
        self._owner, self._context = owner, context
        self._addresses: Mapping[Party, Address] = {Party.ALICE: alice, Party.BOB: bob}
        self._timeout = seconds("timeout", timeout)
        self._links: dict[Party, Link] = {}
        self._least = 0

    def logits(self, inputs: ArrayLike) -> NDArray[np.float64]:
        """Logits of one input, or of up to ``batch_size``, shape (images, logits).

        Raises
        ------
        LinkError
            If a worker is missing: the message says which, and the question is lost.
        MaterialError
            If somebody has no material left.
        MessageError
            If a worker refuses the question, or an answer is not in order.
        OutOfRangeError, ValueError
            As :meth:`DataOwner.ask` and :meth:`DataOwner.logits`.
        """
        return self._owner.logits(*self._asked(inputs))

    def classes(self, inputs: ArrayLike) -> NDArray[np.int64]:
        """The place of the largest logit, shape (images,); raises as :meth:`logits`."""
        return self._owner.classes(*self._asked(inputs))

    def close(self) -> None:
        """Close both connections."""
        for link in self._links.values():
            link.close()
        self._links = {}

    def _asked(self, inputs: ArrayLike) -> tuple[Question, bytes, bytes]:
        """A question, and both workers' answers."""
        if not self._links or not all(link.quiet for link in self._links.values()):
            self.close()
            self._connect()
        # A worker that was restarted left some numbers out; they are spent here too.
        number = max(self._owner.material.next_question, self._least)
        question = self._owner.ask(inputs, number=number)
        messages = {Party.ALICE: question.for_alice, Party.BOB: question.for_bob}
        errors: list[Exception] = []
        for party, message in messages.items():
            try:
                self._links[party].send(frame(Kind.QUESTION, message))
            except LinkError as error:
                errors.append(_of(party, error))
        answers: dict[Party, bytes] = {}
        # Whoever says something first is heard first: of a worker that is gone its own end tells
        # at once, and the other one's complaint later.
        while not errors and (waiting := [party for party in messages if party not in answers]):
            links = [self._links[party] for party in waiting]
            ready = select.select(links, [], [], self._timeout)[0]
            party = next((p for p in waiting if self._links[p] in ready), waiting[0])
            try:
                answers[party] = self._received(party, Kind.ANSWER)
            except (LinkError, MessageError, RuntimeError) as error:
                errors.append(error)
        if errors:
            self.close()
            raise errors[0]
        return question, answers[Party.ALICE], answers[Party.BOB]

    def _connect(self) -> None:
        plan = self._owner.plan
        most = answer_bytes(plan) + OVERHEAD + _ROOM
        try:
            for party, name in _WORKERS.items():
                self._links[party] = call(
                    self._addresses[party],
                    name,
                    self._context,
                    timeout=self._timeout,
                    max_bytes=most,
                )
            for party, name in _WORKERS.items():
                self._links[party].send(frame(Kind.STATE))
                state = State.from_bytes(self._received(party, Kind.STATE))
                if state.plan != plan.digest:
                    raise MessageError(f"{name} works for another plan; compare both sides' files")
                self._least = max(self._least, state.next_question)
        except (LinkError, MessageError):
            self.close()
            raise

    def _received(self, party: Party, due: Kind) -> bytes:
        """The body of a worker's frame; its refusal is raised."""
        name = _WORKERS[party]
        if party not in self._links:
            raise LinkError(f"{name} is gone")
        try:
            kind, body = split(self._links[party].receive())
        except LinkError as error:
            self._links.pop(party).close()
            raise _of(party, error) from error
        if kind == Kind.REFUSAL:
            raise refused(body, name)
        if kind != due:
            raise MessageError(f"{name} sent a frame of kind {kind}, due is one of {due}")
        return body


def _of(party: Party, error: LinkError) -> LinkError:
    return LinkError(f"{_WORKERS[party]}: {error}")
