"""What leaves of an answer, and nothing else of it."""

import struct
from typing import Any

from privacy.inference.ckks.ring import Ring, seal


def rerandomise(ring: Ring, encryptor: Any, answer: Any) -> None:
    """Add a fresh encryption of zero under the data owner's public key.

    The second polynomial of an answer is a weighted sum of the query's, so that its owner could
    read the weights by division in the ring; adding a plaintext or a mask does not touch it. A
    fresh encryption of zero makes it independent of the query's, under ring-LWE.

    ``encryptor`` is of ``ring.last``: SEAL would otherwise encrypt with one prime more and divide
    by it, which takes twice as long for noise that an answer's scale does not need to be without.
    """
    zero = seal.Ciphertext()
    encryptor.encrypt_zero(zero)
    zero.scale = answer.scale
    ring.evaluator.add_inplace(answer, zero)


def extract(ring: Ring, answer: Any, positions: tuple[int, ...], biases: list[int]) -> bytes:
    """The second polynomial, and the coefficients of the first that are read.

    Every other coefficient of the first polynomial is left out. It could as well have been
    covered with a mask that is uniform modulo the prime: both tell nothing, and this one is
    half as long.
    """
    ring.evaluator.transform_from_ntt_inplace(answer)
    first, second = ring.ciphertext_residues(answer)[:, 0]
    modulus = ring.primes[0]
    read = [
        (int(first[position]) + bias) % modulus
        for position, bias in zip(positions, biases, strict=True)
    ]
    return bytes(second.tobytes()) + struct.pack(f"<{len(read)}Q", *read)
