"""Work on residues, dealt to threads of ours: kernels run without Python's lock."""

import contextlib
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue

import numpy as np

Work = Callable[[int, int], None]
"""Does the tasks from one number up to another."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_WORTHWHILE = 1 << 19
"""Products of residues, some 0.2 ms, below which waking a thread takes longer than it saves."""
_SMALL = 1 << 12
"""Values, few enough to come from a thread's own pool of memory."""
_PATIENCE = 10.0


class _Job:
    """A piece of work in shares. Whoever is free takes the next one."""

    def __init__(self, work: Work, tasks: int, shares: int) -> None:
        bounds = [tasks * i // shares for i in range(shares + 1)]
        self._work = work
        self._shares = list(pairwise(bounds))
        self._lock = threading.Lock()
        self._undone = shares
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def help(self) -> None:
        """Take shares until none is left."""
        while True:
            try:
                share = self._shares.pop()
            except IndexError:
                return
            try:
                self._work(*share)
            except BaseException as error:
                self._error = error
            with self._lock:
                self._undone -= 1
                if self._undone == 0:
                    self._done.release()

    def finish(self) -> None:
        """Help, wait for the others, and raise what one of them raised."""
        self.help()
        self._done.acquire()
        if self._error is not None:
            raise self._error


class _Helpers:
    """Threads that wait for jobs, started when the first one comes."""

    def __init__(self, count: int) -> None:
        self.process = os.getpid()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._count = count
        for index in range(count):
            name = f"residues-{index}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._jobs.get().help()

    def call(self, job: _Job) -> None:
        for _ in range(self._count):
            self._jobs.put(job)


_starting = threading.Lock()
_helpers: _Helpers | None = None


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _helpers, _starting
    _helpers, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def deal(work: Work, tasks: int, products: int) -> None:
    """Do ``tasks`` tasks, on several threads if together they are as long as many ``products``.

    ``work`` is called from several threads at once, with ranges that do not meet.
    """
    global _helpers
    shares = min(CORES, tasks)
    if shares < 2 or products < _WORTHWHILE:
        work(0, tasks)
        return
    if _helpers is None:
        with _starting:
            _helpers = _helpers or _Helpers(CORES - 1)
    job = _Job(work, tasks, shares)
    _helpers.call(job)
    job.finish()


def start_helpers() -> None:
    """Start the threads and let each allocate memory: a limit that is set later has room for both.

    A thread's stack and its first allocation reserve tens of megabytes of address space.
    """
    if CORES < 2:
        return
    together = threading.Barrier(CORES)

    def work(start: int, stop: int) -> None:
        np.empty(_SMALL)
        # Each waits for all others, so that none takes two shares; they may be busy elsewhere.
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(_PATIENCE)

    deal(work, CORES, _WORTHWHILE)
