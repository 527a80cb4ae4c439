"""Threads that share an operation, and kernels where nothing can be kept or is quick."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import binding

from privacy import kernels
from privacy.inference.ckks import Ring, _processor, _threads
from privacy.inference.ckks._threads import deal

LONG = 1 << 30
ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "CORES", 3)
    monkeypatch.setattr(_threads, "_helpers", None)


def test_several_threads_work_and_all_tasks_are_done() -> None:
    together = threading.Barrier(3, timeout=60)
    workers: set[int] = set()

    def work(start: int, stop: int) -> None:
        together.wait()  # each share waits for two others: three threads are at it
        workers.add(threading.get_ident())

    deal(work, 3, LONG)
    assert len(workers) == 3
    assert threading.get_ident() in workers


def test_an_error_of_any_share_is_raised_and_the_threads_live_on() -> None:
    def fail(start: int, stop: int) -> None:
        if start == 0:
            raise ArithmeticError("share 0")

    for _ in range(3):
        with pytest.raises(ArithmeticError, match="share 0"):
            deal(fail, 30, LONG)
    done: list[int] = []
    deal(lambda start, stop: done.extend(range(start, stop)), 30, LONG)
    assert sorted(done) == list(range(30))


def test_many_callers_at_once_do_not_wait_for_each_other_forever() -> None:
    totals = np.zeros(8, dtype=np.int64)

    def call(place: int) -> None:
        lock = threading.Lock()

        def work(start: int, stop: int) -> None:
            with lock:
                totals[place] += stop - start

        for _ in range(50):
            deal(work, 7, LONG)

    callers = [threading.Thread(target=call, args=(place,)) for place in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert totals.tolist() == [350] * 8


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Its parent's are not there."""
    ring = Ring(1024, (27,))
    residues = np.arange(2048, dtype=np.uint64).reshape(2, 1, 1024)
    expected = ring.coefficient_residues(ring.ciphertext(residues, 1.0))
    deal(lambda start, stop: None, 3, LONG)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        deal(lambda start, stop: done.extend(range(start, stop)), 9, LONG)
        back = ring.coefficient_residues(ring.ciphertext(residues, 1.0))
        os._exit(0 if len(done) == 9 and np.array_equal(back, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_warming_up_starts_a_thread_a_core_and_gives_each_its_memory() -> None:
    """So that a limit on address space that is set afterwards counts neither."""
    program = (
        "import threading, psutil\n"
        "from privacy.inference.ckks import _threads, warm_up\n"
        "_threads.CORES = 24\n"
        "warm_up()\n"
        "before = psutil.Process().memory_info().vms\n"
        "_threads.deal(lambda start, stop: None, 24, 1 << 30)\n"
        "print(threading.active_count(), psutil.Process().memory_info().vms - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    threads, grown = map(int, done.stdout.split())
    assert threads == 24
    assert grown < 1 << 23  # not even one stack


@pytest.fixture
def once() -> Iterator[None]:
    """What is logged once was not logged yet."""
    said = (kernels._say_uncached, _processor.say_slow)
    for each in said:
        each.cache_clear()
    yield
    for each in said:
        each.cache_clear()


@pytest.mark.usefixtures("once")
def test_where_nothing_can_be_written_kernels_compile_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    njit = numba.njit

    def without_a_folder(*given: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*given, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    with caplog.at_level(logging.WARNING):
        made = [kernels.compiled(lambda x, by=by: x + by) for by in (1.0, 2.0)]
    assert [kernel(1.0) for kernel in made] == [2.0, 3.0]
    assert [record.getMessage().count("NUMBA_CACHE_DIR") for record in caplog.records] == [1]


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
from ckks.first import double
print(double(21.0), sum(double.stats.cache_hits.values()))
"""


def test_a_kernel_is_compiled_anew_when_one_that_it_calls_is_another(tmp_path: Path) -> None:
    """numba looks at the file of the kernel alone."""
    folder = tmp_path / "ckks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    header = "from privacy.kernels import compiled\n"
    kernel = "\n@compiled\ndef double(x):\n    return times(x)\n"
    (folder / "first.py").write_text(f"{header}from ckks.second import times\n{kernel}")

    def answer(factor: int) -> list[str]:
        second = f"{header}\n@compiled\ndef times(x):\n    return {factor} * x\n"
        (folder / "second.py").write_text(second)
        # -B: Python takes its own kept bytecode for new where a source of the same length was
        # written within the same second.
        done = subprocess.run(
            [sys.executable, "-B", "-c", PROGRAM, str(tmp_path), str(ROOT)],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert answer(2) == ["42.0", "0"]
    assert answer(2) == ["42.0", "1"]
    assert answer(3) == ["63.0", "0"]


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("machine", "features", "said"),
    [
        ("x86_64", {"fma": True}, 0),
        ("x86_64", {"fma": False}, 1),
        ("AMD64", {}, 1),
        ("aarch64", {}, 0),
    ],
)
def test_a_processor_without_fused_multiply_add_is_said_to_be_slow_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: str,
    features: dict[str, bool],
    said: int,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            Ring(1024, (27,))
    assert sum("multiply-add" in record.getMessage() for record in caplog.records) == said
