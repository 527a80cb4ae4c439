"""Ends what a command of ours started, should the command itself be killed.

Flower's processes stand in sessions of their own, so that Ctrl-C reaches the command first; a
command that is killed outright (``kill -9``, a lack of memory) cannot end them any more. This
process can: it holds the other end of a pipe, which the system closes with the command.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_ROOT = Path(__file__).parents[2]
_WORD = b"done"


class Watchdog:
    """While in its ``with`` block, a killed command takes along what it started.

    Parameters
    ----------
    folder : Path
        The Flower home of all that is to be ended, or the folder above their homes. It is
        removed as well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flower_app.processes.watchdog", str(self._folder)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(_WORD)


def processes_below(folder: Path) -> dict[int, str]:
    """Process id to command, of all whose Flower home is this folder or lies in it.

    Found by their environment, so that those that Flower detaches are found too.
    """
    processes = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            home = process.environ().get("FLWR_HOME")
            if home and Path(home).is_relative_to(folder):
                command = process.cmdline()
                if command:  # not one that has ended and is only not yet reaped
                    processes[process.pid] = " ".join(command)
    return processes


def kill_below(folder: Path) -> None:
    """End, at once, all whose Flower home is this folder or lies in it."""
    while left := processes_below(folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Wait for the command to end; clean up if it could not say that it has."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != _WORD:
        kill_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
