"""Several evaluators at work at once, each in a process of its own, for many data owners."""

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from privacy.arguments import called_with, whole
from privacy.inference.errors import (
    CannotPlanError,
    EvaluatorFailedError,
    KeysDroppedError,
    MessageError,
)
from privacy.inference.evaluator.evaluator import ReplayGuard
from privacy.inference.evaluator.process import EvaluatorProcess
from privacy.inference.input_range import bounds
from privacy.inference.messages import Tag, open_message, rebind
from privacy.inference.owner import MeasurementOwner
from privacy.inference.plan import Plan
from privacy.inference.public_keys import open_material


class HeldKeys:
    """One owner's public material in an :class:`EvaluatorPool`; made by :meth:`~.hold`.

    Attributes
    ----------
    fingerprint : bytes
        SHA-256 of the key that authenticates the owner's messages, 32 bytes. Two sets of one
        fingerprint would answer each other's queries.
    """

    def __init__(self, slot: int, material: bytes, session_key: bytes) -> None:
        self.fingerprint = hashlib.sha256(session_key).digest()
        self._slot = slot
        self._material = material
        self._session_key = session_key
        self._replays = ReplayGuard()


class _Worker:
    """A place for a process. The thread that made it busy alone uses its process and slots."""

    def __init__(self) -> None:
        self.busy = False
        self.process: EvaluatorProcess | None = None
        self.slots: OrderedDict[int, None] = OrderedDict()

    @property
    def up(self) -> bool:
        """Whether it has a process that has not ended."""
        process = self.process  # read once: another thread may change it
        return process is not None and process.alive

    def end(self) -> None:
        """Close the process, if there is one, and empty the slots."""
        if self.process is not None:
            self.process.close()
        self.process = None
        self.slots.clear()


