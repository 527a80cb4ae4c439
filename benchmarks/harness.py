"""What every benchmark shares: interleaved timing, rows, the machine, the JSON document.

A benchmark is a module of this folder with a one-line docstring and a function
``run(*, quick: bool, log: Log) -> list[Row]``. ``python -m benchmarks`` finds it by its name.
A module may have a picture of its own, ``draw(document, path)``; otherwise the ratios are drawn.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

Log = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """A median of repetitions with the lowest and highest value beside it."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Summarise ``values``.

        Raises
        ------
        ValueError
            If ``values`` is empty.
        """
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Row:
    """One figure of ours beside a peer's.

    ``ratio`` says how many times better ours is than the peer (above 1: ours wins). It is
    None where there is no peer, or where either is zero. ``details`` holds what else a plot of
    the row needs.
    """

    case: str
    metric: str
    unit: str
    ours: Spread
    peer: Spread | None = None
    peer_name: str | None = None
    larger_is_better: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer."""
        if self.peer is None:
            return None
        ours, peer = self.ours.median, self.peer.median
        if ours == 0 or peer == 0:
            return None
        return ours / peer if self.larger_is_better else peer / ours

    def as_dict(self) -> dict[str, Any]:
        """The row as the JSON document holds it: medians, with the spreads beside them."""
        return {
            "case": self.case,
            "metric": self.metric,
            "unit": self.unit,
            "ours": self.ours.median,
            "ours_spread": asdict(self.ours),
            "peer": None if self.peer is None else self.peer.median,
            "peer_spread": None if self.peer is None else asdict(self.peer),
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            **({"details": dict(self.details)} if self.details else {}),
        }


class Benchmark(Protocol):
    """The module of one benchmark."""

    __doc__: str | None

    def run(self, *, quick: bool, log: Log) -> list[Row]:
        """Measure, and return the rows."""


def interleave(
    ways: Mapping[str, Callable[[], object]],
    *,
    repetitions: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Time each way in turn, A B C A B C ..., so that a drifting machine is fair to all.

    Parameters
    ----------
    ways : mapping of str to callable
        What to time, by name.
    repetitions, warmup : int
        Counted and uncounted turns of each.
    clock : callable
        ``time.process_time`` counts what all threads of this process spend, however busy the
        machine is.

    Returns
    -------
    dict of str to Spread
        Seconds a call, by name.
    """
    for _ in range(warmup):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    return {name: Spread.of(values) for name, values in seconds.items()}


def interleave_clocks(
    ways: Mapping[str, Callable[[], object]], *, repetitions: int
) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Milliseconds of each way by the wall's clock and by the processor's, in turns.

    The first turn is not counted.
    """
    wall: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repetitions + 1):
        for way, work in ways.items():
            started, spent = time.perf_counter(), time.process_time()
            work()
            if turn:
                wall[way].append((time.perf_counter() - started) * 1e3)
                processor[way].append((time.process_time() - spent) * 1e3)
    return (
        {way: Spread.of(values) for way, values in wall.items()},
        {way: Spread.of(values) for way, values in processor.items()},
    )


def memory_of_process(field: str) -> float:
    """Bytes that Linux counts for this process: ``VmRSS`` now, ``VmHWM`` at its peak.

    ``getrusage`` would count the parent's peak before ``exec``.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux")


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that a figure depends on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            processor = names[0].split(":", 1)[1].strip()
    versions = {}
    for package in ("bloomseal", "flwr", "torch", "opacus", "tenseal", "dp-accounting", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }
