"""Answers that go out at fixed times, so that how long they took does not show."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import WARNING

from flwr.supercore import log


@contextmanager
def paced(
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Let the block end at a whole multiple of ``seconds`` after its beginning; 0: at once.

    The block's errors wait as well. One that takes longer than ``seconds`` shows by how many
    multiples; the node's own log says so.
    """
    began = clock()
    try:
        yield
    finally:
        if seconds:
            taken = clock() - began
            multiples = max(1, math.ceil(taken / seconds))
            if multiples > 1:
                log(
                    WARNING,
                    "A sum took %.1f s, more than answer-seconds = %g: the server sees that it "
                    "took so long. Raise answer-seconds in the policy.",
                    taken,
                    seconds,
                )
            sleep(max(0.0, began + multiples * seconds - clock()))
