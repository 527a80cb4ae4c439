"""Replies one by one, as they arrive, so that memory does not grow with the cohort."""

import time
from collections.abc import Iterable, Iterator

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from privacy.untrusted_text import error_quoted
from strategies._operator_log import operator_log

_SHORTEST, _LONGEST = 0.02, 1.0  # seconds between looks when nothing has arrived


def stream_replies(
    grid: Grid, messages: Iterable[Message], *, timeout: float | None = None
) -> Iterator[Message]:
    """Send messages and yield each reply as it arrives.

    Does what ``Grid.send_and_receive`` does, but holds one reply at a time, and looks again
    after 20 milliseconds, then ever more rarely up to a second, instead of every three seconds.
    A reply that the grid cannot even decode is dropped, and costs no other client its reply.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    messages : iterable of Message
        What to send; sent before this function returns its iterator.
    timeout : float, optional
        Seconds to wait in all. After that the missing replies are given up, and a node that has
        not fetched its message by then never gets it: it does not train for a round that is over.

    Yields
    ------
    Message
        Replies, errors included, in the order of their arrival.
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
                found = list(grid.pull_messages([identifier]))
            except (OSError, httpx.HTTPError):  # the network's fault, not the reply's
                raise
            except Exception as error:
                operator_log.warning(
                    "dropped a reply that cannot be decoded: %s", error_quoted(error)
                )
                continue
            if not found:
                still.append(identifier)
            yield from found
        arrived = len(still) < len(waiting)
        waiting = still
        if not waiting or (deadline is not None and time.monotonic() >= deadline):
            return
        if not arrived:
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)
        else:
            pause = _SHORTEST
