"""A worker: its share of a model, of material, and of an answer.

A worker is a state machine that exchanges byte strings with the other one; what carries them is the
caller's choice.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privacy.arguments import lasting_file
from privacy.mechanisms.randomness import SystemRandomness
from privacy.shared_inference.errors import MessageError
from privacy.shared_inference.material import deal, derived, read_piece, worker_piece_bytes
from privacy.shared_inference.material_files import MaterialStore
from privacy.shared_inference.messages import (
    Head,
    Letter,
    Party,
    Tag,
    check_size,
    question_of,
    seal,
    unseal,
)
from privacy.shared_inference.plan import Plan
from privacy.shared_inference.ring import Ring, Stream
from privacy.shared_inference.worker_steps import Prepared, WeightShares, answer, prepare

Conversation = Generator[bytes, bytes, bytes]
"""Yields messages to the other worker, is sent its messages, returns the answer's share."""


@dataclass(frozen=True)
class _Ready:
    """A question's material, worked through, and the keys of its messages."""

    prepared: Prepared
    question_key: bytes
    exchange_key: bytes
    answer_key: bytes


class Worker:
    """One of two workers, alice or bob as the letter says.

    Parameters
    ----------
    plan : Plan
    letter : bytes
        From :meth:`Provider.letter`.
    model : bytes
        From :func:`share_model`.
    folder : path, optional
        Where material is kept, for the next process too; see :class:`MaterialStore`.

    Raises
    ------
    MessageError
        If letter or model are not for a worker of this plan.
    MaterialError
        If the folder is in use, or of another session.

    Notes
    -----
    **Guarantee.** All that a worker sees, the model (unless it is public to the workers),
    questions, and the other's messages, is uniformly random, whatever the data and the weights;
    sizes and the sequence of messages depend on the plan alone. The answer's share is for the data
    owner, encrypted.

    **Assumptions.** The workers follow the protocol and do not collude; the provider colludes with
    neither.

    **Not covered.** A worker that alters what it sends changes the answer, and nobody sees it. How
    many questions are asked, and when.
    """

    def __init__(
        self, plan: Plan, letter: bytes, model: bytes, folder: str | Path | None = None
    ) -> None:
        self.plan = plan
        opened = Letter.from_bytes(letter, plan, Party.ALICE, Party.BOB)
        self.party = opened.party
        key, seed, model_key = opened.secrets
        self._session = opened.session
        head = Head(Tag.MODEL, Party.MODEL_OWNER, self.party, self._session)
        body = unseal(model, head, model_key, 8 * plan.weights)
        masked = np.frombuffer(body, dtype="<u8").astype(np.uint64, copy=False)
        self._weights = WeightShares.public(int(self.party), masked)
        if not plan.public_model:
            own = Stream(seed).take(plan.weights)
            self._weights = WeightShares.of(int(self.party), masked, own)
        size = worker_piece_bytes(plan, int(self.party))
        where = None if folder is None else lasting_file("folder", Path(folder) / "used").parent
        self.material = MaterialStore(self.party, self._session, key, size, where)
        self._prepared: dict[int, _Ready] = {}

    @property
    def prepared(self) -> int:
        """For how many questions the work ahead is done."""
        return len(self._prepared)

    def prepare(self) -> int:
        """Do the work ahead of the next question for which nothing is prepared; its number.

        Raises
        ------
        MaterialError
            If no material is left.
        """
        question = max([self.material.next_question, *(number + 1 for number in self._prepared)])
        self._prepared[question] = self._ready(question)
        return question

    def answer(self, question: bytes) -> Conversation:
        """Answer a question, in messages to and from the other worker.

        Raises
        ------
        MessageError
            If the question, or a message of the other's, is not in order. The material is spent.
        MaterialError
            If the question's material was used, or is not here.
        """
        plan, session = self.plan, self._session
        shape = (plan.inputs, plan.batch_size)
        size = 8 * plan.inputs * plan.batch_size
        check_size(question, size, Tag.QUESTION)
        number = question_of(question)
        head = Head(Tag.QUESTION, Party.DATA_OWNER, self.party, session, number)
        header = head.to_bytes()
        if bytes(question[: len(header)]) != header:
            raise MessageError("not a question for this worker in this session")
        ready = self._prepared.get(number) or self._ready(number)
        # A stranger's question spends nothing: it is the data owner's before it counts as used.
        body = unseal(question, head, ready.question_key, size)
        self.material.use(number)
        self._prepared = {n: later for n, later in self._prepared.items() if n > number}
        masked = np.frombuffer(body, dtype="<u8").astype(np.uint64, copy=False).reshape(shape)
        share = yield from self._talk(number, ready, masked)
        head = Head(Tag.ANSWER, self.party, Party.DATA_OWNER, session, number)
        return seal(head, answer_body(plan, share), ready.answer_key)

    def close(self) -> None:
        """Let another process use the material's folder."""
        self.material.close()

    def _ready(self, question: int) -> _Ready:
        shares = read_piece(self.plan, int(self.party), self.material.read(question))
        return _Ready(
            prepare(self.plan, self._weights, shares),
            question_key=derived(shares.input_seed, "question"),
            exchange_key=derived(shares.pair_seed, "exchange"),
            answer_key=derived(shares.input_seed, "answer"),
        )

    def _talk(self, number: int, ready: _Ready, masked: Ring) -> Generator[bytes, bytes, Ring]:
        """The protocol's messages, sealed."""
        key, other = ready.exchange_key, Party(1 - self.party)
        steps = answer(self.plan, self._weights, ready.prepared, masked)
        part = 0
        try:
            body = next(steps)
            while True:
                head = Head(Tag.EXCHANGE, self.party, other, self._session, number, part)
                message = yield seal(head, body, key)
                due = Head(Tag.EXCHANGE, other, self.party, self._session, number, part)
                body = steps.send(unseal(message, due, key, len(body)))
                part += 1
        except StopIteration as end:
            share: Ring = end.value
            return share


