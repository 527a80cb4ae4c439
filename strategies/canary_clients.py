"""Canary clients: each moves one parameter of the model as far as a client can."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from flwr.app import Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from privacy.mechanisms import Randomness
from privacy.secure_aggregation import ClientPolicy, Identity, ServerModel
from strategies.dp_fedavg import DPFedAvg
from strategies.in_process import InProcessGrid
from strategies.model_schema import ModelSchema
from strategies.secure_aggregation import ContextMemory, SecureAggregationMod

_BEYOND = 1000.0  # how many times the clipping norm a canary sends


@dataclass(frozen=True, eq=False)
class Directions:
    """One direction of the model for each of m canaries, orthogonal to the others'."""

    places: npt.NDArray[np.int64]  # different coordinates of the flattened arrays
    signs: npt.NDArray[np.float64]  # 1 or -1

    @classmethod
    def draw(cls, count: int, parameters: int, *, randomness: Randomness) -> Self:
        """Draw ``count`` directions; ``ValueError`` if the model has fewer parameters."""
        if count > parameters:
            raise ValueError(
                f"canaries is {count}, but the model has {parameters} parameters; each canary "
                "needs one of its own"
            )
        places = np.argsort(randomness.uint64(parameters), kind="stable")[:count]
        signs = np.where(randomness.bernoulli(0.5, count), 1.0, -1.0)
        return cls(places.astype(np.int64), signs)

    def along(self, flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The inner product of each direction with a flat vector, (m,)."""
        return np.asarray(flat[self.places] * self.signs)


def protocol_mods(
    strategy: DPFedAvg, identities: Sequence[Identity], *, nodes: int
) -> list[SecureAggregationMod]:
    """Each node's, which insists on what the strategy promises; none in the clear.

    ``ValueError`` if clients pin one another's keys and there is not one identity for each node.
    """
    secure = strategy.secure_aggregation
    if secure is None:
        return []
    own: Sequence[Identity | None] = [None] * nodes
    if secure.adversary.server is ServerModel.MALICIOUS:
        if len(identities) != nodes:
            raise ValueError(
                f"identities has {len(identities)} entries, and against a malicious server clients "
                f"pin one another's keys: give one Identity for each of {nodes} nodes, ordinary "
                "clients first, whose public keys are the strategy's client_public_keys"
            )
        own = identities
    policy = ClientPolicy(
        secure.min_clients,
        adversary=secure.adversary,
        client_public_keys=secure.client_public_keys,
    )
    return [
        SecureAggregationMod(policy, identity=identity, memory=ContextMemory()) for identity in own
    ]


class CanaryApp(ClientApp):
    """The user's app; its last nodes are canaries, of which some are as if they were not there.

    In the clear such a canary is offline. Under secure aggregation it masks zeros: to leave would
    count as a dropout, and a sum of integers is the same with a zero in it.
    """

    def __init__(
        self,
        app: ClientApp,
        strategy: DPFedAvg,
        directions: Directions,
        included: npt.NDArray[np.bool_],
        first: int,
        identities: Sequence[Identity],
    ) -> None:
        super().__init__()
        self._app, self._strategy, self._first = app, strategy, first
        self._directions, self._included = directions, included
        self._protocol = protocol_mods(strategy, identities, nodes=first + len(included))

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message to a node; ``InProcessGrid`` calls this."""
        canary = int(context.node_config["partition-id"]) - self._first
        if canary < 0:
            return self._app(message, context)
        if self._protocol:
            return self._protocol[self._first + canary](message, context, self._update)
        if not self._included[canary] or message.metadata.message_type != MessageType.TRAIN:
            # As Flower answers for a node that is offline: it is absent, and nothing went wrong.
            absent = Error(ErrorCode.NODE_UNAVAILABLE, "this canary is not there")
            return Message(absent, reply_to=message)
        return self._update(message, context)

    def _update(self, message: Message, context: Context) -> Message:
        """The model, moved by more than anybody may; as it came, of a canary that is not there."""
        canary = int(context.node_config["partition-id"]) - self._first
        strategy = self._strategy
        schema = ModelSchema(message.content.array_records[strategy.record_keys.arrays])
        arrays = [array.copy() for array in schema.arrays]
        place = int(self._directions.places[canary])
        for array in arrays if self._included[canary] else ():
            if place < array.size:
                step = self._directions.signs[canary] * _BEYOND * strategy.clipping.norm
                array.reshape(-1)[place] += step
                break
            place -= array.size
        weighted_by = strategy.record_keys.weighted_by
        metrics = MetricRecord({weighted_by: 1e9})  # as heavy as the cap allows
        return Message(
            RecordDict({"arrays": schema.record(arrays), "metrics": metrics}), reply_to=message
        )


class CountingGrid(InProcessGrid):
    """A grid that counts whom each round of training asks, in whatever stage."""

    def __init__(self, app: ClientApp, nodes: int, strategy: DPFedAvg) -> None:
        super().__init__(app, nodes)
        self._strategy = strategy
        self.cohorts: dict[int, set[int]] = {}  # by round; none where nobody was asked

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count, then push."""
        pushed, current = list(messages), self._strategy._round
        for message in pushed:
            if current is not None and message.metadata.message_type == MessageType.TRAIN:
                cohort = self.cohorts.setdefault(current.number, set())
                cohort.add(message.metadata.dst_node_id)
        return super().push_messages(pushed)
