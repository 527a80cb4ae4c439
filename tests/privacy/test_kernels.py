"""Kernels that are compiled once for a machine, and say so."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import logging
from privacy.inference.ckks import Ring

logging.basicConfig(format="%(name)s %(message)s", level=logging.INFO)
Ring(4096, (30, 30))
"""


def test_the_first_process_says_once_that_it_compiles(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stderr.splitlines()
        for _ in range(2)
    )
    line = "privacy.kernels compiling kernels for some seconds, once for this machine"
    assert first == [line]
    assert second == []
