"""Measure beside peers: ``python -m benchmarks NAME``, ``all``, ``compare`` or ``results``."""

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import benchmarks
from benchmarks import _compare, _results
from benchmarks.harness import Benchmark, Row, machine
from benchmarks.utility import report as utility_report

NOT_BENCHMARKS = {"harness", "__main__"}
ROOT = Path(__file__).parents[1]


def names() -> list[str]:
    """Every benchmark's name."""
    modules = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    return sorted(name for name in modules - NOT_BENCHMARKS if not name.startswith("_"))


def load(name: str) -> Benchmark:
    """Import the benchmark called ``name``."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def table(rows: list[Row]) -> str:
    """Lay the rows out for a terminal."""
    cells = [("case", "metric", "ours", "peer", "ratio")]
    for row in rows:
        peer = row.peer_name or ""
        if row.peer is not None:
            peer = f"{row.peer.median:.4g} {row.unit} ({peer})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        cells.append((row.case, row.metric, f"{row.ours.median:.4g} {row.unit}", peer, ratio))
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    options = command_parser().parse_args(arguments)
    if options.list:
        for name in names():
            print(f"{name:24}{(load(name).__doc__ or '').strip().splitlines()[0]}")
        return 0
    if options.name is None:
        command_parser().error("name a benchmark, all, compare or results; or --list them")
    figures = options.into or ROOT / "results" / "benchmarks"
    if options.name == "all":
        return run_all(figures, quick=options.quick)
    if options.name == "compare":
        return compare_all(figures, ROOT / "docs" / "results")
    if options.name == "results":
        return write_results(ROOT / "docs")
    for path in (options.json, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            command_parser().error(f"{path}: the folder {path.parent} does not exist")
    return run_one(options.name, quick=options.quick, to=options.json, plot=options.plot)


def run_one(name: str, *, quick: bool, to: Path | None, plot: Path | None) -> int:
    """Run a benchmark, print its table, and write its figures and picture where wanted."""
    started = time.perf_counter()

    def log(line: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    benchmark = load(name)
    rows = benchmark.run(quick=quick, log=log)
    print(table(rows))
    document: dict[str, Any] = {
        "benchmark": name,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
        "rows": [row.as_dict() for row in rows],
    }
    if to is not None:
        to.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    if plot is not None and not _results.draw(benchmark, document, plot):
        print("nothing to draw: no row has a peer", file=sys.stderr)
    return 0


def run_all(folder: Path, *, quick: bool) -> int:
    """Run every benchmark, each in a process of its own, and end with one table of all.

    A benchmark that fails is named at the end, and the exit code is 1; the others go on.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    failed, done = [], []
    started = time.perf_counter()
    for number, name in enumerate(names(), 1):
        print(f"[{number}/{len(names())}] {name}", file=sys.stderr, flush=True)
        command = [
            *(sys.executable, "-m", "benchmarks", name),
            *("--json", str(folder / f"{name}.json"), "--plot", str(folder / f"{name}.png")),
            *(["--quick"] if quick else []),
        ]
        if subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode:
            failed.append(name)
        else:
            done.append(name)
    documents = _results.load_documents(folder, done)
    text = _results.summary(documents)
    (folder / "summary.md").write_text(text + "\n")
    print(text)
    taken = sorted(((d["seconds"], d["benchmark"]) for d in documents), reverse=True)
    print("\nSeconds: " + ", ".join(f"{name} {seconds:.0f}" for seconds, name in taken))
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(done)} benchmarks in {minutes:.1f} min; figures and plots in {folder}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def compare_all(measured: Path, committed: Path) -> int:
    """Log which figures of one folder agree with the committed ones.

    1 if any does not, if a file is refused, or if there was nothing to compare.
    """
    agree, compared, quick = True, 0, 0
    without: dict[Path, list[str]] = {committed: [], measured: []}
    for name in names():
        try:
            documents = [
                _results.load_documents(folder, [name]) for folder in (committed, measured)
            ]
            if not all(documents):
                without[committed if documents[1] else measured].append(name)
                continue
            (old,), (new,) = documents
            quick += new["quick"]
            comparison = _compare.compare(old, new)
        except ValueError as error:
            print(f"not compared: {error}")
            agree = False
            continue
        compared += comparison.compared
        agree = agree and not comparison.differences
        same = comparison.compared - len(comparison.differences)
        print(f"{name}: {same} of {comparison.compared} agree")
        if old["machine"] != new["machine"]:
            print(f"  committed on {_results.machine_of(old)}")
            print(f"  these on {_results.machine_of(new)}")
        for one in comparison.differences:
            print(f"  {one.case}: {one.metric}: {_told(one.committed)}, now {_told(one.measured)}")
        for only in comparison.only_once:
            print(f"  on one side only: {only}")
    for folder, missing in without.items():
        if missing:
            print(f"not compared, {folder} has no figures of them: {', '.join(missing)}")
    if not compared:
        print(f"nothing was compared: {_why_nothing(measured, quick)}")
    return 0 if agree and compared else 1


def _why_nothing(measured: Path, quick: int) -> str:
    if quick:
        return f"{measured} holds figures of quick runs; measure without --quick"
    if any((measured / f"{name}.json").exists() for name in names()):
        return f"nothing in {measured} can be held against the committed figures"
    return f"{measured} holds no NAME.json; name the folder of figures with --into"


def _told(interval: _compare.Interval) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def write_results(docs: Path) -> int:
    """Make the pages of ``docs/results``, their pictures, and the figures' other tables."""
    missing = _results.write_pages(docs / "results", names=names(), load=load)
    _results.write_table(docs / "results")
    for document in _results.load_documents(docs / "results", ["utility"]):
        utility_report.fill(docs / "explanation" / "utility.md", document)
    print(f"wrote {docs / 'results' / 'index.md'}")
    if missing:
        print(f"no figures of: {', '.join(missing)}", file=sys.stderr)
    return 0


def command_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, allow_abbrev=False
    )
    choices = [*names(), "all", "compare", "results"]
    parser.add_argument(
        "name",
        nargs="?",
        choices=choices,
        metavar="NAME",
        help=f"{', '.join(names())}; all: every one in turn; compare: whether the figures that all "
        "wrote agree with those in docs/results; results: make the pages and pictures of the "
        "latter",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG here")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="DIR",
        help="with all and compare: the folder of figures (results/benchmarks)",
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
