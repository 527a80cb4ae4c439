"""Secure aggregation: what a server sends a client, a client a server, and their records."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fuzz.edits import EDITS, edited
from fuzz.target import Target
from privacy.mechanisms import MaskedGaussian, SiloGaussian
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
    ServerStage,
)
from privacy.secure_aggregation._crypto import sign
from privacy.secure_aggregation._messages import (
    Kind,
    complaint_statement,
    decode,
    encode,
    encode_set,
    kind_of,
)
from privacy.secure_aggregation.errors import (
    MalformedMessageError,
    RefusedError,
    RejectedMessageError,
    RoundAbortedError,
    UnreadableStateError,
)
from privacy.statistics import TableQuery
from strategies.distributed_dpsgd.requests import GradientSum, TableSum, read_request
from strategies.encrypted_round.messages import read_accuracy
from strategies.errors import ReplyError
from strategies.secure_aggregation.update_encoding import UpdateEncoding

_CLIENTS, _SIZE = 5, 4
_RUN = bytes(16)


class _Round:
    """A round of few clients and a server; one end of what node 0 sends or gets is fuzzed."""

    def __init__(self, server: ServerModel) -> None:
        self.identities = [Identity(bytes([node]) * 32) for node in range(_CLIENTS)]
        adversary = Adversary(server, max_corrupt_fraction=0.1)
        public = [identity.public for identity in self.identities]
        self.policy = ClientPolicy(min_clients=3, adversary=adversary, client_public_keys=public)
        self.clients = [SecureClient(self.policy, identity=each) for each in self.identities]
        self.vectors = [np.full(_SIZE, node + 1) for node in range(_CLIENTS)]
        self.server = SecureServer(
            RoundTerms(_RUN, 1, _SIZE, 100, 3, server),
            adversary=adversary,
            max_dropout_fraction=None,
            cohort=_CLIENTS,
            client_public_keys=public,
        )

    def stages(self) -> Iterator[dict[int, bytes]]:
        """The server's messages, stage by stage; who takes them has the answers received."""
        messages = dict.fromkeys(range(_CLIENTS), self.server.invitation())
        while messages:
            yield messages
            messages = self.server.advance()

    def answer(self, node: int, message: bytes) -> bytes:
        client = self.clients[node]
        trains = client.needs_vector(message)
        return client.answer(message, self.vectors[node] if trains else None)

    def accusation(self, accuser: int, owner: int) -> bytes:
        """A complaint, as a node may make it falsely, of the shares that another gave it."""
        state = self.server._round
        around = state.ring.neighbours(state.index[accuser])
        statement = complaint_statement(state.session, state.index[owner], state.index[accuser])
        signature = sign(self.identities[accuser].private, statement)
        return encode(
            Kind.COMPLAINTS,
            state.session,
            encode_set([around.index(state.index[owner])], len(around)),
            signature if state.terms.malicious else b"",
        )

    def finish(self) -> NDArray[np.int64]:
        """Play the stages that are left, once the answers of this one are there, and open the sum.

        Node 0 may have sent what its own client did not, which may then refuse to go on.
        """
        while messages := self.server.advance():
            for node, message in messages.items():
                try:
                    self.server.receive(node, self.answer(node, message))
                except RefusedError:
                    if node != 0:
                        raise
        return self.server.open()


def _recorded(server: ServerModel) -> list[tuple[bytes, bytes]]:
    """What node 0 remembers before each message of the server, and the message."""
    round_ = _Round(server)
    steps = []
    for messages in round_.stages():
        for node, message in messages.items():
            if node == 0:
                steps.append((round_.clients[0].to_bytes(), message))
            round_.server.receive(node, round_.answer(node, message))
    return steps


@dataclass(frozen=True)
class _Moment:
    """A round in which the server misses node 0's answer alone, and that answer."""

    round_: _Round
    answer: bytes


def _moments(server: ServerModel, *, disputed: bool) -> list[_Moment]:
    """The moments of a round; ``disputed``: the one at which node 0 shows shares."""
    round_ = _Round(server)
    moments = []
    for messages in round_.stages():
        stage = round_.server.stage
        answers = {node: round_.answer(node, message) for node, message in messages.items()}
        if disputed and stage is ServerStage.CHECKING:
            answers[1] = round_.accusation(1, 0)
        own = answers.pop(0)
        for node, answer in answers.items():
            round_.server.receive(node, answer)
        if not disputed or stage is ServerStage.DISPUTING:
            moments.append(_Moment(copy.deepcopy(round_), own))
        round_.server.receive(0, own)
    return moments


_BOTH = (ServerModel.HONEST_BUT_CURIOUS, ServerModel.MALICIOUS)


