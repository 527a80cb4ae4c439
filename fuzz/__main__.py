"""Fuzz targets under Atheris: ``python -m fuzz [NAME ...]`` (``make fuzz``).

Each target runs in a process of its own for ``--seconds`` of processor time, however busy the
machine is, with a log in ``build/fuzz``. An input that a target neither takes nor refuses ends its
run: it is written there, and printed with its traceback. Inputs that reach code which none before
them reached are added to ``build/fuzz/NAME``; with ``--keep`` those of them that reach lines which
no smaller one reaches are put in ``fuzz/corpus/NAME``.
"""

import argparse
import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.target import CORPUS, Target, corpus, name_of
from fuzz.targets import GROUPS, TARGETS, load

_ROOT = Path(__file__).parents[1]
_BUILD = _ROOT / "build" / "fuzz"
_PACKAGES = ("privacy", "strategies", "flower_app")
_FOLDERS = tuple(f"{_ROOT / package}/" for package in _PACKAGES)
_SECONDS_EACH, _MEGABYTES = 20, 4096  # of an input; the seconds are processor time
_LONGEST_WAIT = 900  # seconds by the clock, for an input that never ends
_LARGEST_KEPT = 2048
_MOST_KEPT = 40


def main() -> None:
    """Fuzz the targets that are asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; by default all")
    parser.add_argument(
        "--seconds", type=int, default=60, metavar="S", help="of processor time, for each"
    )
    parser.add_argument("--keep", action="store_true", help="keep the inputs that reach new code")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(TARGETS))
        return
    if wrong := set(options.names) - TARGETS.keys():
        parser.error(f"{', '.join(sorted(wrong))}: not one of {', '.join(TARGETS)}")
    if options.here:
        _fuzz_here(options.names, options.seconds)
        return
    wanted = options.names or [*TARGETS]
    failed = []
    for module in dict.fromkeys(TARGETS[name] for name in wanted):
        names = [name for name in wanted if TARGETS[name] == module]
        command = [sys.executable, "-m", "fuzz", *names, "--here"]
        subprocess.run([*command, "--seconds", str(options.seconds)], cwd=_ROOT, check=True)
        for name in names:
            if _reported(name):
                failed.append(name)
            elif options.keep:
                _keep(name)
    if failed:
        raise SystemExit(f"faults in: {', '.join(failed)}")


def _fuzz_here(names: list[str], seconds: int) -> None:
    """Fuzz targets of one module, each in a copy of this process, which loaded what they need."""
    import atheris

    _BUILD.mkdir(parents=True, exist_ok=True)
    silent = io.StringIO()  # it names each module that it instruments
    with (
        atheris.instrument_imports(include=[*_PACKAGES], exclude=_other_code(names[0])),
        contextlib.redirect_stderr(silent),
    ):
        importlib.import_module(f"fuzz.{TARGETS[names[0]]}")
    for name in names:
        child = os.fork()
        if not child:
            with (_BUILD / f"{name}.log").open("wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                _fuzz(name, seconds)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with (_BUILD / f"{name}.log").open("a") as log:
            log.write(f"exit status {os.waitstatus_to_exitcode(status)}\n")


def _fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    target = load(name)
    runs = 0

    def run(content: bytes) -> None:
        nonlocal runs
        began = time.process_time()
        try:
            target.run(content)
            if time.process_time() - began > _SECONDS_EACH:
                raise TimeoutError(f"it took more than {_SECONDS_EACH} s")
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            (_BUILD / f"{name}-{name_of(content)}").write_bytes(content)
            os._exit(1)  # at once, with all that was printed
        runs += 1
        if time.process_time() > seconds:  # since this process was forked
            sys.stderr.write(f"{runs:,} inputs in {seconds} s of processor time\n")
            sys.stderr.flush()
            os._exit(0)

    grown, begin = _BUILD / name, _BUILD / "seeds" / name
    for folder in (grown, begin):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (begin / name_of(seed)).write_bytes(seed)
    options = [
        f"-timeout={_LONGEST_WAIT}",
        f"-rss_limit_mb={_MEGABYTES}",
        f"-artifact_prefix={_BUILD}/{name}-",
    ]
    kept = [CORPUS / name] if (CORPUS / name).is_dir() else []
    atheris.Setup([sys.argv[0], *options, *map(str, [grown, begin, *kept])], run)
    atheris.Fuzz()


def _reported(name: str) -> bool:
    """Print how a target's run ended; whether it found a fault."""
    *lines, end = (_BUILD / f"{name}.log").read_text(errors="replace").splitlines()
    reached = next((line for line in reversed(lines) if "cov:" in line), "no run was finished")
    fault = end != "exit status 0"
    print(f"{name}: {f'FAULT, {reached}' if fault else f'ok, {lines[-1]}; {reached}'}", flush=True)
    if fault:
        print("\n".join(lines[-40:]), flush=True)
    return fault


def _other_code(name: str) -> list[str]:
    """The project's modules whose coverage does not guide a target."""
    files = (path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))
    modules = [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in files]
    modules = [module.removesuffix(".__init__") for module in modules]
    guiding = GROUPS[TARGETS[name]].code
    return [each for each in modules if not f"{each}.".startswith(tuple(f"{g}." for g in guiding))]


def _keep(name: str) -> None:
    """Put inputs that reach lines which no smaller one reaches in the repository's corpus."""
    target = load(name)
    inputs = {path.read_bytes() for path in [*(_BUILD / name).glob("*"), *corpus(name)]}
    reached: set[tuple[str, int]] = set()
    chosen: list[bytes] = []
    for content in (*target.seeds, *sorted(inputs, key=lambda each: (len(each), each))):
        lines = _lines(target, content)
        new = lines - reached
        reached |= lines
        if new and content in inputs and len(content) <= _LARGEST_KEPT:
            chosen.append(content)
    folder = CORPUS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for content in chosen[:_MOST_KEPT]:
        (folder / name_of(content)).write_bytes(content)


def _lines(target: Target, content: bytes) -> set[tuple[str, int]]:
    """The lines of this project that an input reaches."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_FOLDERS):
            return None
        if event == "line":
            lines.add((file, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        target.run(content)
    finally:
        sys.settrace(None)
    return lines


if __name__ == "__main__":
    main()
