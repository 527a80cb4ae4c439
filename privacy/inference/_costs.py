"""How long homomorphic operations take: counts, and a table scaled to this machine."""

from collections import Counter

Operation = tuple[str, int]
"""A name and the level (data primes left) it happens at."""

_FULL_RING = 8192


def milliseconds(operation: str, degree: int, level: int) -> float:
    """One operation on the reference machine (2.5 GHz Xeon, one thread, SEAL 4.3).

    Fitted to medians at N = 8192 with one to five data primes; other ring degrees scale with
    N·log N.
    """
    scale = degree * degree.bit_length() / (_FULL_RING * _FULL_RING.bit_length())
    at_full = {
        "load": 0.30 * level,
        "rotate": 0.15 * level**2 + 0.6 * level + 0.25,
        "relinearise": 0.15 * level**2 + 0.6 * level + 0.25,
        "multiply plain": 0.08 * level,
        "multiply": 0.17 * level,
        "rescale": 0.27 * level,
        "unload": 0.8 * level,
        "scalar": 0.06 * level,
        "mask": 2.9,
    }
    return scale * at_full[operation]


def total_ms(operations: Counter[Operation], degree: int) -> float:
    """Predicted milliseconds of all of them."""
    return sum(
        count * milliseconds(name, degree, level) for (name, level), count in operations.items()
    )
