"""Processes that evaluate, each for one node at a time."""

import contextlib
import statistics
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Self

from privacy.inference import EvaluatorFailed, EvaluatorProcess, Plan, Questions


class Evaluators:
    """Processes that hold the model; used from as many threads as there are processes.

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
        self._idle: SimpleQueue[EvaluatorProcess | None] = SimpleQueue()
        self._seconds: list[float] = []

    def __enter__(self) -> Self:
        first = self._start()
        self.plan: Plan = first.plan
        self._idle.put(first)
        for _ in range(self.size - 1):
            self._idle.put(None)  # started when it is needed
        return self

    def __exit__(self, *reason: object) -> None:
        for _ in range(self.size):
            process = self._idle.get()
            if process is not None:
                process.close()

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[EvaluatorProcess]:
        process = self._idle.get()
        try:
            if process is None:
                process = self._start()
            yield process
        except EvaluatorFailed:
            if process is not None:
                process.close()
            process = None
            raise
        finally:
            self._idle.put(process)

    def answer(self, questions: Questions) -> list[bytes]:
        """The answers to one node's questions.

        Raises
        ------
        MessageError
            If the keys or a question are refused.
        EvaluatorFailed
            If the process died over them.
        """
        with self._borrow() as process:
            process.use_keys(questions.material)
            done = [process.evaluate(query) for query in questions.queries]
        with self.lock:
            self._seconds += [seconds for _, seconds in done]
        return [answer for answer, _ in done]

    @property
    def median_ms(self) -> float | None:
        """Median milliseconds of an evaluation; None if there was none."""
        return 1000 * statistics.median(self._seconds) if self._seconds else None
