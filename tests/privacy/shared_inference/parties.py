"""Everybody of a session, in this process."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from privacy.mechanisms.randomness import SystemRandomness
from privacy.shared_inference import (
    DataOwner,
    Party,
    Provider,
    SharedModel,
    Worker,
    converse_in_process,
    share_model,
)
from privacy.shared_inference.material import deal, input_mask, read_piece
from privacy.shared_inference.plan import ComparingStep, Plan
from privacy.shared_inference.ring import Ring, Stream
from privacy.shared_inference.worker_steps import WeightShares, answer, prepare


@dataclass
class Session:
    """Data owner, workers and provider of a model."""

    provider: Provider
    owner: DataOwner
    alice: Worker
    bob: Worker

    def provision(self, questions: int) -> None:
        made = self.provider.provision(questions)
        self.owner.material.add(made.data_owner)
        self.alice.material.add(made.alice)
        self.bob.material.add(made.bob)

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        return self._asked(inputs, self.owner.logits)

    def classes(self, inputs: np.ndarray) -> np.ndarray:
        return self._asked(inputs, self.owner.classes)

    def _asked(self, inputs: np.ndarray, read: Callable[..., np.ndarray]) -> np.ndarray:
        question = self.owner.ask(inputs)
        both = converse_in_process(
            self.alice.answer(question.for_alice), self.bob.answer(question.for_bob)
        )
        return read(question, *both)


def session(compiled: SharedModel, questions: int = 0, folder: Path | None = None) -> Session:
    """A session with material; in a folder, for each party one of its own in it."""
    plan, provider = compiled.plan, Provider(compiled.plan, folder and folder / "provider")
    models = share_model(compiled, provider.letter(Party.MODEL_OWNER))
    alice, bob = (
        Worker(plan, provider.letter(party), model, folder and folder / party.name)
        for party, model in zip((Party.ALICE, Party.BOB), models, strict=True)
    )
    owner = DataOwner(plan, provider.letter(Party.DATA_OWNER), folder and folder / "owner")
    made = Session(provider, owner, alice, bob)
    if questions:
        made.provision(questions)
    return made


@dataclass
class Protocol:
    """The protocol without messages: integers in, the sum of both shares out, and what is seen."""

    plan: Plan
    weights: Ring
    opened: list[bytes] = field(default_factory=list)
    """The question, what the workers told each other and what both add up to, and their shares."""

    def __post_init__(self) -> None:
        both = [Stream(os.urandom(32)).take(self.plan.weights) for _ in range(2)]
        self.masks = both[0] + both[1]
        masked = self.weights - self.masks
        if self.plan.public_model:
            self._shares = [WeightShares.public(holder, self.weights) for holder in (0, 1)]
        else:
            self._shares = [WeightShares.of(holder, masked, both[holder]) for holder in (0, 1)]

    def run(self, inputs: Ring) -> Ring:
        plan = self.plan
        pieces = deal(plan, self.masks, SystemRandomness())
        masked = inputs + input_mask(plan, pieces[2])[0]
        self.opened.append(masked.tobytes())
        sides = []
        for holder, weights in enumerate(self._shares):
            prepared = prepare(plan, weights, read_piece(plan, holder, pieces[holder]))
            sides.append(answer(plan, weights, prepared, masked))
        return self._turns(*sides)

    def _turns(self, alice: Iterator[bytes], bob: Iterator[bytes]) -> Ring:
        sides, made, sent = (alice, bob), [None, None], [None, None]
        kinds = iter(exchanged_kinds(self.plan))
        while any(share is None for share in made):
            moved = []
            for side in (0, 1):
                try:
                    moved.append(sides[side].send(sent[1 - side]))
                except StopIteration as end:
                    made[side] = end.value
                    moved.append(None)
            sent = moved
            if None not in sent:
                kind = next(kinds)
                one, other = (np.frombuffer(message, kind) for message in sent)
                both = one ^ other if kind == np.uint8 else one + other
                self.opened += [*sent, both.tobytes()]
        self.opened += [share.tobytes() for share in made]
        return made[0] + made[1]


def exchanged_kinds(plan: Plan) -> list[type]:
    """Of the exchanges in their order: bits, whose sum is XOR, or elements of the ring."""
    kinds: list[type] = []
    for index, step in enumerate(plan.steps):
        kinds += [np.uint8] * isinstance(step, ComparingStep) + [np.uint64] * plan.masked[index + 1]
    return kinds
