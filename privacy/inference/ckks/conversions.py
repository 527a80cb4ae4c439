"""Slots, coefficients and residues, into plaintexts, ciphertexts and keys, and out of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks._threads import deal
from privacy.inference.ckks.ciphertexts import (
    Ciphertext,
    Parts,
    Plaintext,
    Residues,
    RotationKeys,
    SwitchingKey,
    Weights,
)
from privacy.inference.ckks.encoding import passes, transform_rows
from privacy.inference.ckks.parameters import TRANSFORM, Parameters
from privacy.inference.ckks.seeded import expand
from privacy.inference.ckks.transforms import Values, backward


class Conversions(Parameters):
    """What becomes residues of a ring, and what they become."""

    def encode(
        self, slots: NDArray[Any] | float, scale: float, level: int, *, hoisted: bool = False
    ) -> Plaintext:
        """A plaintext with these slot values, shape (N/2,), real or complex; a number for all.

        For products with :class:`Hoisted` ciphertexts it is also taken modulo the special prime.
        A coefficient is a double before it is rounded: exact to a unit up to scales of 2^50, and
        to 2^-50 of the largest beyond that.

        Raises
        ------
        ValueError
            If it is not finite, or too large for the primes of the level.
        """
        return self.encode_coefficients(self._spread(slots), scale, level, hoisted=hoisted)

    def encode_addend(self, slots: NDArray[Any] | float, scale: float, level: int) -> Plaintext:
        """As :meth:`encode`, for sums alone: values of any size, modulo the primes of the level.

        A sum modulo the primes is right where it fits, also if an addend does not.

        Raises
        ------
        ValueError
            If it is not finite.
        """
        rounded = np.rint(self._spread(slots) * scale)
        largest = float(np.abs(rounded).max())
        if not np.isfinite(largest):
            raise ValueError("an addend is not a finite number")
        return Plaintext(self.transformed(rounded, tuple(range(level)), largest), scale)

    def _spread(self, slots: NDArray[Any] | float) -> NDArray[np.float64]:
        """The coefficients of an array of slots, or of a number for all of them."""
        if isinstance(slots, np.ndarray):
            return self._encoder.coefficients(slots.astype(np.complex128, copy=False))
        coefficients = np.zeros(self.degree)
        coefficients[0] = slots
        return coefficients

    def encode_coefficients(
        self, values: NDArray[np.float64], scale: float, level: int, *, hoisted: bool = False
    ) -> Plaintext:
        """A plaintext polynomial with these real coefficients, shape (N,); else as `encode`."""
        rounded = np.rint(values * scale)
        largest = float(np.abs(rounded).max())
        room = sum(prime.bit_length() for prime in self.primes[:level]) - 1
        if not largest < 2.0**room:
            raise ValueError(
                f"values times the scale 2^{np.log2(scale):.1f} are as large as {largest:.3g}; the "
                f"primes of level {level} hold less than 2^{room}"
            )
        special = (len(self.primes) - 1,) if hoisted else ()
        return Plaintext(self.transformed(rounded, (*range(level), *special), largest), scale)

    def transformed(
        self, coefficients: Values, places: tuple[int, ...], largest: float = 2.0**50
    ) -> Values:
        """Whole numbers (N,) modulo the primes in these places, transformed, (places, N)."""
        base, times = self._base(places), passes(largest)
        result = np.empty((len(places), self.degree))

        def work(start: int, stop: int) -> None:
            transform_rows(
                result, coefficients, times, self._mixing, self._primes, base.places, start, stop
            )

        deal(work, len(places), TRANSFORM * result.size)
        return result

    def coefficients(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The real polynomial with these slot values, shape (N,)."""
        return self._encoder.coefficients(slots)

    def weights(self, plaintexts: Mapping[int, Plaintext]) -> Weights:
        """Plaintexts of one scale, by the places of the ciphertexts that they are for."""
        places, plains = zip(*sorted(plaintexts.items()), strict=True)
        polynomials = np.stack([plain.polynomial for plain in plains])
        return Weights(np.array(places), polynomials, plains[0].scale)

    def ciphertext(self, residues: Residues, scale: float) -> Ciphertext:
        """The ciphertext of the residues of its polynomials, shape (size, level, N)."""
        return Ciphertext(residues.astype(np.float64), scale)

    def residues(self, value: Ciphertext) -> Residues:
        """The polynomials of a ciphertext, shape (size, level, N)."""
        return value.polynomials.astype(np.uint64)

    def coefficient_residues(self, value: Ciphertext) -> Residues:
        """As :meth:`residues`, out of the number-theoretic domain."""
        polynomials = value.polynomials.copy()
        for polynomial in polynomials:
            for row, prime, table in zip(polynomial, self._primes, self._unmixing, strict=False):
                backward(row, table, prime)
        return polynomials.astype(np.uint64)

    def switching_key(self, parts: Parts, element: int = 1) -> SwitchingKey:
        """A key of its parts, which are modulo the primes of its level and the special one.

        That of a rotation is rotated backwards by its Galois element.
        """
        level, degree = len(parts), self.degree
        primes = (*self.primes[:level], self.primes[-1])
        key = np.empty((level, 2, level + 1, degree))
        backwards = self._order(pow(element, -1, 2 * degree))
        pair = np.empty((2, level + 1, degree))
        for part, (first, seed) in zip(key, parts, strict=True):
            pair[0] = first
            expand(seed, primes, degree, into=pair[1])
            for source, target in zip(pair, part, strict=True):
                elementwise.reorder(target, source, backwards, 0, level + 1)
        return SwitchingKey(key, level)

    def rotation_keys(self, keys: Mapping[int, Parts]) -> RotationKeys:
        """Keys of their parts, by Galois element."""
        return {element: self.switching_key(parts, element) for element, parts in keys.items()}
