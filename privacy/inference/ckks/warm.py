"""Kernels compiled ahead of the first question."""

import numpy as np

from privacy.inference.ckks._threads import start_helpers
from privacy.inference.ckks.ciphertexts import SwitchingKey
from privacy.inference.ckks.modular import matrix_product
from privacy.inference.ckks.public_key import PublicKey
from privacy.inference.ckks.ring import Ring
from privacy.inference.ckks.seeded import SEED_BYTES, expand, reseeded


def warm_up() -> None:
    """Compile every kernel, or load what an earlier process left on the disk; start the threads.

    The first takes some ten seconds, the second half of one.
    """
    start_helpers()
    ring = Ring(4096, (30, 30, 30))
    degree, level = ring.degree, ring.levels
    plain = ring.encode(np.zeros(ring.slots), 1.0, level, hoisted=True)
    low = ring.encode(np.zeros(ring.slots), 1.0, level)
    key = SwitchingKey(np.zeros((level, 2, level + 1, degree)), level)
    element = ring.galois_element(1)
    residues = np.zeros((2, level + 1, degree), dtype=np.uint64)
    zero = PublicKey(ring, residues[0], bytes(SEED_BYTES)).encrypt_zero(level)
    value = ring.multiply(zero, zero)
    ring.relinearise(value, key)
    ring.add_plain(value, low)
    value = ring.multiply_plain(value, low)
    extended = ring.add_rotations(ring.extended(value), (1,), {element: key})
    hoisted = ring.hoist(extended, (1, None), {element: key})
    total = ring.divided(ring.combine(hoisted, ring.weights({0: plain, 1: plain})))
    ring.rescale(total)
    ring.coefficient_residues(total)
    reseeded(residues, residues[0], ring.primes)
    expand(bytes(SEED_BYTES), ring.primes, degree)
    matrix_product(np.ones((1, 2)), residues[:, 0], ring.primes[0])
