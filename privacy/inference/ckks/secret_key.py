"""A secret key, which TenSEAL makes and decrypts with; it also makes the other keys."""

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from privacy.imports import needing
from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks.ciphertexts import Ciphertext, Parts, Plaintext, Residues
from privacy.inference.ckks.ring import Ring
from privacy.inference.ckks.seeded import SEED_BYTES, expand, reseeded
from privacy.mechanisms import SystemRandomness, centred_binomial

if TYPE_CHECKING:
    from privacy.inference.ckks.seal_keys import SealKeys


class SecretKey:
    """Encrypts, decrypts, and makes public and evaluation keys.

    The key, the evaluation keys and decryptions are SEAL's, through TenSEAL; fresh encryptions
    are made here. TenSEAL is loaded where it makes a key or decrypts: who has a key already, or
    none, does without.

    Parameters
    ----------
    ring : Ring
    residues : ndarray, optional
        A key as :attr:`residues` gave it; a fresh one without.
    """

    def __init__(self, ring: Ring, residues: Residues | None = None) -> None:
        self._ring = ring
        self._given = residues
        self._residues = self._seal.secret() if residues is None else residues
        moduli = np.array(ring.primes, dtype=np.uint64)[:, None]
        self._negated = ((moduli - self._residues) % moduli).astype(np.float64)

    @cached_property
    def _seal(self) -> "SealKeys":
        with needing("a secret key", extra="owner"):
            from privacy.inference.ckks.seal_keys import SealKeys

        return SealKeys(self._ring.degree, self._ring.primes, self._given)

    @property
    def residues(self) -> Residues:
        """The key modulo every prime, in the number-theoretic domain, (primes, N)."""
        return self._residues

    @property
    def coefficients(self) -> NDArray[np.int64]:
        """The key's coefficients, each -1, 0 or 1, shape (N,)."""
        ring, first = self._ring, self._residues[:1]
        values = ring.coefficient_residues(ring.ciphertext(first[None], 1.0))[0, 0].astype(np.int64)
        signed = np.where(values > ring.primes[0] // 2, -1, values)
        if not bool(np.isin(signed, (-1, 0, 1)).all()):
            if self._given is not None:
                raise ValueError("it has coefficients other than -1, 0 and 1")
            raise RuntimeError(
                "SEAL's secret key is not ternary; TenSEAL 0.3 with SEAL 4 is needed"
            )
        return signed

    def public_key(self) -> tuple[Residues, bytes]:
        """First polynomial (primes, N) of a public key and the seed of the second."""
        return reseeded(self._seal.zero(), self._residues, self._ring.primes)

    def relinearisation_key(self, level: int) -> Parts:
        """A fresh relinearisation key for products up to ``level``, one part a data prime."""
        return self._parts(self._seal.relinearisation(), level)

    def rotation_key(self, element: int, level: int) -> Parts:
        """A fresh key for one Galois element up to ``level``, one part a data prime."""
        return self._parts(self._seal.rotation(element), level)

    def _parts(self, key: Residues, level: int) -> Parts:
        """Of a key (parts, 2, primes, N), what is used up to ``level``, with seeds."""
        places = [*range(level), len(self._ring.primes) - 1]
        primes = [self._ring.primes[place] for place in places]
        secret = self._residues[places]
        return [reseeded(part[:, places], secret, primes) for part in key[:level]]

    def encrypt(self, plain: Plaintext) -> tuple[Residues, bytes]:
        """A fresh encryption: first polynomial (level, N) and the seed of the second.

        It is (-a·s + e + m, a) for a uniform a that the seed gives and a centred binomial error e.

        **Guarantee.** Whoever lacks the key learns nothing from it, under ring-LWE at 128 bits.

        **Assumptions.** Those of :func:`~privacy.inference.ckks.expand`. The error comes from the
        operating system's randomness; no branch and no address depends on it, on the key or on
        the message.

        **Not covered.** Memory that is freed and not overwritten.
        """
        ring, level = self._ring, len(plain.polynomial)
        seed, places = secrets.token_bytes(SEED_BYTES), tuple(range(level))
        uniform = np.empty((level, ring.degree))
        expand(seed, ring.primes[:level], ring.degree, into=uniform)
        primes = np.array(ring.primes[:level], dtype=np.float64)
        total = ring.transformed(centred_binomial(ring.degree, SystemRandomness()), places)[None]
        elementwise.add(total, plain.polynomial[None], primes, 0, level)
        elementwise.add_product(total, uniform[None], self._negated[:level], primes)
        return total[0].astype(np.uint64), seed

    def decrypt(self, value: Ciphertext) -> NDArray[np.complex128]:
        """The slots, shape (N/2,). In full precision they reveal the key: they must not leave."""
        return self._seal.decrypted(self._ring.residues(value), value.scale)


def is_ternary(ring: Ring, residues: Residues) -> bool:
    """Whether a polynomial, shape (level, N), has the form of a secret key.

    All coefficients are -1, 0 or 1, in the number-theoretic domain or out of it; four of them are
    looked at. Of a uniform polynomial (a public key, an evaluation key, a ciphertext) these are
    all that small once in 2^85 at the shortest prime.
    """
    small = (0, 1, ring.primes[0] - 1)
    looked_at = (residues[0, :4].tolist(), _four_coefficients(ring, residues[0]))
    return any(all(value in small for value in values) for values in looked_at)


def _four_coefficients(ring: Ring, transformed: Residues) -> list[int]:
    """Coefficients 0, N/4, N/2 and 3N/4 of a transformed polynomial, up to their signs.

    The transform is in bit-reversed order, where the powers of ζ that the first two bits of an
    index leave are 1, 5, 3 and 7: the inverse transform at these four is one of sums of quarters.
    """
    prime, quarters = ring.primes[0], transformed.reshape(4, -1)
    # Up to 2^13 values below 2^50 in a quarter.
    sums = quarters.sum(axis=1, dtype=np.uint64).tolist()
    return [
        sum(s * factor for s, factor in zip(sums, factors, strict=True)) % prime
        for factors in ring.quarter_factors
    ]
