"""Replies one by one, as they arrive, so that memory does not grow with the cohort."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_BATCH = 16  # replies held at once
_SHORTEST, _LONGEST = 0.02, 1.0  # seconds between looks when nothing has arrived


def stream_replies(
    grid: Grid, messages: Iterable[Message], *, timeout: float | None = None
) -> Iterator[Message]:
    """Send messages and yield each reply as it arrives.

    Does what ``Grid.send_and_receive`` does, but holds at most a few replies at a time, and
    looks again after 20 milliseconds, then ever more rarely up to a second, instead of every
    three seconds.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    messages : iterable of Message
        What to send; sent before this function returns its iterator.
    timeout : float, optional
        Seconds to wait in all. After that the missing replies are given up.

    Yields
    ------
    Message
        Replies, errors included, in the order of their arrival.
    """
    waiting = [identifier for identifier in grid.push_messages(messages) if identifier]
    return _pull(grid, waiting, None if timeout is None else time.monotonic() + timeout)


def _pull(grid: Grid, waiting: list[str], deadline: float | None) -> Iterator[Message]:
    pause = _SHORTEST
    while waiting:
        arrived = False
        still: list[str] = []
        for start in range(0, len(waiting), _BATCH):
            batch = waiting[start : start + _BATCH]
            answered = set()
            for reply in grid.pull_messages(batch):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
            arrived |= bool(answered)
            still += [identifier for identifier in batch if identifier not in answered]
        waiting = still
        if not waiting or (deadline is not None and time.monotonic() >= deadline):
            return
        if not arrived:
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)
        else:
            pause = _SHORTEST
