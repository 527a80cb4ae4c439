"""Replies to a round's messages: received one by one, and used or dropped for a reason."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import httpx
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from privacy import arguments
from privacy.untrusted_text import error_quoted, quoted
from strategies.errors import Fault, ReplyError
from strategies.lost_clients import FaultLog, RoundReplies, operator_log

_T = TypeVar("_T")
_SHORTEST, _LONGEST = 0.02, 1.0  # seconds between looks when nothing has arrived

DECLINED = ErrorCode.MOD_FAILED_PRECONDITION
"""Flower's own code for what a node's precondition does not allow."""
# Flower's own answers in place of a node's.
_ABSENT = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}


def decline(message: Message, reason: str) -> Message:
    """The reply of a node whose owner does not allow what ``message`` asks.

    It is dropped as a client's exception is, but logged as a decision, not as a fault to mend.

    Parameters
    ----------
    message : Message
    reason : str
        For the operator's log. It must tell nothing of the node's records.

    Examples
    --------
    >>> try:
    ...     payment = pay(protection, batches, ledger=ledger)
    ... except LocalBudgetError as spent:  # its message carries no number
    ...     return decline(message, str(spent))
    """
    return Message(Error(DECLINED, reason), reply_to=message)


def is_decline(reply: Message) -> bool:
    """Whether a reply was made by :func:`decline`."""
    return reply.has_error() and int(reply.error.code) == DECLINED


@dataclass(frozen=True, kw_only=True)
class RecordKeys:
    """Keys in the records of a message, as in Flower's ``FedAvg``.

    Parameters
    ----------
    arrays : str
        The ``ArrayRecord`` that is sent; Flower's ``arrayrecord_key``.
    config : str
        The ``ConfigRecord`` that is sent; Flower's ``configrecord_key``.
    weighted_by : str
        The metric of a reply by which it is weighted; Flower's ``weighted_by_key``.
    """

    arrays: str = "arrays"
    config: str = "config"
    weighted_by: str = "num-examples"

    def __post_init__(self) -> None:
        for name in ("arrays", "config", "weighted_by"):
            text = arguments.text(f"record_keys.{name}", getattr(self, name))
            object.__setattr__(self, name, text)


class PendingReplies:
    """The messages of a round, and which of them are still unanswered."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._open = {message.metadata.dst_node_id: message for message in messages}
        self.nodes = frozenset(self._open)

    @classmethod
    def to(cls, nodes: Iterable[int], content: RecordDict, message_type: str) -> Self:
        """One message for each node."""
        return cls(Message(content, node, message_type) for node in nodes)

    @property
    def messages(self) -> list[Message]:
        """Those that are unanswered."""
        return list(self._open.values())

    def answer(self, reply: Message) -> None:
        """Take a reply as the answer of its node, or raise a ``ReplyError`` if it is none."""
        node = reply.metadata.src_node_id
        message = self._open.get(node)
        if message is None and node == SUPERLINK_NODE_ID:
            raise ReplyError("the SuperLink answers for a node that is offline or late", None)
        if message is None:
            raise ReplyError("nothing was asked of this node, or it has answered already", None)
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ReplyError("it answers a message of another round", None)
        del self._open[node]

    @property
    def silent(self) -> list[int]:
        """The nodes that have not answered."""
        return sorted(self._open)


def collect(
    round_name: str,
    asked: PendingReplies,
    replies: Iterable[Message],
    *,
    read: Callable[[Message], _T],
    use: Callable[[_T], None],
    faults: FaultLog,
) -> RoundReplies:
    """Feed every good reply to ``use``, and count what came.

    Each dropped reply goes to the operator's log, and each kind of fault, once, to the console.

    Whatever goes wrong while a stranger's reply is *read* costs that reply and nothing else.
    An error while it is *used*, other than that it cannot be bounded, ends the run: the sums
    could no longer be trusted.
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
            faults.dropped(round_name, error.fault)
            if error.fault is not None:
                dropped.add(reply.metadata.src_node_id)
    operator_log.info("%s: %d replies used; silent nodes: %s", round_name, used, asked.silent)
    return RoundReplies(asked.nodes, frozenset(dropped), used)


def refuse_error(reply: Message, *, reason: bool = False) -> None:
    """Refuse an error in a reply's place.

    With ``reason`` the operator's log gets the client's own words, quoted; else the code only. It
    always gets the words of a decline, which are written for it.
    """
    if not reply.has_error():
        return
    code = int(reply.error.code)
    if code in _ABSENT:
        raise ReplyError(f"the node is offline or late (code {code})", None)
    words = quoted(reply.error.reason)
    if code == DECLINED:
        raise ReplyError(f"the node declined: {words}", Fault.DECLINED)
    shown = f": {words}" if reason else f" (code {code})"
    raise ReplyError(f"the client answered with an error{shown}", Fault.ERROR)


def only_metrics(reply: Message) -> MetricRecord | None:
    """The one MetricRecord of a reply, if it has any; several are refused."""
    metrics = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
    if len(metrics) > 1:
        raise ReplyError(f"{len(metrics)} metric records instead of one", Fault.RECORDS)
    return metrics[0] if metrics else None


def read_metrics(reply: Message) -> MetricRecord:
    """The one MetricRecord of an evaluation's reply."""
    refuse_error(reply)
    if not reply.has_content():
        raise ReplyError("the reply is empty", Fault.RECORDS)
    metrics = only_metrics(reply)
    if metrics is None:
        raise ReplyError("no metric record", Fault.RECORDS)
    return metrics


def stream_replies(
    grid: Grid, messages: Iterable[Message], *, timeout: float | None = None
) -> Iterator[Message]:
    """Send messages and yield each reply as it arrives.

    As ``Grid.send_and_receive``, but it holds one reply at a time, so that memory does not grow
    with the cohort, and polls every 20 milliseconds to one second instead of every three seconds.
    Only the reply that the grid cannot decode is dropped. Messages are sent before this function
    returns; replies come in the order of their arrival, errors included.

    After ``timeout`` seconds missing replies are given up, and a node that has not fetched its
    message by then never gets it: it does not train for a round that is over.
    """
    deadline = None
    if timeout is not None:
        deadline = time.monotonic() + timeout
        messages = list(messages)
        for message in messages:  # a message's time runs from its making, the round's from now
            message.metadata.ttl = time.time() - message.metadata.created_at + timeout
    waiting = [identifier for identifier in grid.push_messages(messages) if identifier]
    return _pull(grid, waiting, deadline)


def pull_replies(
    grid: Grid, message_ids: Iterable[str], *, timeout: float | None = None
) -> Iterator[Message]:
    """Yield each reply to messages that were pushed before, as :func:`stream_replies` does."""
    waiting = list(message_ids)
    return _pull(grid, waiting, None if timeout is None else time.monotonic() + timeout)


def _pull(grid: Grid, waiting: list[str], deadline: float | None) -> Iterator[Message]:
    pause = _SHORTEST
    while waiting:
        still = []
        for identifier in waiting:
            # One by one: what is pulled together is lost together if one cannot be decoded.
            try:
                pulled = list(grid.pull_messages([identifier]))
            except (OSError, httpx.HTTPError):  # the network's fault, not the reply's
                raise
            except Exception as error:
                operator_log.warning(
                    "dropped a reply that cannot be decoded: %s", error_quoted(error)
                )
                continue
            if not pulled:
                still.append(identifier)
            yield from pulled
        arrived = len(still) < len(waiting)
        waiting = still
        if not waiting or (deadline is not None and time.monotonic() >= deadline):
            return
        if not arrived:
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)
        else:
            pause = _SHORTEST
