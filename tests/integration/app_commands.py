"""Commands that the integration tests run to their end."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(
    *arguments: str,
    environment: Mapping[str, str],
    python: Path | str = sys.executable,
    folder: Path = ROOT,
    timeout: float = 1500,
) -> "subprocess.CompletedProcess[str]":
    """What ``python`` with these arguments, run in ``folder``, printed and ended with."""
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def started_python(
    *arguments: str, environment: Mapping[str, str], until: str = ""
) -> Iterator["subprocess.Popen[str]"]:
    """``python`` with these arguments, whose output has been read up to the line with ``until``."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        if until:
            for line in process.stdout:
                if until in line:
                    break
        yield process
