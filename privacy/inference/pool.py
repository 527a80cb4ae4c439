"""Several evaluators at work at once, each in a process of its own."""

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor

from privacy.inference import _wire
from privacy.inference._batch import BatchProgram
from privacy.inference._encoded import ProductProgram, SlotProgram
from privacy.inference._lowering import Network
from privacy.inference.compiled import CompiledModel
from privacy.inference.evaluator import Evaluator
from privacy.inference.plan import Plan

_Program = SlotProgram | ProductProgram | BatchProgram
_evaluator: Evaluator | None = None


def _start(plan: Plan, network: Network, program: _Program, public_material: bytes) -> None:
    global _evaluator
    _evaluator = Evaluator(CompiledModel(plan, network, program), public_material)


def _evaluate(query: bytes) -> bytes:
    if _evaluator is None:
        raise RuntimeError("the process has no evaluator; it was not started by EvaluatorPool")
    return _evaluator.evaluate(query)


class EvaluatorPool:
    """Answers one data owner's queries on several cores.

    SEAL holds Python's lock, so that threads gain nothing: every process holds an
    :class:`Evaluator`. A query always goes to the same process, by its id, where a replay is
    refused as by a single evaluator. Use it as a context manager, or call :meth:`close`.

    Parameters
    ----------
    compiled : CompiledModel
    public_material : bytes
        What :meth:`DataOwner.public_material` returned; it is checked in every process, when the
        first query gets there.
    processes : int, optional
        By default one a core that this process may use. Each holds the encoded weights and the
        keys.

    Raises
    ------
    ValueError
        If ``processes`` is below 1.
    """

    def __init__(
        self, compiled: CompiledModel, public_material: bytes, *, processes: int | None = None
    ) -> None:
        if processes is None:
            processes = (
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count() or 1
            )
        if processes < 1:
            raise ValueError(f"processes is {processes}; give 1 or more")
        # A forked child could inherit a lock that another thread holds.
        context = multiprocessing.get_context("spawn")
        started = (compiled.plan, compiled.network, compiled.program, public_material)
        self._workers = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=started)
            for _ in range(processes)
        ]

    def submit(self, query: bytes) -> "Future[bytes]":
        """Begin to answer a query; the future gives what :meth:`Evaluator.evaluate` would."""
        worker = _wire.claimed_query_id(query) % len(self._workers)
        return self._workers[worker].submit(_evaluate, query)

    def evaluate_many(self, queries: Iterable[bytes]) -> list[bytes]:
        """Answer queries, in their order.

        Raises
        ------
        MessageError
            As :meth:`Evaluator.evaluate`, for the first that is refused.
        concurrent.futures.process.BrokenProcessPool
            If a process died, or refused the public material.
        """
        return [future.result() for future in [self.submit(query) for query in queries]]

    def close(self) -> None:
        """End the processes when they have answered what they were given."""
        for worker in self._workers:
            worker.shutdown()

    def __enter__(self) -> "EvaluatorPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
