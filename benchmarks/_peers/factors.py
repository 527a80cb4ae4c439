"""jax_privacy: the first column of a factor for prefix sums, and the seconds it took to find."""

import json
import sys
import time

import jax
import numpy as np
from jax_privacy.matrix_factorization import buffered_toeplitz, toeplitz


def column(kind: str, rounds: int, separation: int) -> list[float]:
    """c₀ = 1, c₁, …, for the mean error, and as many participations as the separation allows."""
    if kind == "banded":
        c = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, separation))
    else:
        blt = buffered_toeplitz.optimize(
            n=rounds,
            min_sep=separation,
            max_participations=None,
            error="mean",
            max_buffers=4,
        )
        c = np.asarray(blt.toeplitz_coefs(rounds))
    return [float(value) for value in c / c[0]]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    kind, rounds, separation = sys.argv[1:]
    start = time.perf_counter()
    answer = column(kind, int(rounds), int(separation))
    print(json.dumps({"column": answer, "seconds": time.perf_counter() - start}))
