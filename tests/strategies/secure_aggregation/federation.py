"""Federations with secure aggregation in one process, and somebody who sits on the wire."""

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from privacy.mechanisms import LatticeGaussian, lattice_radius
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureServer,
    ServerModel,
    ServerStage,
)
from privacy.secure_aggregation._messages import Kind, kind_of
from strategies import (
    Budget,
    ContextMemory,
    DPFedAvg,
    Full,
    InProcessGrid,
    SecureAggregation,
    SecureAggregationMod,
)
from strategies.secure_aggregation.messages import request_digest
from tests.strategies.federation import Update, client_app, model

KEY = "secure-aggregation"
CURIOUS = Adversary(ServerModel.HONEST_BUT_CURIOUS, max_corrupt_fraction=0.1)
MALICIOUS = Adversary(ServerModel.MALICIOUS, max_corrupt_fraction=0.1)
IDENTITIES = [Identity.draw() for _ in range(64)]
PINNED = [identity.public for identity in IDENTITIES]


def policy(adversary: Adversary = CURIOUS, *, min_clients: int = 3) -> ClientPolicy:
    return ClientPolicy(min_clients=min_clients, adversary=adversary, client_public_keys=PINNED)


def mod(adversary: Adversary = CURIOUS, *, min_clients: int = 3) -> Any:
    """The mod; of the first 64 nodes each has a pinned identity."""
    insists = policy(adversary, min_clients=min_clients)

    def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        place = int(context.node_config["partition-id"])
        identity = IDENTITIES[place] if place < len(IDENTITIES) else None
        inner = SecureAggregationMod(insists, identity=identity, memory=ContextMemory())
        return inner(message, context, call_next)

    return secagg_mod


def secure_app(
    update: Update,
    adversary: Adversary = CURIOUS,
    *,
    examples: Callable[[int], float] = lambda _: 1.0,
    min_clients: int = 3,
) -> ClientApp:
    """Clients that move the model by ``update``, with the mod."""
    mods = [mod(adversary, min_clients=min_clients)]
    return client_app(update, examples=examples, mods=mods)


def secure(adversary: Adversary = CURIOUS, **settings: Any) -> SecureAggregation:
    pinned = PINNED if adversary is MALICIOUS else ()
    usual: dict[str, Any] = {
        "min_clients": 3,
        "max_dropout_fraction": 0.3,
        "dropout_probability": 0.0,
        "client_public_keys": pinned,
    }
    return SecureAggregation(adversary=adversary, **(usual | settings))


def strategy_of(
    folder: Path, nodes: int, parameters: int, setting: SecureAggregation | None, **settings: Any
) -> DPFedAvg:
    """A strategy without noise over everyone; without secure aggregation on the same lattice."""
    folder.mkdir(exist_ok=True)
    plain = LatticeGaussian(lattice_radius(parameters)) if setting is None else None
    usual: dict[str, Any] = {
        "population": nodes,
        "sampling": Full(),
        "clipping": 1.0,
        "noise_multiplier": 0.0,
        "budget": Budget(math.inf, 1e-5),
        "mechanism": plain,
        "ledger": folder / "ledger.jsonl",
        "secure_aggregation": setting,
    }
    return DPFedAvg(**(usual | settings))


def asked(message: Message) -> Kind:
    """Which stage a message of the server asks for."""
    return kind_of(message.content[KEY]["message"])


def said(reply: Message) -> bytes:
    """The protocol bytes of a reply."""
    carried = reply.content[KEY]["message"]
    assert isinstance(carried, bytes)
    return carried