def warm_up(plan: Plan) -> None:
    """Load the kernels that a question of this plan needs, on material that is thrown away.

    The first question would wait for them, and the other worker for this one.
    """
    masks = np.zeros(plan.weights, np.uint64)
    pieces = deal(plan, masks, SystemRandomness())
    sides, sent = [], []
    for holder in (0, 1):
        weights = WeightShares.of(holder, masks, masks)
        ready = prepare(plan, weights, read_piece(plan, holder, pieces[holder]))
        # Kernels are made anew for arrays that cannot be written, as a question's.
        inputs = np.frombuffer(bytes(8 * plan.inputs * plan.batch_size), np.uint64)
        inputs = inputs.reshape(plan.inputs, plan.batch_size)
        sides.append(answer(plan, weights, ready, inputs))
    with contextlib.suppress(StopIteration):
        sent = [next(side) for side in sides]
        while True:
            sent = [sides[0].send(sent[1]), sides[1].send(sent[0])]


def answer_body(plan: Plan, share: Ring) -> bytes:
    """What of an answer's share goes to the data owner.

    Of a class only the bits that hold it: shares modulo 2^c tell no more than the class.
    """
    if plan.answer == "logits":
        return share.astype("<u8", copy=False).tobytes()
    low = share & np.uint64((1 << plan.class_bits) - 1)
    return low.astype("<u4").tobytes()


def answer_bytes(plan: Plan) -> int:
    """Of an answer's body."""
    return (8 * plan.logits if plan.answer == "logits" else 4) * plan.batch_size


def converse(conversation: Conversation, exchange: Callable[[bytes], bytes]) -> bytes:
    """Hold a conversation over a link, and return the message for the data owner.

    ``exchange`` sends a message to the other worker and returns the one that comes from it.
    """
    try:
        message = next(conversation)
        while True:
            message = conversation.send(exchange(message))
    except StopIteration as end:
        made: bytes = end.value
        return made


def converse_in_process(alice: Conversation, bob: Conversation) -> tuple[bytes, bytes]:
    """Hold both sides' conversations here, in turns; the messages for the data owner."""
    sides, made = (alice, bob), [b"", b""]
    sent = [b"", b""]
    ended = [False, False]

    def move(side: int, incoming: bytes | None) -> bytes:
        try:
            return next(sides[side]) if incoming is None else sides[side].send(incoming)
        except StopIteration as end:
            ended[side], made[side] = True, end.value
            return b""

    sent = [move(0, None), move(1, None)]
    while not all(ended):
        sent = [move(0, sent[1]), move(1, sent[0])]
    return made[0], made[1]
