"""Factors of correlated noise beside jax_privacy's, on the same schema: what noise is left."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks._peers.environments import JAX_PRIVACY, NotMeasuredError, interpreter
from benchmarks.harness import Log, Row, Spread
from privacy.correlated_noise import (
    MinSeparation,
    banded_coefficients,
    blt_factor,
    relative_error,
)

SCHEMAS = ((100, 10), (1000, 100))
"""Rounds, and how many lie between two participations of a client. Without momentum."""
ROOT = Path(__file__).parents[1]


def run(*, quick: bool, log: Log) -> list[Row]:
    """Optimise each factor for the mean error; jax_privacy knows none with momentum."""
    python: Path | None = None
    title = JAX_PRIVACY.title
    try:
        python = interpreter(JAX_PRIVACY, make=not quick, log=log)
    except NotMeasuredError as reason:
        title = f"{title}: not measured: {reason}"
    rows = []
    for rounds, separation in SCHEMAS[:1] if quick else SCHEMAS:
        for kind in ("banded", "BLT"):
            log(f"{kind}, {rounds} rounds, every {separation}th")
            start = time.perf_counter()
            ours = _column(kind, rounds, separation)
            seconds = time.perf_counter() - start
            peer = _asked(python, kind, rounds, separation) if python else None
            case = f"{kind}, {rounds} rounds, each client every {separation}th"
            rows += [
                Row(
                    case,
                    "noise in the models",
                    "of independent noise",
                    _left(ours, rounds, separation),
                    peer and _left(peer[0], rounds, separation),
                    title,
                ),
                Row(
                    case,
                    "time to optimise",
                    "s",
                    Spread.of([seconds]),
                    peer and Spread.of([peer[1]]),
                    title,
                ),
            ]
    return rows


def _left(column: ArrayLike, rounds: int, separation: int) -> Spread:
    participation = MinSeparation(separation)
    return Spread.of([relative_error(column, rounds=rounds, participation=participation)])


def _column(kind: str, rounds: int, separation: int) -> NDArray[np.float64]:
    if kind == "banded":
        return banded_coefficients(separation, rounds=rounds)
    return blt_factor(4, rounds=rounds, separation=separation).coefficients


def _asked(python: Path, kind: str, rounds: int, separation: int) -> tuple[list[float], float]:
    """The peer's column, and the seconds it took."""
    done = subprocess.run(
        [str(python), "-m", "benchmarks._peers.factors", kind, str(rounds), str(separation)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["column"], answer["seconds"]
