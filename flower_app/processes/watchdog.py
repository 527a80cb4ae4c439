"""A process that ends Flower's processes if the command that started them is killed.

They have sessions of their own, so that Ctrl-C reaches the command first; a command that is killed
(``kill -9``, a lack of memory) cannot end them. The watchdog holds the other end of a pipe, which
the system closes with the command.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[2]
_WORD = b"done"


@contextlib.contextmanager
def watchdog(folder: Path) -> Iterator[None]:
    """If this process is killed in the block, all processes below a folder end too.

    ``folder`` is their Flower home, or the folder above their homes. It is removed as well.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "flower_app.processes.watchdog", str(folder)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate(_WORD)


def processes_below(folder: Path) -> dict[int, str]:
    """Process id to command line, of all whose Flower home is this folder or lies in it.

    They are identified by their environment, so those that Flower detaches are included.
    """
    processes = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            home = process.environ().get("FLWR_HOME")
            if home and Path(home).is_relative_to(folder):
                command = process.cmdline()
                if command:  # a zombie has none
                    processes[process.pid] = " ".join(command)
    return processes


def kill_below(folder: Path) -> None:
    """Kill all processes whose Flower home is this folder or lies in it."""
    while left := processes_below(folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Wait for the command to end; clean up if it did not end by itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != _WORD:
        kill_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
