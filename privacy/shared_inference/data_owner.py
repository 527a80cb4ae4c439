"""The data owner: questions in, answers out; the only one who sees either."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import double_array, lasting_file
from privacy.inference.input_range import bounds, label
from privacy.shared_inference.errors import OutOfRangeError
from privacy.shared_inference.material import OWNER_PIECE_BYTES, derived, input_mask
from privacy.shared_inference.material_files import MaterialStore
from privacy.shared_inference.messages import Head, Letter, Party, Tag, seal, unseal
from privacy.shared_inference.plan import Plan
from privacy.shared_inference.ring import as_signed, quantised
from privacy.shared_inference.worker import answer_bytes


@dataclass(frozen=True)
class Question:
    """Two messages with one question, and what reads the answer.

    Attributes
    ----------
    number : int
    images : int
    for_alice, for_bob : bytes
    """

    number: int
    images: int
    for_alice: bytes
    for_bob: bytes


class DataOwner:
    """Asks two workers.

    Parameters
    ----------
    plan : Plan
    letter : bytes
        From :meth:`Provider.letter`.
    folder : path, optional
        Where material is kept, for the next process too; see :class:`MaterialStore`.

    Raises
    ------
    MessageError
        If the letter is not a data owner's of this plan.
    MaterialError
        If the folder is in use, or of another session.

    Notes
    -----
    **Guarantee.** A question's messages are uniformly random to each worker. Answers are those of
    the plan: within ``plan.error`` of the model's own logits.

    **Assumptions.** The workers do not collude, and the provider colludes with neither.

    **Not covered.** What the data owner can learn of a model by asking. Answers that a worker
    altered on purpose.
    """

    def __init__(self, plan: Plan, letter: bytes, folder: str | Path | None = None) -> None:
        self.plan = plan
        opened = Letter.from_bytes(letter, plan, Party.DATA_OWNER)
        self._session = opened.session
        where = None if folder is None else lasting_file("folder", Path(folder) / "used").parent
        (key,) = opened.secrets
        self.material = MaterialStore(
            Party.DATA_OWNER, self._session, key, OWNER_PIECE_BYTES, where
        )
        self._bounds = bounds(plan.input_range, plan.input_shape)
        self._asked: dict[int, tuple[bytes, bytes]] = {}

    def ask(self, inputs: ArrayLike, *, number: int | None = None) -> Question:
        """Split a question: one input, or up to ``plan.batch_size`` of them.

        Parameters
        ----------
        inputs : array_like, shape (images, *input_shape), or one input without the first axis
        number : int, optional
            Of the material, where a worker's error names it; by default the next one.

        Raises
        ------
        OutOfRangeError
            If an element is outside the plan's range.
        MaterialError
            If no material is left.
        """
        plan = self.plan
        values = self._checked(inputs)
        question = self.material.next_question if number is None else number
        mask, *seeds = input_mask(plan, self.material.read(question))
        self.material.use(question)
        integers = np.zeros(mask.shape, np.uint64)
        integers[:, : len(values)] = quantised(values, plan.input_bits)
        body = (integers + mask).astype("<u8", copy=False).tobytes()
        messages = [
            seal(
                Head(Tag.QUESTION, Party.DATA_OWNER, party, self._session, question),
                body,
                derived(seed, "question"),
            )
            for party, seed in zip((Party.ALICE, Party.BOB), seeds, strict=True)
        ]
        self._asked[question] = (seeds[0], seeds[1])
        return Question(question, len(values), *messages)

    def logits(self, question: Question, from_alice: bytes, from_bob: bytes) -> NDArray[np.float64]:
        """The logits of an answer, shape (images, logits).

        Raises
        ------
        MessageError
            If a message is not the answer to this question.
        ValueError
            If the plan answers with classes, or the answer was read before.
        """
        if self.plan.answer != "logits":
            raise ValueError("the plan answers with classes; call classes()")
        total = self._total(question, from_alice, from_bob, "<u8")
        signed = as_signed(total.reshape(self.plan.logits, -1)).T
        return np.asarray(signed[: question.images] / 2.0**self.plan.answer_bits)

    def classes(self, question: Question, from_alice: bytes, from_bob: bytes) -> NDArray[np.int64]:
        """The place of the largest logit, shape (images,); raises as :meth:`logits` does."""
        if self.plan.answer != "class":
            raise ValueError("the plan answers with logits; call logits()")
        total = self._total(question, from_alice, from_bob, "<u4")
        low = total & np.uint64((1 << self.plan.class_bits) - 1)
        return (self.plan.logits - 1 - low.astype(np.int64))[: question.images]

    def close(self) -> None:
        """Let another process use the material's folder."""
        self.material.close()

    def _total(
        self, question: Question, from_alice: bytes, from_bob: bytes, kind: str
    ) -> NDArray[np.uint64]:
        if question.number not in self._asked:
            raise ValueError(f"question {question.number} was not asked here, or answered before")
        seeds = self._asked[question.number]
        shares = []
        for party, message, seed in zip(
            (Party.ALICE, Party.BOB), (from_alice, from_bob), seeds, strict=True
        ):
            head = Head(Tag.ANSWER, party, Party.DATA_OWNER, self._session, question.number)
            body = unseal(message, head, derived(seed, "answer"), answer_bytes(self.plan))
            shares.append(np.frombuffer(body, dtype=kind).astype(np.uint64))
        del self._asked[question.number]
        return shares[0] + shares[1]

    def _checked(self, inputs: ArrayLike) -> NDArray[np.float64]:
        """Inputs in the plan's range, shape (images, *input_shape)."""
        plan = self.plan
        values = double_array("inputs", inputs, f"shape (images, {plan.input_shape})")
        values = values[None] if values.shape == plan.input_shape else values
        if values.shape[1:] != plan.input_shape or not 1 <= len(values) <= plan.batch_size:
            raise ValueError(
                f"inputs have shape {values.shape}; give {plan.input_shape}, or 1 to "
                f"{plan.batch_size} of them"
            )
        low, high = self._bounds
        inside = (values >= low) & (values <= high)
        if not inside.all():
            place = tuple(np.argwhere(~inside)[0][1:].tolist())
            raise OutOfRangeError(
                f"an input has a value outside [{low[place]:g}, {high[place]:g}] at feature "
                f"{label(place)}; clip it, or compile with a wider input_range"
            )
        return values
