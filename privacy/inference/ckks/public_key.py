"""A public key: encrypts, and makes the zeros that re-randomise answers."""

import numpy as np

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks.ciphertexts import Ciphertext, Extended, Plaintext, Residues
from privacy.inference.ckks.ring import Ring
from privacy.inference.ckks.seeded import expand
from privacy.inference.ckks.transforms import Values
from privacy.mechanisms import SystemRandomness, centred_binomial, ternary


class PublicKey:
    """Encrypts plaintexts, and zeros that re-randomise answers.

    A ciphertext is (b·u + e₀ + m, a·u + e₁) for the key (b, a), a ternary u and centred binomial
    errors e (Lyubashevsky, Peikert and Regev 2010, section 8.2; SEAL's distributions).

    **Guarantee.** Whoever lacks the secret key tells it from uniform residues only by breaking
    ring-LWE at 128 bits.

    **Assumptions.** The key is (a, -a·s + e) for a uniform a; u and e come from the operating
    system's randomness, fresh each time.

    **Not covered.** A data owner who sends another key: it harms itself alone, since only its own
    query was to be hidden; what its answers hide of the weights rests on ring-LWE for its key, and
    a key that was made otherwise (such as zero) hides nothing.

    Parameters
    ----------
    ring : Ring
    residues : ndarray, shape (primes, N)
        The first polynomial, in the number-theoretic domain.
    seed : bytes
        Of the second one.
    """

    def __init__(self, ring: Ring, residues: Residues, seed: bytes) -> None:
        self._ring = ring
        self._key = np.empty((2, len(ring.primes), ring.degree))
        self._key[0] = residues
        expand(seed, ring.primes, ring.degree, into=self._key[1])

    def encrypt(self, plain: Plaintext) -> Residues:
        """A fresh encryption, shape (2, level, N).

        It is made modulo the special prime too and divided by that, which leaves of the noise
        what rounding adds.
        """
        ring, level = self._ring, len(plain.polynomial)
        if len(ring.primes) > 1:
            places = (*range(level), len(ring.primes) - 1)
            zero = ring.divided(Extended(self._zero(places), plain.scale))
        else:
            zero = Ciphertext(self._zero((0,)), plain.scale)
        ring.add_plain(zero, plain)
        return ring.residues(zero)

    def encrypt_zero(self, level: int) -> Ciphertext:
        """A fresh encryption of zero.

        An answer's scale does not need the division that :meth:`encrypt` makes.
        """
        return Ciphertext(self._zero(tuple(range(level))), 1.0)

    def _zero(self, places: tuple[int, ...]) -> Values:
        """An encryption of zero modulo the primes in these places, (2, places, N)."""
        ring, randomness = self._ring, SystemRandomness()
        short = ring.transformed(ternary(ring.degree, randomness), places)
        total = np.stack(
            [ring.transformed(centred_binomial(ring.degree, randomness), places) for _ in range(2)]
        )
        primes = np.array([ring.primes[place] for place in places], dtype=np.float64)
        key = np.ascontiguousarray(self._key[:, list(places)])
        elementwise.add_product(total, key, short, primes)
        return total
