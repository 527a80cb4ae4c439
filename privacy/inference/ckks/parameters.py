"""The parameters of a ring: primes, tables of transforms, and the automorphisms."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._processor import say_slow
from privacy.inference.ckks.ciphertexts import CONJUGATE
from privacy.inference.ckks.encoding import encoder
from privacy.inference.ckks.primes import choose_primes
from privacy.inference.ckks.transforms import Values, reversed_bits, tables

TRANSFORM = 8
"""A value that is transformed takes as long as so many that are multiplied."""


class Base(NamedTuple):
    """The primes of some rows, by their places in the ring; of divisors, inverses."""

    places: NDArray[np.int64]
    primes: Values
    inverses: Values
    """Of the last prime modulo the others, centred."""
    last: Values
    """The last prime modulo the others, centred."""


class Parameters:
    """Parameters of CKKS at 128-bit security.

    Parameters
    ----------
    degree : int
        N, the ring degree; a ciphertext has N/2 slots.
    prime_bits : sequence of int
        Bits of each prime, at most 50, in SEAL's order: the prime that is left at the end comes
        first, and the special prime of key switching, if there is more than one, last.

    Raises
    ------
    ValueError
        If the parameters do not hold 128 bits of security, or no such primes exist.
    """

    def __init__(self, degree: int, prime_bits: Sequence[int]) -> None:
        say_slow()
        self.primes = choose_primes(degree, prime_bits)
        self.degree = degree
        self.slots = degree // 2
        self.levels = max(1, len(self.primes) - 1)
        self._encoder = encoder(degree)
        self._primes = np.array(self.primes, dtype=np.float64)
        self._mixing, self._unmixing = _stacked(degree, self.primes)
        self._bases: dict[tuple[int, ...], Base] = {}
        self._counting = np.arange(self.levels)

    @cached_property
    def quarter_factors(self) -> list[list[int]]:
        """By which sums of a transformed polynomial's quarters are coefficients 0, N/4, N/2, 3N/4.

        Up to signs, and modulo the first prime.
        """
        prime = self.primes[0]
        powers = (pow(base, (prime - 1) // 8, prime) for base in range(2, prime))
        root = next(root for root in powers if pow(root, 4, prime) == prime - 1)
        back, scale = pow(root, -1, prime), pow(self.degree, -1, prime)
        return [
            [pow(back, odd * k, prime) * scale % prime for odd in (1, 5, 3, 7)] for k in range(4)
        ]

    @property
    def roots(self) -> NDArray[np.complex128]:
        """ζ^(3^j) for slot j: where the slots evaluate a plaintext polynomial, (N/2,)."""
        return self._encoder.roots

    def galois_element(self, step: int) -> int:
        """As the function of that name, in this ring."""
        return galois_element(step, self.degree)

    def _order(self, element: int) -> NDArray[np.uint32]:
        return _automorphism(self.degree, element)

    def _base(self, places: tuple[int, ...]) -> Base:
        if places not in self._bases:
            *others, last = (self.primes[place] for place in places)
            inverses = [_centred(pow(last, -1, prime), prime) for prime in others]
            remainders = [_centred(last % prime, prime) for prime in others]
            self._bases[places] = Base(
                np.array(places, dtype=np.int64),
                self._primes[list(places)],
                np.array(inverses, dtype=np.float64),
                np.array(remainders, dtype=np.float64),
            )
        return self._bases[places]

    def _with_special(self, level: int) -> Base:
        """The primes of a level and the special one."""
        return self._base((*range(level), len(self.primes) - 1))


def galois_element(step: int, degree: int) -> int:
    """The Galois element that rotates the slots left by ``step``, or conjugates them."""
    return 2 * degree - 1 if step == CONJUGATE else pow(3, step % (degree // 2), 2 * degree)


def _centred(residue: int, prime: int) -> int:
    return residue - prime if residue > prime // 2 else residue


@lru_cache(maxsize=8)
def _stacked(degree: int, primes: tuple[int, ...]) -> tuple[Values, Values]:
    """The tables of both transforms for each prime, (primes, N)."""
    mixing, unmixing = zip(*(tables(prime, degree) for prime in primes), strict=True)
    return np.stack(mixing), np.stack(unmixing)


@lru_cache(maxsize=128)
def _automorphism(degree: int, element: int) -> NDArray[np.uint32]:
    """Where each value of a transformed polynomial p(X^element) is among those of p, (N,).

    Value i is the polynomial at ψ^(2·bitrev(i) + 1).
    """
    order = reversed_bits(degree)
    powers = (2 * order + 1) * element % (2 * degree)
    return np.asarray(order[powers >> 1], dtype=np.uint32)