def secure_client() -> Target:
    """A server's message to a client, at each stage and under both protocols."""
    rounds = [(_Round(server), step) for server in _BOTH for step in _recorded(server)]

    def read(content: bytes) -> None:
        round_, (state, message) = rounds[(content[0] if content else 0) % len(rounds)]
        client = SecureClient.from_bytes(state, round_.policy, identity=round_.identities[0])
        client.answer(edited(message, content[1:]), round_.vectors[0])

    seeds = tuple(bytes([stage]) + edits for stage in range(len(rounds)) for edits in EDITS)
    return Target(read, (RefusedError, MalformedMessageError), seeds)


def secure_server() -> Target:
    """A client's answer to the server: it costs that client, and nothing else.

    From each state in which an answer leaves the server the rest of the round is played once; a
    masked vector's numbers lead to another sum, and to no other state.
    """
    moments = [
        moment
        for disputed in (False, True)
        for server in _BOTH
        for moment in _moments(server, disputed=disputed)
    ]
    played: set[tuple[int, str]] = set()

    def read(content: bytes) -> None:
        number = (content[0] if content else 0) % len(moments)
        moment = moments[number]
        server = copy.deepcopy(moment.round_.server)
        changed = edited(moment.answer, content[1:])
        with contextlib.suppress(RejectedMessageError):
            server.receive(0, changed)
        state = server._round
        reached = number, repr((state.clients, state.answered, state.excluded, state.offences))
        if reached in played:
            return
        played.add(reached)
        round_ = copy.deepcopy(moment.round_)
        round_.server = server
        masks = kind_of(moment.answer) is Kind.MASKED_UPDATE
        with contextlib.suppress(RoundAbortedError):
            opened = round_.finish()
            if not masks or changed == moment.answer:  # another vector is another sum
                assert (opened == sum(round_.vectors[node] for node in server.survivors)).all()

    seeds = tuple(bytes([first]) + edits for first in range(len(moments)) for edits in EDITS[:2])
    return Target(read, (), seeds)


def secure_state() -> Target:
    """A client's own memory, of a file; with a digest that fits."""
    rounds = [(_Round(server), state) for server in _BOTH for state, _ in _recorded(server)]

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        round_, state = rounds[first // 2 % len(rounds)]
        changed = edited(state, content[1:])
        if first & 1:
            with contextlib.suppress(MalformedMessageError):
                changed = _digested(changed)
        SecureClient.from_bytes(changed, round_.policy, identity=round_.identities[0])

    seeds = tuple(bytes([first]) + edits for first in range(2 * len(rounds)) for edits in EDITS)
    return Target(read, (UnreadableStateError,), seeds)


def _digested(state: bytes) -> bytes:
    from privacy.secure_aggregation._crypto import digest
    from privacy.secure_aggregation.client import _MOST_OPEN

    fields = decode(state, Kind.STATE, [None] * (2 + _MOST_OPEN))
    return encode(Kind.STATE, digest(b"state", *fields), *fields)


def records() -> Target:
    """Flower's records from a server or a node, written as JSON.

    Lists, numbers, texts and truth values are those of Flower; a text that begins with ``0x`` is
    bytes.
    """
    step = GradientSum(
        unit="person",
        persons=1000,
        clipping_norm=0.5,
        sampling_rate=0.02,
        noise_multiplier=1.5,
        mechanism=SiloGaussian(5, 2),
    )
    table = TableSum(
        unit="person",
        persons=1000,
        noise_multiplier=4.0,
        mechanism=SiloGaussian(5, 2),
        query=TableQuery(bounds=[(0.0, 120.0), (-1.0, 1.0)], classes=3, bins=5),
    )
    written = []
    for request in (step, table):
        record = ConfigRecord({})
        request.write_into(record)
        written.append(dict(record))
    written.append(
        {
            "clipping-norms": [1.0],
            "clipping-groups": [0, 0],
            "weight-cap": 2.0,
            "weighted-by": "num-examples",
            "mechanism": MaskedGaussian.name,
            "mechanism-settings": [3],
            "noise-multiplier": 1.0,
        }
    )
    written.append({"accuracy": 0.5})
    readers: tuple[Callable[[Any], object], ...] = (
        read_request,
        UpdateEncoding.from_record,
        lambda record: read_accuracy(RecordDict({"metrics": record})),
    )
    kinds: tuple[Callable[[Any], object], ...] = (ConfigRecord, ConfigRecord, MetricRecord)

    def read(content: bytes) -> None:
        number = (content[0] if content else 0) % len(readers)
        try:
            given = dict(json.loads(content[1:]))
            record = kinds[number]({str(name): _value(value) for name, value in given.items()})
        except (ValueError, TypeError, OverflowError, RecursionError):
            return  # Flower sends no such record
        readers[number](record)

    numbered = zip((0, 0, 1, 2), written, strict=True)
    seeds = [bytes([number]) + json.dumps(fields).encode() for number, fields in numbered]
    return Target(read, (MalformedMessageError, ReplyError), tuple(seeds))


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(part) for part in value]
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    return value
