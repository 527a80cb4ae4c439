"""Flower's Grid in one process, without Ray: for tests, sweeps and benchmarks.

Real ClientApps and ServerApps run unchanged; only the transport is gone.
"""

import itertools
import secrets
import traceback
from collections.abc import Callable, Iterable, Mapping
from logging import ERROR
from types import CodeType
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from privacy import arguments


class InProcessGrid(Grid):
    """A grid whose nodes live in this process.

    A node works when its reply is pulled, so memory holds one reply at a time. Node ids are 1 … N
    and node ``i`` has ``partition-id`` i - 1, as in Flower's simulation.
    An exception of a node's app is logged here, with its traceback, once for each type and line.

    Parameters
    ----------
    client_app : ClientApp
        The app of every node.
    num_nodes : int
        N.
    run_config : mapping, optional
        The run configuration the ClientApp sees.
    node_config : callable, optional
        ``(partition_id) -> mapping``, what a node's owner writes into its ``--node-config``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: UserConfig | None = None,
        node_config: Callable[[int], UserConfig] | None = None,
    ) -> None:
        num_nodes = arguments.whole("num_nodes", num_nodes, least=1)
        self._client_app = client_app
        self._nodes = [NodeInfo(node_id=i + 1) for i in range(num_nodes)]
        self._run_config: UserConfig = dict(run_config or {})
        self._node_config = node_config
        self._contexts: dict[int, Context] = {}
        self._waiting: dict[str, Message] = {}
        self._raised: set[tuple[type[Exception], CodeType, int]] = set()
        self._counter = itertools.count(1)
        self.offline: set[int] = set()
        # Random, as Flower's own: what apps name after their run never meets another run's.
        self.run_id = secrets.randbits(62)
        TaskIdentity.run_id, TaskIdentity.task_id = self.run_id, 1
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """There is one run, this one."""

    @property
    def run(self) -> Run:
        """An empty description of the run."""
        return Run.create_empty(self.run_id)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; the ``Message`` constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The ids of the nodes that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are connected."""
        return [node for node in self._nodes if node.node_id not in self.offline]

    def context(self, node_id: int) -> Context:
        """A node's context, which lasts from message to message."""
        if node_id not in self._contexts:
            partition = node_id - 1
            config: UserConfig = {
                "partition-id": partition,
                "num-partitions": len(self._nodes),
                **(self._node_config(partition) if self._node_config else {}),
            }
            self._contexts[node_id] = Context(
                self.run_id, node_id, config, RecordDict(), dict(self._run_config)
            )
        return self._contexts[node_id]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; their nodes work when the replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._counter))
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the nodes work, and yield their replies.

        For a node that went offline an error comes back, as from Flower's own grids.
        """
        for identifier in message_ids:
            message = self._waiting.pop(identifier, None)
            if message is None:
                continue
            if message.metadata.dst_node_id in self.offline:
                reply = Message(
                    Error(ErrorCode.NODE_UNAVAILABLE, "the node is offline"), reply_to=message
                )
            else:
                reply = self._work(message)
            reply.metadata.__dict__["_message_id"] = f"reply-{identifier}"
            yield reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull."""
        return list(self.pull_messages(list(self.push_messages(messages))))

    def _work(self, message: Message) -> Message:
        try:
            # A node gets records of its own: what it changes stays with it.
            # Copied as they are: checking every record again takes longer than all the rest.
            own = message.content.copy()
            own.__dict__["_data"] = {name: r.copy() for name, r in message.content.items()}
            delivered = Message.__new__(Message)
            delivered.__dict__.update(message.__dict__, _content=own)
            reply = self._client_app(delivered, self.context(message.metadata.dst_node_id))
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
            return reply
        except Exception as error:
            self._log(error)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def _log(self, error: Exception) -> None:
        """Log an exception as the node's own log would, once a kind."""
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        kind = type(error), frame.f_code, line
        if kind not in self._raised:
            self._raised.add(kind)
            log(
                ERROR,
                "A node's ClientApp raised an exception. Others of this type from the same line "
                "are not logged.",
                exc_info=error,
            )


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_nodes: int,
    run_config: Mapping[str, Any] | None = None,
    node_config: Callable[[int], UserConfig] | None = None,
) -> InProcessGrid:
    """Run a whole app in this process, as ``flwr run`` would in simulation.

    The arguments are those of :class:`InProcessGrid`, which is returned as it is after the run.
    """
    config: UserConfig = dict(run_config or {})
    grid = InProcessGrid(client_app, num_nodes, run_config=config, node_config=node_config)
    server_app(grid, Context(grid.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), config))
    return grid
