"""Commands that the integration tests run to their end."""

import contextlib
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0  # seconds after which an event that must happen has failed to

T = TypeVar("T")


def run_python(
    *arguments: str,
    environment: Mapping[str, str],
    python: Path | str = sys.executable,
    folder: Path = ROOT,
    timeout: float = 1500,
) -> "subprocess.CompletedProcess[str]":
    """Run ``python`` with these arguments in ``folder``: its output and exit code."""
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def borrowing_environment(folder: Path) -> Path:
    """The interpreter of a new environment, which sees what is installed where the tests run."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    # A path in a .pth file is searched, but the .pth files that lie there are not read: those of
    # an editable bloomseal among them.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def wait_until(condition: Callable[[], T | None]) -> T:
    """The first true value of a condition, which must become true in time."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {PATIENCE} s"
        time.sleep(0.1)
    return value


@contextlib.contextmanager
def started_python(
    *arguments: str,
    environment: Mapping[str, str],
    until: Callable[[], object],
    own_session: bool = False,
) -> Iterator["subprocess.Popen[str]"]:
    """``python`` with these arguments, running, once a condition is true.

    Its output is left to read. It is not what is waited for: Flower's log lags behind a run.
    """
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_session,
    ) as process:
        try:
            wait_until(lambda: until() or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
            yield process
        finally:
            process.kill()
