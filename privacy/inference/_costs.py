"""How long homomorphic operations take: a table, scaled to this machine."""

import statistics
import time
from collections import Counter
from functools import cache

from privacy.inference._seal import Ring, seal

Operation = tuple[str, int]
"""A name and the level (data primes left) it happens at."""

_FULL_RING = 8192
_PROBE_MS = 0.61


def milliseconds(operation: str, degree: int, level: int) -> float:
    """One operation on the reference machine (2.5 GHz Xeon, one thread, SEAL 4.3).

    Fitted to medians at N = 8192 with one to five data primes; other ring degrees scale with
    N·log N. A load is expanding a seed, a mask re-randomising and reading out an answer.
    """
    scale = degree * degree.bit_length() / (_FULL_RING * _FULL_RING.bit_length())
    at_full = {
        "load": 0.4 + 0.25 * level,
        "rotate": 0.11 * level**2 + 0.36 * level + 0.19,
        "relinearise": 0.11 * level**2 + 0.36 * level + 0.19,
        "multiply plain": 0.06 * level,
        "multiply": 0.081 * level,
        "rescale": 0.29 * level,
        "mask": 3.5,
        "unload": 0.5 * level,
        "scalar": 0.012 * level,
    }
    return scale * at_full[operation]


def total_ms(operations: Counter[Operation], degree: int) -> float:
    """Predicted milliseconds of all of them on the reference machine."""
    return sum(
        count * milliseconds(name, degree, level) for (name, level), count in operations.items()
    )


@cache
def machine_factor() -> float:
    """How many times slower than the reference this machine is, by some dozen rotations."""
    ring = Ring(4096, (36, 36, 37))
    generator = seal.KeyGenerator(ring.context)
    encryptor = seal.Encryptor(ring.context, generator.secret_key())
    keys, ciphertext, rotated = seal.GaloisKeys(), seal.Ciphertext(), seal.Ciphertext()
    element = ring.galois_element(1)
    generator.create_galois_keys([element], keys)
    encryptor.encrypt_zero_symmetric(ciphertext)
    spent = []
    for _ in range(15):
        start = time.perf_counter()
        ring.evaluator.apply_galois(ciphertext, element, keys, rotated)
        spent.append((time.perf_counter() - start) * 1e3)
    return statistics.median(spent) / _PROBE_MS
