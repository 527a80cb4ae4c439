"""A public key, which encrypts, and a secret key, which also decrypts and makes other keys."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi as seal

from privacy.inference.ckks import streams
from privacy.inference.ckks.ring import Ciphertext, Plaintext, Ring
from privacy.inference.ckks.streams import Parts, Residues


class PublicKey:
    """Encrypts plaintexts, and zeros that re-randomise answers.

    Parameters
    ----------
    ring : Ring
    residues : ndarray, shape (primes, N)
        The first polynomial.
    seed : bytes
        Of the second one, as SEAL expands it.
    """

    def __init__(self, ring: Ring, residues: Residues, seed: bytes) -> None:
        self._ring = ring
        self._key = streams.load_public_key(
            seal.PublicKey(), ring.context, ring.key_id, residues, seed
        )
        self._zeros: dict[int, tuple[Ring, Any]] = {}

    @cached_property
    def _encryptor(self) -> Any:
        return seal.Encryptor(self._ring.context, self._key)

    def encrypt(self, plain: Plaintext) -> Residues:
        """A fresh encryption, shape (2, level, N)."""
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt(plain.handle, ciphertext)
        return streams.ciphertext_residues(ciphertext)

    def encrypt_zero(self, level: int) -> Ciphertext:
        """A fresh encryption of zero."""
        # With the whole key SEAL would encrypt with one prime more and divide by it, which takes
        # twice as long for noise that an answer's scale does not need to be without.
        if level not in self._zeros:
            bottom = self._ring.at_bottom(level)
            part = streams.ciphertext_residues(self._key)[:, :level]
            key = streams.load_public_key(
                seal.PublicKey(), bottom.context, bottom.key_id, part, None
            )
            self._zeros[level] = bottom, seal.Encryptor(bottom.context, key)
        bottom, encryptor = self._zeros[level]
        zero = seal.Ciphertext()
        encryptor.encrypt_zero(bottom.key_id, zero)
        return Ciphertext(zero, 1.0, level)


class SecretKey:
    """Encrypts, decrypts, and makes public and evaluation keys.

    Parameters
    ----------
    ring : Ring
    residues : ndarray, optional
        A key as :attr:`residues` gave it; a fresh one without.
    """

    def __init__(self, ring: Ring, residues: Residues | None = None) -> None:
        self._ring = ring
        if residues is None:
            self._generator = seal.KeyGenerator(ring.context)
        else:
            key = streams.load_secret_key(seal.SecretKey(), ring.context, ring.key_id, residues)
            self._generator = seal.KeyGenerator(ring.context, key)
        self._key = self._generator.secret_key()
        self._encryptor = seal.Encryptor(ring.context, self._key)
        self._decryptor = seal.Decryptor(ring.context, self._key)

    @property
    def residues(self) -> Residues:
        """The key modulo every prime, in the number-theoretic domain, (primes, N)."""
        return streams.secret_residues(self._key, (len(self._ring.primes), self._ring.degree))

    @property
    def coefficients(self) -> NDArray[np.int64]:
        """The key's coefficients, each -1, 0 or 1, shape (N,)."""
        ring, first = self._ring, self.residues[:1]
        values = ring.coefficient_residues(ring.ciphertext(np.stack([first, first]), 1.0))[0, 0]
        signed = np.where(values > ring.primes[0] // 2, -1, values).astype(np.int64)
        if not bool(np.isin(signed, (-1, 0, 1)).all()):
            raise RuntimeError(
                "SEAL's secret key is not ternary; TenSEAL 0.3 with SEAL 4 is needed"
            )
        return signed

    def public_key(self) -> tuple[Residues, bytes]:
        """First polynomial (primes, N) of a public key and the seed of the second."""
        zero = self._encryptor.encrypt_zero_symmetric(self._ring.key_id)
        return streams.seeded_residues(streams.save(zero))[:2]

    def relinearisation_key(self) -> Parts:
        """A fresh relinearisation key, one part a data prime."""
        return streams.switching_key_parts(self._generator.create_relin_keys())

    def rotation_key(self, element: int) -> Parts:
        """A fresh key for one Galois element, one part a data prime."""
        return streams.switching_key_parts(self._generator.create_galois_keys([element]))

    def encrypt(self, plain: Plaintext) -> Residues:
        """A fresh encryption, shape (2, level, N)."""
        ciphertext = seal.Ciphertext()
        self._encryptor.encrypt_symmetric(plain.handle, ciphertext)
        return streams.ciphertext_residues(ciphertext)

    def decrypt(self, value: Ciphertext) -> NDArray[np.complex128]:
        """The slots, shape (N/2,). In full precision they reveal the key: they must not leave."""
        plain = seal.Plaintext()
        self._decryptor.decrypt(value.handle, plain)
        return np.array(self._ring._encoder.decode_complex(plain))


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
    prime = ring.primes[0]
    low = (transformed & np.uint64(0xFFFFFFFF)).reshape(4, -1).sum(axis=1).tolist()
    high = (transformed >> np.uint64(32)).reshape(4, -1).sum(axis=1).tolist()
    sums = [(a + (b << 32)) % prime for a, b in zip(low, high, strict=True)]
    back, scale = pow(ring.eighth_root, -1, prime), pow(ring.degree, -1, prime)
    return [
        sum(s * pow(back, power * k, prime) for s, power in zip(sums, (1, 5, 3, 7), strict=True))
        * scale
        % prime
        for k in range(4)
    ]
