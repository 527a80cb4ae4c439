"""Uniform polynomials from seeds that travel in their place: of queries and of keys.

SEAL expands seeds itself, but only behind its loader, and ten times slower than a processor with
AES instructions can.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from privacy.inference.ckks import _elementwise as elementwise
from privacy.kernels import compiled

Residues = NDArray[np.uint64]
SEED_BYTES = 32
_SPARE = 64


def expand(
    seed: bytes, primes: Sequence[int], degree: int, *, into: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Uniform residues from a seed, shape (len(primes), degree), in ``into`` if that is given.

    The keystream of AES-256 in counter mode, the seed as its key, is read as 64-bit integers,
    little-endian. They are cut to the bits of the prime, and those that are not below it are left
    out; each prime starts where the one before it ended.

    **Guarantee.** Without the secret key nobody learns anything from a ciphertext with such a
    second polynomial, under ring-LWE.

    **Assumptions.** AES-256 behaves like an ideal cipher, since the seed is public; FrodoKEM makes
    its public matrix of AES likewise (Alkim et al. 2021, section 2.2.4 of its specification). A
    seed (32 bytes) is fresh for every ciphertext and every part of a key.

    **Not covered.** A data owner who reuses a seed, or sends another polynomial: it harms itself.
    """
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    result = np.empty((len(primes), degree), dtype=np.uint64) if into is None else into
    for row, prime in zip(result, primes, strict=True):
        mask, limit = np.uint64((1 << prime.bit_length()) - 1), np.uint64(prime)
        drawn = np.frombuffer(stream.update(bytes(8 * degree)), dtype="<u8")
        # Primes are just below a power of two: hardly a value is left out.
        if _all_fit(row, drawn, mask, limit):
            continue
        filled = _fill(row, 0, drawn, mask, limit)
        while filled < degree:
            drawn = np.frombuffer(stream.update(bytes(8 * _SPARE)), dtype="<u8")
            filled = _fill(row, filled, drawn, mask, limit)
    return result


@compiled
def _all_fit(row: NDArray[Any], drawn: Residues, mask: np.uint64, prime: np.uint64) -> bool:
    """Put all of them there, and tell whether each is below the prime."""
    largest = np.uint64(0)
    for n in range(row.size):
        cut = drawn[n] & mask
        largest = max(largest, cut)
        row[n] = cut
    fits = largest < prime
    return bool(fits)


@compiled
def _fill(
    row: NDArray[Any], filled: int, drawn: Residues, mask: np.uint64, prime: np.uint64
) -> int:
    """Put what fits behind what is there, until the row is full; how much is there then."""
    for value in drawn:
        cut = value & mask
        if cut < prime and filled < row.size:
            row[filled] = cut
            filled += 1
    return filled


def reseeded(
    ciphertext: Residues, secret: Residues, primes: Sequence[int]
) -> tuple[Residues, bytes]:
    """A fresh ciphertext with its second polynomial exchanged for one that a seed gives.

    Adding (c1 - a)·s to the first polynomial, for the new second polynomial a, changes neither
    the message nor the noise.

    ``ciphertext`` has the shape (2, primes, N), in the number-theoretic domain, as ``secret``;
    first polynomial (primes, N) and seed come back.
    """
    seed = secrets.token_bytes(SEED_BYTES)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    change = (ciphertext[1] + (moduli - expand(seed, primes, ciphertext.shape[-1]))) % moduli
    total = ciphertext[:1].astype(np.float64)
    elementwise.add_product(
        total,
        change[None].astype(np.float64),
        secret.astype(np.float64),
        moduli[:, 0].astype(np.float64),
    )
    return total[0].astype(np.uint64), seed
