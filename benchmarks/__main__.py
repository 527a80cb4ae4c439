"""Run one benchmark: ``python -m benchmarks NAME [--json FILE] [--quick]``."""

import argparse
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any, cast

import benchmarks
from benchmarks.harness import Benchmark, Row, machine

NOT_BENCHMARKS = {"harness", "__main__"}


def names() -> list[str]:
    """Every benchmark's name."""
    found = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    return sorted(name for name in found - NOT_BENCHMARKS if not name.startswith("_"))


def load(name: str) -> Benchmark:
    """Import the benchmark called ``name``."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def table(rows: list[Row]) -> str:
    """Lay the rows out for a terminal."""
    cells = [("case", "metric", "ours", "peer", "ratio")]
    for row in rows:
        peer = "" if row.peer is None else f"{row.peer.median:.4g} {row.unit} ({row.peer_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        cells.append((row.case, row.metric, f"{row.ours.median:.4g} {row.unit}", peer, ratio))
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=names(), metavar="NAME", help=", ".join(names()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name in names():
            print(f"{name:24}{(load(name).__doc__ or '').strip().splitlines()[0]}")
        return 0
    if options.name is None:
        parser.error("name a benchmark, or --list them")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: the folder {options.json.parent} does not exist")

    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    rows = load(options.name).run(quick=options.quick, say=say)
    print(table(rows))
    if options.json is not None:
        document: dict[str, Any] = {
            "benchmark": options.name,
            "quick": options.quick,
            "machine": machine(),
            "rows": [row.as_dict() for row in rows],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