class Wire(InProcessGrid):
    """A grid whose wire is read, cut and tampered with.

    ``cut(message)`` says whose answer is lost, ``alter(message, reply)`` what arrives instead.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        *,
        cut: Callable[[Message], bool] = lambda _: False,
        alter: Callable[[Message, Message], Message] = lambda _, reply: reply,
    ) -> None:
        super().__init__(app, nodes)
        self._cut, self._alter = cut, alter
        self.requests: list[Message] = []
        self.replies: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.requests += messages
        return super().push_messages(messages)

    def _work(self, message: Message) -> Message:
        if self._cut(message):
            return Message(Error(3, "the node is offline"), reply_to=message)
        reply = super()._work(message)
        self.replies.append(reply)
        return self._alter(message, reply)


def forged(message: Message, content: bytes) -> Message:
    """A reply with any protocol bytes."""
    return Message(RecordDict({KEY: ConfigRecord({"message": content})}), reply_to=message)


def request_to_train(
    node: int,
    protocol: bytes = b"",
    *,
    arrays: ArrayRecord | None = None,
    config: dict[str, Any] | None = None,
    **change: Any,
) -> Message:
    """What the strategy sends where an update is needed, with anything changed in it."""
    encoding: dict[str, Any] = {
        "message": protocol,
        "clipping-norms": [1.0],
        "clipping-groups": [0],
        "weight-cap": 0.0,
        "weighted-by": "num-examples",
        "mechanism": "masked-lattice-gaussian",
        "mechanism-settings": [256],
        "noise-multiplier": 0.0,
    }
    changed = {name.replace("_", "-"): value for name, value in change.items()}
    content = RecordDict(
        {
            "arrays": model((9,)) if arrays is None else arrays,
            "config": ConfigRecord({"server-round": 1} | (config or {})),
            KEY: ConfigRecord({k: v for k, v in (encoding | changed).items() if v is not None}),
        }
    )
    return Message(content, message_type="train", dst_node_id=node)


class ByHand:
    """A round that the test itself plays as the server, over any grid.

    ``requests`` are the protocol's messages to be sent next, by node; at first those that ask
    for updates. The terms announce ``announced``, by default what ``request_to_train`` makes.
    """

    def __init__(
        self,
        grid: InProcessGrid,
        nodes: Iterable[int],
        adversary: Adversary = CURIOUS,
        *,
        announced: Message | None = None,
        run: bytes = bytes(16),
        number: int = 1,
        bound: int = 256,
        size: int = 9,
    ) -> None:
        self.grid = grid
        digest = request_digest(request_to_train(0) if announced is None else announced)
        terms = RoundTerms(run, number, size, bound, 3, adversary.server, digest)
        pinned = PINNED if adversary is MALICIOUS else ()
        nodes = list(nodes)
        self.server = SecureServer(
            terms,
            adversary=adversary,
            max_dropout_fraction=0.3,
            cohort=len(nodes),
            client_public_keys=pinned,
        )
        self.requests = dict.fromkeys(nodes, self.server.invitation())
        self.replies: list[Message] = []
        while self.requests and self.server.stage is not ServerStage.MASKING:
            self.send(protocol_message)

    def send(
        self, make: Callable[[int, bytes], Message], *, without: Collection[int] = ()
    ) -> list[Message]:
        """Play one stage: send what ``make`` makes of each message; the replies to it."""
        asked_nodes = [node for node in self.requests if node not in without]
        messages = [make(node, self.requests[node]) for node in asked_nodes]
        replies = list(self.grid.send_and_receive(messages))
        for reply in replies:
            if not reply.has_error():
                self.server.receive(reply.metadata.src_node_id, said(reply))
        self.replies += replies
        self.requests = self.server.advance()
        return replies

    def open(self) -> Any:
        """Play what is left of the round; the opened sum."""
        while self.requests:
            self.send(protocol_message)
        return self.server.open()

    @property
    def refusals(self) -> set[str]:
        """The names under which clients refused."""
        return {r.error.reason.partition(":")[0] for r in self.replies if r.has_error()}


def protocol_message(node: int, content: bytes) -> Message:
    """A message of a stage without training."""
    record = RecordDict({KEY: ConfigRecord({"message": content})})
    return Message(record, message_type="train", dst_node_id=node)
