"""Ciphertexts on their way into SEAL."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from privacy.inference.ckks import Ring
from privacy.inference.ckks.streams import IN_MEMORY, ThreadFile

RING = Ring(1024, (27,))


pytestmark = pytest.mark.skipif(not IN_MEMORY, reason="no files in memory on this system")


def ciphertext_of(value: int) -> np.ndarray:
    residues = np.full((2, 1, RING.degree), value, dtype=np.uint64)
    return RING.residues(RING.ciphertext(residues, 1.0))


def test_threads_load_their_own_ciphertexts() -> None:
    """Each thread has a file of its own, and gives it back."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    wrong: list[int] = []

    def load(value: int) -> None:
        wrong.extend(value for _ in range(50) if not (ciphertext_of(value) == value).all())

    threads = [threading.Thread(target=load, args=(value,)) for value in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_a_forked_child_does_not_write_into_its_parents_memory() -> None:
    residues = np.full((2, 1, RING.degree), 7, dtype=np.uint64)
    RING.ciphertext(residues, 1.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if (ciphertext_of(5) == 5).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    held = os.pread(ThreadFile.of_this_thread().descriptor, 1 << 20, 0)
    assert np.full(8, 7, dtype=np.uint64).tobytes() in held
    assert np.full(8, 5, dtype=np.uint64).tobytes() not in held