class EvaluatorPool:
    """Answers data owners' queries on several cores.

    Several processes hold the model, and each query goes to a free one: what surrounds the kernels
    of an evaluation holds Python's lock, and each process has a limit on its memory. A query is
    checked and its id recorded here, before a process sees it: it is answered at most once,
    whichever process answers and although processes die. One that died is started again when it
    is next needed, or by :meth:`start_all`.

    May be used from several threads. Use it as a context manager, or call :meth:`close`. Its
    methods raise :class:`MessageError` for a message that is refused, and
    :class:`EvaluatorFailedError` if a process does not come up or ended over the message.

    Parameters
    ----------
    start : callable
        Starts a process that holds the model.
    processes : int, optional
        By default one a core that this process may use. The first starts at once, the others when
        they are needed.

    Raises
    ------
    CannotPlanError
        If the first process gives the pool's own first question, under keys that are thrown away,
        an answer that the plan rules out.
    """

    def __init__(
        self, start: Callable[[], EvaluatorProcess], *, processes: int | None = None
    ) -> None:
        if processes is None:
            cores = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
            processes = cores or os.cpu_count() or 1
        called_with("start", start, 0, "a function that starts an EvaluatorProcess")
        self.processes = whole("processes", processes, least=1, give="1 or more")
        self._start = start
        self._workers = [_Worker() for _ in range(self.processes)]
        self._changed = threading.Condition()
        self._held: dict[int, HeldKeys] = {}
        self._next_slot = 0
        first = start()
        try:
            _check_evaluation(first)
        except BaseException:
            first.close()
            raise
        self._workers[0].process = first
        self.plan: Plan = first.plan
        self._digest = self.plan.digest
        self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="evaluator")

    @property
    def running(self) -> int:
        """How many processes are up."""
        return sum(worker.up for worker in self._workers)

    def start_all(self) -> None:
        """Start the processes that are not up and that nobody is starting."""
        while (worker := self._take(lambda worker: not worker.up)) is not None:
            with self._giving_back(worker):
                self._started(worker)

    def hold(self, material: bytes, *, binding: bytes = b"") -> HeldKeys:
        """Check a data owner's public material, and hold it until it is dropped.

        ``binding`` is that of :meth:`DataOwner.public_material`.
        """
        session_key, _ = open_material(material, self.plan, self._digest, binding=binding)
        if binding:
            material = rebind(material, session_key)
        with self._changed:
            keys = HeldKeys(self._next_slot, material, session_key)
            self._next_slot += 1
            self._held[keys._slot] = keys
        try:
            with self._borrowed(keys) as worker:
                self._with_keys(worker, keys)
        except BaseException:
            self.drop(keys)
            raise
        return keys

    def evaluate(self, keys: HeldKeys, query: bytes) -> tuple[bytes, float]:
        """Answer a query under these keys, as soon as a process is free.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took.

        Raises
        ------
        KeysDroppedError
            If the keys were dropped.
        AnsweredBeforeError
            If it came before, even if it got no answer.
        """
        query_id, _ = open_message(
            query, Tag.QUERY, self.plan, self._digest, lambda _: keys._session_key
        )
        keys._replays.admit(query_id)
        with self._borrowed(keys) as worker:
            return self._with_keys(worker, keys).evaluate(query, slot=keys._slot)

    def submit(self, keys: HeldKeys, query: bytes) -> "Future[tuple[bytes, float]]":
        """Begin to answer a query; the future gives what :meth:`evaluate` would."""
        return self._threads.submit(self.evaluate, keys, query)

    def evaluate_many(self, keys: HeldKeys, queries: Iterable[bytes]) -> list[bytes]:
        """Answer an owner's queries on all processes, in their order."""
        futures = [self.submit(keys, query) for query in queries]
        return [future.result()[0] for future in futures]

    def drop(self, keys: HeldKeys) -> None:
        """Forget these keys, here and in every process; evaluations under way are finished."""
        with self._changed:
            self._held.pop(keys._slot, None)
        # The thread that uses a busy process cleans it when it gives it back.
        while (worker := self._take(lambda worker: keys._slot in worker.slots)) is not None:
            with contextlib.suppress(EvaluatorFailedError), self._giving_back(worker):
                pass

    def close(self) -> None:
        """End the processes; queries that wait are given up."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, wanted: Callable[[_Worker], bool]) -> _Worker | None:
        """Make a free worker of this kind busy; None if there is none."""
        with self._changed:
            for worker in self._workers:
                if not worker.busy and wanted(worker):
                    worker.busy = True
                    return worker
        return None

    @contextlib.contextmanager
    def _borrowed(self, keys: HeldKeys) -> Iterator[_Worker]:
        """A worker: by preference one whose process has these keys, then one with a process."""
        preferences: list[Callable[[_Worker], bool]] = [
            lambda worker: keys._slot in worker.slots and worker.up,
            lambda worker: worker.up,
            lambda worker: True,
        ]
        with self._changed:
            while (worker := next(filter(None, map(self._take, preferences)), None)) is None:
                self._changed.wait()
        with self._giving_back(worker):
            yield worker

    @contextlib.contextmanager
    def _giving_back(self, worker: _Worker) -> Iterator[None]:
        """Clean a busy worker and free it, whatever happens; empty it where its process died."""
        try:
            try:
                yield
            except MessageError:
                self._clean(worker)
                raise
            self._clean(worker)
        except EvaluatorFailedError:
            worker.end()
            raise
        finally:
            with self._changed:
                worker.busy = False
                self._changed.notify()

    def _started(self, worker: _Worker) -> EvaluatorProcess:
        if not worker.up:
            worker.end()
        if worker.process is None:
            worker.process = self._start()
        return worker.process

    def _with_keys(self, worker: _Worker, keys: HeldKeys) -> EvaluatorProcess:
        """The worker's process, with these keys in it, in place of the least used."""
        with self._changed:
            if keys._slot not in self._held:
                raise KeysDroppedError("the keys of this query were replaced; send new keys")
        process = self._started(worker)
        if keys._slot in worker.slots:
            worker.slots.move_to_end(keys._slot)
            return process
        while len(worker.slots) >= process.owners:
            process.forget(worker.slots.popitem(last=False)[0])
        process.use_keys(keys._material, slot=keys._slot)
        worker.slots[keys._slot] = None
        return process

    def _clean(self, worker: _Worker) -> None:
        """Forget keys that were dropped while the worker was busy."""
        with self._changed:
            dropped = [slot for slot in worker.slots if slot not in self._held]
        for slot in dropped:
            if worker.process is not None:
                worker.process.forget(slot)
            del worker.slots[slot]


def _check_evaluation(process: EvaluatorProcess) -> None:
    """Ask a process a question under keys that are thrown away, before anybody else does.

    Whether the answer is right is for a certificate: the pool does not know the model.
    """
    plan = process.plan
    owner = MeasurementOwner(plan)
    low, high = bounds(plan.input_range, plan.input_shape)
    middle = (low + high) / 2
    try:
        process.use_keys(owner.public_material())
        answer, _ = process.evaluate(owner.encrypt(middle if plan.batch_size == 1 else [middle]))
        logits = owner.logits(answer)
        process.forget(0)
    except MessageError as error:
        raise CannotPlanError(
            f"the model does not answer a question of its plan: {error}"
        ) from error
    bound = 2.0**plan.logit_bits + 2.0**plan.worst_error_bits
    if not bool((np.abs(logits) <= bound).all()):
        raise CannotPlanError(
            f"asked about the middle of its range the model answers {np.abs(logits).max():.3g}, "
            f"the plan allows {bound:.3g}; compile it again"
        )
