"""The time of homomorphic operations on the reference machine."""

from collections import Counter

Operations = Counter[tuple[str, int]]
"""Counts by name and level (data primes left)."""


def relinearisation_level(operations: Operations) -> int:
    """The highest level of a relinearisation; 0 if there is none."""
    return max((level for name, level in operations if name == "relinearise"), default=0)


def milliseconds(operations: Operations, degree: int) -> float:
    """Time of operations on the reference machine."""
    ntt = 0.021 * degree * degree.bit_length() / (8192 * 14)
    row = 0.006 * degree / 8192
    t = 0
    for (name, k), c in operations.items():
        hoist = (k + k * k) * ntt
        inner = 2 * k * (k + 1) * row * 0.7 + 4 * (k + 1) * row * 0.5
        divide = (2 + 2 * k) * ntt + 4 * k * row
        t += c * (
            {
                "load": 0.04 + k * 0.1,
                "expand": k * 0.1,
                "rotate": hoist + inner + divide,
                "relinearise": hoist + inner + divide,
                "hoist": hoist,
                "hoisted rotation": inner,
                "divide": divide,
                "hoisted product": 2 * (k + 1) * row,
                "multiply plain": 2 * k * row,
                "multiply": 5 * k * row,
                "rescale": (2 + 2 * k) * ntt,
                "mask": 0.5 + 0.4 * k,
                "load residues": 0.02 * k,
                "unload": 0.02 * k,
                "split": 0.08 * k,
                "scalar": 0.0008 * k,
                "reduce": 0.4 * k,
            }[name]
            * (1 if name in () else 1)
        )
    return t
