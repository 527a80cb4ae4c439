"""Processes that evaluate the nodes' questions."""

import statistics
import threading
from collections.abc import Callable
from typing import Self

from privacy.inference import EvaluatorPool, EvaluatorProcess, Plan
from strategies.encrypted_round.node_keys import Questions


class Evaluators:
    """Processes that hold the model, and how long they took.

    One that died is started again when it is next needed.

    Parameters
    ----------
    start : callable
        Starts one.
    size : int
        How many.

    Attributes
    ----------
    plan : Plan
        Of the model that they hold.
    """

    def __init__(self, start: Callable[[], EvaluatorProcess], size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self._start = start
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        self._pool = EvaluatorPool(self._start, processes=self.size)
        self.plan: Plan = self._pool.plan
        return self

    def __exit__(self, *reason: object) -> None:
        self._pool.close()

    def answer(self, questions: Questions) -> list[bytes]:
        """The answers to one node's questions.

        Raises
        ------
        MessageError
            If the keys or a question are refused.
        EvaluatorFailedError
            If the process died over them.
        """
        keys = self._pool.hold(questions.material)
        try:
            done = [self._pool.evaluate(keys, query) for query in questions.queries]
        finally:
            self._pool.drop(keys)
        with self.lock:
            self._seconds += [seconds for _, seconds in done]
        return [answer for answer, _ in done]

    @property
    def median_ms(self) -> float | None:
        """Median milliseconds of an evaluation; None if there was none."""
        return 1000 * statistics.median(self._seconds) if self._seconds else None
