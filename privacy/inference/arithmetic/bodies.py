"""Bodies of queries and answers: ciphertexts read from one, and released into the other."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks import SEED_BYTES, Ciphertext, Ciphertexts, Residues, Ring, deal, expand
from privacy.inference.messages import Reader
from privacy.inference.public_keys import Keys, refuse_secret

_READING = 2
"""Products of residues that reading one takes as long as."""


def _read_residues(reader: Reader, ring: Ring, uniform: NDArray[Any]) -> Residues:
    """The next ciphertext's first polynomial; the second one is expanded into ``uniform``."""
    primes = ring.primes[: ring.levels]
    first = reader.residues(primes, ring.degree)
    refuse_secret(ring, first)
    expand(reader.raw(SEED_BYTES), primes, ring.degree, into=uniform)
    return first


def read_ciphertexts(body: memoryview, ring: Ring, count: int, scale: float) -> Ciphertexts:
    """The ciphertexts of a query."""
    pairs = np.empty((count, 2, ring.levels, ring.degree))
    one = len(body) // count

    def work(start: int, stop: int) -> None:
        for index in range(start, stop):
            reader, pair = Reader(body[one * index : one * (index + 1)]), pairs[index]
            pair[0] = _read_residues(reader, ring, pair[1])

    deal(work, count, _READING * pairs.size)
    return Ciphertexts(pairs, scale)


def read_columns(body: memoryview, ring: Ring, count: int) -> list[Residues]:
    """Both polynomials of a query's ciphertexts, each (count, levels, N).

    The first ones stay in the message's memory.
    """
    reader, shape = Reader(body), (count, ring.levels, ring.degree)
    uniform = np.empty(shape, dtype=np.uint64)
    for row in uniform:
        _read_residues(reader, ring, row)
    one = 8 * ring.degree
    strides = (ring.levels * one + SEED_BYTES, one, 8)
    return [np.ndarray(shape, dtype="<u8", buffer=body, strides=strides), uniform]


def rerandomise(ring: Ring, keys: Keys, answer: Ciphertext) -> None:
    """Add a fresh encryption of zero under the data owner's public key.

    The second polynomial of an answer is a weighted sum of the query's, so that its owner could
    read the weights by division in the ring; adding a plaintext or a mask does not touch it. A
    fresh encryption of zero makes it independent of the query's, under ring-LWE.
    """
    ring.add(answer, keys.public.encrypt_zero(answer.level))


def extract(ring: Ring, answer: Ciphertext, positions: tuple[int, ...], biases: list[int]) -> bytes:
    """The second polynomial, and the coefficients of the first that are read.

    Every other coefficient of the first polynomial is left out. Covering it with a mask that is
    uniform modulo the primes would hide it as well, at twice the length.
    """
    first, second = ring.coefficient_residues(answer)
    read = [
        (int(residues[position]) + bias) % prime
        for position, bias in zip(positions, biases, strict=True)
        for residues, prime in zip(first, ring.primes, strict=False)
    ]
    return bytes(second.tobytes()) + struct.pack(f"<{len(read)}Q", *read)
