"""What homomorphic operations cost, for choosing between packings: the same on every machine."""

from collections import Counter

Operation = tuple[str, int]
"""A name and the level (data primes left) it happens at."""

_FULL_RING = 8192


def milliseconds(operation: str, degree: int, level: int) -> float:
    """One operation on the reference machine (2.5 GHz Xeon, one thread, SEAL 4.3).

    Fitted to medians at N = 8192 with one to five data primes; other ring degrees scale with
    N·log N. A load is expanding a
    seed and giving SEAL the ciphertext, a mask re-randomising and reading out an answer.
    """
    scale = degree * degree.bit_length() / (_FULL_RING * _FULL_RING.bit_length())
    at_full = {
        "load": 0.1 + 0.15 * level,
        "expand": 0.05 + 0.06 * level,
        "rotate": 0.11 * level**2 + 0.36 * level + 0.19,
        "relinearise": 0.11 * level**2 + 0.36 * level + 0.19,
        "multiply plain": 0.06 * level,
        "multiply": 0.081 * level,
        "rescale": 0.29 * level,
        "mask": 3.5,
        "load residues": 0.3 * level,
        "unload": 0.5 * level,
        "split": 0.3 * level,
        "scalar": 0.003 * level,
        "reduce": 0.6 * level,
    }
    return scale * at_full[operation]


def total_ms(operations: Counter[Operation], degree: int) -> float:
    """Predicted milliseconds of all of them on the reference machine."""
    return sum(
        count * milliseconds(name, degree, level) for (name, level), count in operations.items()
    )
