"""One round of training: whom it asked, what they may add, what it releases."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID

from privacy.accounting import joint_noise_multiplier
from privacy.mechanisms import (
    ClippingGeometry,
    Randomness,
    SumMechanism,
)
from privacy.mechanisms.errors import UpdateError
from strategies._operator_log import operator_log
from strategies._replies import Fault, ReplyError, Template, TrainReply
from strategies._watch import Gathered, RunWatch
from strategies.weighting import Weighting

Vector = npt.NDArray[Any]
_T = TypeVar("_T")


class Asked:
    """The messages of a round, and which of them are still unanswered."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._open = {message.metadata.dst_node_id: message for message in messages}
        self.nodes = frozenset(self._open)

    def answer(self, reply: Message) -> None:
        """Take a reply as the answer of its node.

        Raises
        ------
        ReplyError
            If nothing was asked of this node, or it has answered, or it answers another message.
        """
        node = reply.metadata.src_node_id
        message = self._open.get(node)
        if message is None and node == SUPERLINK_NODE_ID:
            raise ReplyError("the SuperLink speaks for a node that is offline or late", None)
        if message is None:
            raise ReplyError("nothing was asked of this node, or it has answered already", None)
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ReplyError("it answers a message of another round", None)
        del self._open[node]

    @property
    def silent(self) -> list[int]:
        """The nodes that have not answered."""
        return sorted(self._open)


@dataclass(frozen=True)
class Multipliers:
    """How a round's noise multiplier is shared by what the round releases."""

    update: float
    count: float | None  # of the sum of clipping bits, where the norm adapts


def share_multiplier(z: float, others: Sequence[float]) -> float:
    """What is left of a round's noise multiplier beside that of its other releases.

    Raises
    ------
    ValueError
        If the others alone spend more than the round may.
    """
    if z == 0 or not others:
        return z
    taken = sum(other**-2 for other in others)
    if taken >= z**-2:
        raise ValueError(
            f"the noised metrics alone spend more than a round with noise_multiplier = {z:g} "
            "may; raise their noise"
        )
    update: float = (z**-2 - taken) ** -0.5 * (1 + 1e-9)
    if joint_noise_multiplier(update, *others) < z:
        raise ArithmeticError("the shares of the noise multiplier exceed the whole")
    return update


class TrainRound:
    """The sums of one training round. Replies go in, noisy sums come out, once."""

    def __init__(
        self,
        number: int,
        template: Template,
        geometry: ClippingGeometry,
        multipliers: Multipliers,
        *,
        mechanism: SumMechanism,
        weighting: Weighting,
        weighted_by_key: str,
        randomness: Randomness,
    ) -> None:
        self.number = number
        self.template = template
        self.geometry = geometry
        self._weighting = weighting
        self._key = weighted_by_key
        self._sum = mechanism.open(
            template.arrays,
            geometry,
            noise_multiplier=multipliers.update,
            randomness=randomness,
        )
        self._bits = None
        if multipliers.count is not None:
            self._bits = mechanism.open(
                [np.zeros(1)],
                ClippingGeometry((0.5,), (0,)),
                noise_multiplier=multipliers.count,
                randomness=randomness,
            )

    def read(self, reply: Message) -> tuple[TrainReply, float]:
        """What a reply says, and how much it counts; the sums are not touched.

        Raises
        ------
        ReplyError
            If it cannot be read.
        """
        content = self.template.read(reply)
        try:
            return content, self._weighting.weight(content.metrics, self._key)
        except ValueError as error:
            raise ReplyError(str(error), Fault.WEIGHT) from error

    def add(self, content: TrainReply, weight: float) -> None:
        """Bound one reply and add it.

        Raises
        ------
        ReplyError
            If it cannot be bounded; the sums are as they were.
        """
        try:
            contribution = self._sum.add(content.arrays, weight=weight)
        except UpdateError as error:
            raise ReplyError(str(error), Fault.VALUES) from error
        if self._bits is not None:
            bit = np.array([-0.5 if contribution.clipped else 0.5])
            self._bits.add([bit], weight=1.0)

    def release(self) -> list[Vector]:
        """The noisy sum of updates."""
        return self._sum.release()

    def unclipped_fraction(self, expected_cohort: float) -> float | None:
        """The noisy fraction of clients that were not clipped, where the norm adapts."""
        if self._bits is None:
            return None
        (total,) = self._bits.release()
        return float(total[0]) / expected_cohort + 0.5


def collect(
    round_name: str,
    asked: Asked,
    replies: Iterable[Message],
    *,
    read: Callable[[Message], _T],
    use: Callable[[_T], None],
    watch: RunWatch,
) -> Gathered:
    """Feed every good reply to ``use``, and say what came.

    What was dropped goes to the operator's log, and each kind of it, once, to the console.

    Whatever goes wrong while a stranger's reply is *read* costs that reply and nothing else.
    What goes wrong while it is *used*, other than that it cannot be bounded, ends the run:
    the sums could no longer be trusted.
    """
    used = 0
    dropped: set[int] = set()
    for reply in replies:
        try:
            asked.answer(reply)
            try:
                content = read(reply)
            except ReplyError:
                raise
            except Exception as error:
                raise ReplyError(f"it cannot be read ({type(error).__name__})") from error
            use(content)
            used += 1
        except ReplyError as error:
            operator_log.warning(
                "%s: dropped the reply of node %s: %s",
                round_name,
                reply.metadata.src_node_id,
                error,
            )
            watch.dropped(round_name, error.fault)
            if error.fault is not None:
                dropped.add(reply.metadata.src_node_id)
    operator_log.info("%s: %d replies used; silent nodes: %s", round_name, used, asked.silent)
    return Gathered(asked.nodes, frozenset(dropped), used)
