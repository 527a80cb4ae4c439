"""The time of homomorphic operations on the reference machine."""

from collections import Counter
from functools import lru_cache

Operations = Counter[tuple[str, int]]
"""Counts by name and level (data primes left)."""
_FULL_RING = 8192
_PRICES: dict[str, tuple[float, float, float, float]] = {
    "load": (0.033, 0.028, 0.057, 0.0),
    "relinearise": (0.0, 0.056, 0.0, 0.034),
    "hoist": (0.0, 0.044, 0.0, 0.028),
    "hoisted rotation": (0.0016, 0.019, 0.012, 0.0052),
    "hoisted product": (0.0, 0.0082, 0.0033, 0.00044),
    "extend": (0.0, 0.015, 0.0028, 0.00065),
    "divide half": (0.011, 0.025, 0.013, 0.0),
    "divide": (0.0, 0.053, 0.045, 0.00045),
    "multiply plain": (0.0, 0.0047, 0.00074, 0.0012),
    "multiply": (0.0, 0.0, 0.0092, 0.00032),
    "rescale": (0.0, 0.0, 0.047, 0.00037),
    "mask": (0.081, 0.12, 0.16, 0.0032),
    "expand": (0.02, 0.0, 0.05, 0.0),
    "load residues": (0.01, 0.0, 0.02, 0.0),
    "unload": (0.01, 0.0, 0.02, 0.0),
    "split": (0.0, 0.0, 0.08, 0.0),
    "scalar": (0.0, 0.0, 0.0008, 0.0),
    "reduce": (0.0, 0.0, 0.4, 0.0),
}
"""Of each operation: a constant, and N·log N, relative to 8,192, times 1, levels, and levels²."""


def relinearisation_level(operations: Operations) -> int:
    """The highest level of a relinearisation; 0 if there is none."""
    return max((level for name, level in operations if name == "relinearise"), default=0)


def features(degree: int, level: int) -> tuple[float, float, float, float]:
    """By which the coefficients of an operation are multiplied."""
    scale = degree * degree.bit_length() / (_FULL_RING * _FULL_RING.bit_length())
    return 1.0, scale, scale * level, scale * level**2


def milliseconds(operations: Operations, degree: int) -> float:
    """Time of operations on one core of the reference machine (AMD EPYC, 2.5 GHz, AVX-512).

    Fitted to measurements with ``python -m benchmarks operation_costs``. A load is checking a
    ciphertext's authentication code and residues and expanding its seed, a mask re-randomising an
    answer and reading it out.
    """
    return sum(count * _price(name, degree, level) for (name, level), count in operations.items())


@lru_cache(maxsize=4096)
def _price(name: str, degree: int, level: int) -> float:
    """Milliseconds of one operation."""
    return sum(c * x for c, x in zip(_PRICES[name], features(degree, level), strict=True))
