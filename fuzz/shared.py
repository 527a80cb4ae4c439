"""Shared inference: plans, letters, material, and what parties send each other."""

import contextlib
import hashlib
import json
import socket
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuzz.edits import EDITS, edited
from fuzz.target import Target
from privacy.shared_inference import (
    DataOwner,
    Link,
    MaterialStore,
    Party,
    Plan,
    Provider,
    SharedModel,
    Worker,
    compile_model,
    converse_in_process,
    share_model,
)
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError
from privacy.shared_inference.frames import Kind, State, frame, refused, split
from privacy.shared_inference.messages import Letter

_X = [0.0, 1.0, 0.5, 0.25]
_PARTIES = (Party.ALICE, Party.BOB, Party.DATA_OWNER, Party.MODEL_OWNER)


@cache
def _model(kind: str) -> SharedModel:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
    square = nn.Unflatten(1, (1, 2, 2))
    if kind == "class":
        layers[1] = nn.Sequential(nn.ReLU(), square, nn.MaxPool2d(2), nn.Flatten())
        layers[2] = nn.Linear(1, 3)
    model = nn.Sequential(*layers)
    return compile_model(
        model,
        input_shape=(4,),
        input_range=(0.0, 1.0),
        answer="class" if kind == "class" else "logits",
    )


class _Session:
    """Everybody of a session; material is dealt for one question at a time."""

    def __init__(self) -> None:
        model = _model("logits")
        self.plan, self.provider = model.plan, Provider(model.plan)
        both = share_model(model, self.provider.letter(Party.MODEL_OWNER))
        self.alice, self.bob = (
            Worker(self.plan, self.provider.letter(party), shares)
            for party, shares in zip((Party.ALICE, Party.BOB), both, strict=True)
        )
        self.owner = DataOwner(self.plan, self.provider.letter(Party.DATA_OWNER))

    def provision(self) -> None:
        made = self.provider.provision(1)
        self.owner.material.add(made.data_owner)
        self.alice.material.add(made.alice)
        self.bob.material.add(made.bob)


def shared_plan() -> Target:
    """A plan that a worker sends, or that lies in a folder."""
    plans = [_model(kind).plan.to_bytes() for kind in ("logits", "class")]

    def read(content: bytes) -> None:
        accepted = Plan.from_bytes(content)
        assert str(accepted) and accepted.exchanges >= 0 and len(accepted.digest) == 32

    return Target(read, (MessageError,), (*plans, b"BSSP\x03", b""))


def letter() -> Target:
    """What the provider tells a party; with a digest that fits."""
    session = _Session()
    letters = [session.provider.letter(party) for party in _PARTIES]

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        changed = edited(letters[first % 4], content[1:])
        if first & 4:
            changed = changed[:-32] + hashlib.sha256(changed[:-32]).digest()
        Letter.from_bytes(changed, session.plan, *_PARTIES)

    seeds = tuple(bytes([first]) + edits for first in range(8) for edits in EDITS)
    return Target(read, (MessageError,), seeds)


def frames() -> Target:
    """What a worker sends to the data owner."""

    def read(content: bytes) -> None:
        kind, body = split(content)
        if kind == Kind.REFUSAL:
            error = refused(body, "alice")
            assert isinstance(error, MaterialError | MessageError | LinkError)
        State.from_bytes(body)

    seeds = (
        frame(Kind.STATE, State(bytes(32), 3, 4).to_bytes()),
        frame(Kind.REFUSAL, b'{"reason": "material", "text": "none is left"}'),
        frame(Kind.REFUSAL, b"[[[[]]]]"),
        b"",
    )
    return Target(read, (MessageError,), seeds)


def link() -> Target:
    """Whatever comes over a connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def read(content: bytes) -> None:
        there = socket.create_connection(listening.getsockname())
        here, _ = listening.accept()
        there.sendall(content[:30_000])  # as much as a system takes unread
        there.close()
        messages = 0
        with Link(here, max_bytes=1 << 16, timeout=5.0) as opened:
            try:
                while True:
                    opened.receive()
                    messages += 1
            except LinkError:  # which is how each connection ends
                if not messages:
                    raise

    seeds = (b"\x03\x00\x00\x00abc", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x01\x00")
    return Target(read, (LinkError,), seeds)


def shared_material() -> Target:
    """Material that a party gets from the provider, and the piece that it reads of it."""
    session = _Session()
    opened = Letter.from_bytes(session.provider.letter(Party.DATA_OWNER), session.plan, *_PARTIES)
    size = session.owner.material._size
    made = session.provider.provision(2).data_owner

    def read(content: bytes) -> None:
        store = MaterialStore(Party.DATA_OWNER, opened.session, opened.secrets[0], size)
        store.add(edited(made, content))
        store.read(store.next_question)

    return Target(read, (MessageError, MaterialError), EDITS)


def worker() -> Target:
    """A question from the data owner, and what the other worker answers to a worker's messages."""
    session = _Session()

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        session.provision()
        question = session.owner.ask(_X)
        if first % 2 == 0:
            asked = edited(question.for_alice, content[1:])
            converse_in_process(session.alice.answer(asked), session.bob.answer(question.for_bob))
            return
        alice, bob = session.alice.answer(question.for_alice), session.bob.answer(question.for_bob)
        sent, other = next(alice), next(bob)
        for _ in range(first // 2 % 4):
            sent, other = alice.send(other), bob.send(sent)
        alice.send(edited(other, content[1:]))

    def stopped(content: bytes) -> None:
        with contextlib.suppress(StopIteration):  # it was the last message
            read(content)

    seeds = tuple(bytes([first]) + edits for first in range(4) for edits in EDITS)
    return Target(stopped, (MessageError, MaterialError), seeds)


def shares() -> Target:
    """What the workers answer to the data owner."""
    session = _Session()

    def read(content: bytes) -> None:
        session.provision()
        question = session.owner.ask(_X)
        alice, bob = converse_in_process(
            session.alice.answer(question.for_alice), session.bob.answer(question.for_bob)
        )
        session.owner.logits(question, edited(alice, content), bob)

    return Target(read, (MessageError,), EDITS)


def provider_state() -> Target:
    """The file from which a provider goes on: what it takes, it deals from."""
    file = Path(tempfile.mkdtemp(prefix="fuzz-")) / "state"
    plan = _model("logits").plan
    Provider(plan, file).provision(1)
    good = file.read_bytes()
    fields = json.loads(good)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        provider = Provider(plan, file)
        first, second = provider.provision(1), provider.provision(1)
        assert second.first == first.first + 1
        for party in _PARTIES:
            Letter.from_bytes(provider.letter(party), plan, party)

    others: tuple[Any, ...] = (
        {**fields, "next": 2**63},
        {**fields, "next": 1.5},
        {**fields, "more": ""},
        [],
        1,
    )
    seeds = (good, *(json.dumps(other).encode() for other in others))
    return Target(read, (MaterialError,), seeds)
