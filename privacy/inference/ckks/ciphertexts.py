"""What the ring computes with: plaintexts, ciphertexts and keys, as residues in doubles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks.transforms import Values

Residues = NDArray[np.uint64]
Parts = Sequence[tuple[Residues, bytes]]
"""Of a switching key: one ciphertext a data prime, its second polynomial as a seed."""
CONJUGATE = 0
"""Stands for complex conjugation among rotation steps, where 0 has no other use."""


@dataclass(frozen=True, slots=True)
class Plaintext:
    """An encoded polynomial modulo the primes of a level, (level, N), and the special one if asked.

    It is in the number-theoretic domain.
    """

    polynomial: Values
    scale: float

    @property
    def is_zero(self) -> bool:
        """Whether every coefficient rounded to zero."""
        return not self.polynomial.any()


@dataclass(slots=True)
class Ciphertext:
    """Polynomials modulo the primes that are left, (size, level, N), with their scale.

    They are in the number-theoretic domain. No other ciphertext shares their memory.
    """

    polynomials: Values
    scale: float

    @property
    def size(self) -> int:
        """How many polynomials it has: 2, or 3 after a product."""
        return int(self.polynomials.shape[0])

    @property
    def level(self) -> int:
        """The number of primes that are left."""
        return int(self.polynomials.shape[1])

    def alone(self) -> "Ciphertexts":
        """As the only one of some, in the same memory."""
        return Ciphertexts(self.polynomials[None], self.scale)


@dataclass(frozen=True, slots=True)
class Ciphertexts:
    """Ciphertexts of one scale, side by side: (count, size, level, N)."""

    polynomials: Values
    scale: float

    @property
    def size(self) -> int:
        """How many polynomials each has."""
        return int(self.polynomials.shape[1])

    @property
    def level(self) -> int:
        """The number of primes that are left."""
        return int(self.polynomials.shape[2])

    def __getitem__(self, place: int) -> Ciphertext:
        """One of them, in the memory of all."""
        return Ciphertext(self.polynomials[place], self.scale)


@dataclass(frozen=True, slots=True)
class Extended:
    """A ciphertext times the special prime, modulo that too: (2, level + 1, N), its row last.

    Sums and rotations are taken before they are divided by that prime: once, and with the noise of
    one division (Bossuat et al. 2021, section 4.3).

    Attributes
    ----------
    second : ndarray, shape (level, N), or None
        The second polynomial divided, where that is known.
    """

    polynomials: Values
    scale: float
    second: Values | None = None

    @property
    def level(self) -> int:
        """The number of primes that are left after the division."""
        return int(self.polynomials.shape[1]) - 1


@dataclass(frozen=True, slots=True)
class Hoisted:
    """Rotations of one ciphertext, each as :class:`Extended`: (rotations, 2, level + 1, N)."""

    polynomials: Values
    scale: float


class Weights(NamedTuple):
    """Plaintexts (terms, level, N) for the ciphertexts in these places.

    The special prime's row is last where they are for :class:`Hoisted` ones.
    """

    places: NDArray[np.int64]
    polynomials: Values
    scale: float


class SwitchingKey(NamedTuple):
    """A key for levels up to ``level``: (parts, 2, level + 1, N), the special prime's row last."""

    parts: Values
    level: int


RotationKeys = Mapping[int, SwitchingKey]
"""By Galois element; each key was rotated backwards."""
