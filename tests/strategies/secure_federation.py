"""Federations with secure aggregation in one process, and somebody who sits on the wire."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from federation import Update, client_app
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from privacy.mechanisms import LatticeGaussian, lattice_radius
from privacy.secure_aggregation import Adversary, ClientPolicy, Identity, ServerModel
from privacy.secure_aggregation._messages import Kind, kind_of
from strategies import (
    ContextMemory,
    DPFedAvg,
    Full,
    InProcessGrid,
    SecureAggregation,
    SecureAggregationMod,
)

KEY = "secure-aggregation"
CURIOUS = Adversary(ServerModel.HONEST_BUT_CURIOUS, corrupt=0.1)
MALICIOUS = Adversary(ServerModel.MALICIOUS, corrupt=0.1)
IDENTITIES = [Identity.draw() for _ in range(64)]
PINNED = [identity.public for identity in IDENTITIES]


def policy(adversary: Adversary = CURIOUS, *, minimum: int = 3) -> ClientPolicy:
    return ClientPolicy(minimum_cohort=minimum, adversary=adversary, identities=PINNED)


def mod(adversary: Adversary = CURIOUS, *, minimum: int = 3) -> Any:
    """The mod; of the first 64 nodes each has a pinned identity."""
    insists = policy(adversary, minimum=minimum)

    def take_part(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        place = int(context.node_config["partition-id"])
        identity = IDENTITIES[place] if place < len(IDENTITIES) else None
        inner = SecureAggregationMod(insists, identity=identity, memory=ContextMemory())
        return inner(message, context, call_next)

    return take_part


def secure_app(
    update: Update,
    adversary: Adversary = CURIOUS,
    *,
    examples: Callable[[int], float] = lambda _: 1.0,
    minimum: int = 3,
) -> ClientApp:
    """Clients that move the model by ``update``, with the mod."""
    mods = [mod(adversary, minimum=minimum)]
    return client_app(update, examples=examples, mods=mods)


def secure(adversary: Adversary = CURIOUS, **settings: Any) -> SecureAggregation:
    pinned = PINNED if adversary is MALICIOUS else ()
    usual: dict[str, Any] = {
        "minimum": 3,
        "dropout": 0.3,
        "client_dropout": 0.0,
        "identities": pinned,
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
        "target_delta": 1e-5,
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
