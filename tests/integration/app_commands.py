"""Commands that the integration tests run to their end."""

import subprocess
import sys
from collections.abc import Mapping
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
