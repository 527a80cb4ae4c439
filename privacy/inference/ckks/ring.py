"""Rings of CKKS: rotations and relinearisation, with the keys for them, on all other operations."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks import _key_switching as switching
from privacy.inference.ckks._threads import deal
from privacy.inference.ckks.ciphertexts import (
    Ciphertext,
    Ciphertexts,
    Extended,
    Hoisted,
    RotationKeys,
    SwitchingKey,
    Weights,
)
from privacy.inference.ckks.parameters import TRANSFORM
from privacy.inference.ckks.products import Products, check_rows
from privacy.inference.ckks.transforms import Values


class Ring(Products):
    """Parameters of CKKS at 128-bit security, and the arithmetic under them.

    Ciphertexts are made of residues in the number-theoretic domain and become residues again.
    Primes, order and results are SEAL's, but for key switching, which takes centred digits: its
    noise is smaller.

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

    # --- between ciphertexts and what is not divided yet -------------------------------------

    def extended(self, value: Ciphertext | Extended) -> Extended:
        """A ciphertext of size 2 times the special prime; what is extended stays as it is."""
        if isinstance(value, Extended):
            return value
        level, base = value.level, self._with_special(value.level)
        result = np.zeros((2, level + 1, self.degree))

        def work(start: int, stop: int) -> None:
            elementwise.scale_rows(
                result, value.polynomials, base.last, base.primes[:-1], start, stop
            )

        deal(work, 2 * level, result.size // 2)
        return Extended(result, value.scale, value.polynomials[1])

    def divided(self, value: Ciphertext | Extended) -> Ciphertext:
        """What is left when it is divided by the special prime; a ciphertext stays as it is."""
        if isinstance(value, Ciphertext):
            return value
        polynomials = self._divided_by_last(value.polynomials, self._with_special(value.level))
        return Ciphertext(polynomials, value.scale)

    def add_extended(self, total: Extended, other: Extended) -> Extended:
        """The sum, in the memory of ``total``; both scales are the same up to rounding."""
        check_rows(total.level, other.level)
        primes = self._with_special(total.level).primes
        elementwise.add(total.polynomials, other.polynomials, primes, 0, 2 * len(primes))
        return Extended(total.polynomials, total.scale)

    # --- key switching -----------------------------------------------------------------------

    def relinearise(self, value: Ciphertext, key: SwitchingKey | None) -> None:
        """Bring a ciphertext of size 3 back to size 2; one of size 2 stays as it is."""
        if value.size == 3:
            value.polynomials = self.divided(self.relinearised(value, key)).polynomials

    def relinearised(self, value: Ciphertext, key: SwitchingKey | None) -> Extended:
        """A ciphertext of size 3 at size 2, for sums that are divided once."""
        if key is None:
            raise ValueError("a product of ciphertexts needs a relinearisation key")
        pair = Ciphertext(value.polynomials[:2], value.scale)
        total = self.extended(pair).polynomials

        def switch(row: int, digits: Values, _: Values) -> None:
            self._multiply_key(total, row, digits, key)

        self._with_digits(value.polynomials[2], switch, 1)
        return Extended(total, value.scale)

    def rotate_many(
        self, value: Ciphertext, steps: Iterable[int | None], keys: RotationKeys
    ) -> Ciphertexts:
        """The slots rotated left by each step, not at all by None.

        They share the ciphertext's digits (Halevi and Shoup 2018, section 4.2).
        """
        steps = tuple(steps)
        result = np.empty((len(steps), *value.polynomials.shape))
        turned = [step for step in steps if step is not None]
        rotated = iter(self.hoist(self.extended(value), turned, keys).polynomials)
        for target, step in zip(result, steps, strict=True):
            if step is None:
                target[:] = value.polynomials
            else:
                target[:] = self._divided_by_last(next(rotated), self._with_special(value.level))
        return Ciphertexts(result, value.scale)

    def hoist(self, total: Extended, steps: Iterable[int | None], keys: RotationKeys) -> Hoisted:
        """The slots rotated by each step, not at all by None, for sums that are divided once."""
        elements = [None if step is None else self.galois_element(step) for step in steps]
        results = np.empty((len(elements), *total.polynomials.shape))
        turned = [
            (element, result)
            for element, result in zip(elements, results, strict=True)
            if element is not None
        ]
        for element, result in zip(elements, results, strict=True):
            if element is None:
                result[:] = total.polynomials
        if turned:
            self._rotate(total, turned, keys, adding=False)
        return Hoisted(results, total.scale)

    def add_rotations(self, total: Extended, steps: Sequence[int], keys: RotationKeys) -> Extended:
        """The sum of a ciphertext and its rotations by each step."""
        result = total.polynomials.copy()
        turned = [(self.galois_element(step), result) for step in steps]
        self._rotate(total, turned, keys, adding=True)
        return Extended(result, total.scale)

    def rotate(self, total: Extended, step: int, keys: RotationKeys) -> Extended:
        """The slots rotated left by a step, or conjugated."""
        return Extended(self.hoist(total, (step,), keys).polynomials[0], total.scale)

    def combine(self, rotations: Hoisted, weights: Weights) -> Extended:
        """The sum of rotations, each times its plaintext, encoded with ``hoisted``."""
        values = rotations.polynomials
        total = self._weighted(values, weights, self._with_special(values.shape[2] - 1).primes)
        return Extended(total, rotations.scale * weights.scale)

    def _rotate(
        self,
        total: Extended,
        turned: Sequence[tuple[int, Values]],
        keys: RotationKeys,
        *,
        adding: bool,
    ) -> None:
        """A ciphertext under each automorphism, put into its array or added to what is there."""
        second = total.second
        if second is None:
            (second,) = self._divided_by_last(
                total.polynomials[1:], self._with_special(total.level)
            )
        level = total.level
        orders = [self._order(element) for element, _ in turned]

        def switch(row: int, digits: Values, pair: Values) -> None:
            for (element, result), order in zip(turned, orders, strict=True):
                key, key_row, prime = self._key_row(keys[element], row, level)
                switching.rotate_row(
                    result,
                    total.polynomials,
                    row,
                    digits,
                    pair,
                    self._counting[:level],
                    key,
                    key_row,
                    order,
                    adding,
                    prime,
                )

        self._with_digits(second, switch, len(turned))

    def _with_digits(
        self, polynomial: Values, switch: Callable[[int, Values, Values], None], keys: int
    ) -> None:
        """Call ``switch`` for each row with a polynomial's centred digits there, (level, N).

        It gets room to work in too, (2, 1, N).

        ``polynomial`` is (level, N), and the rows are those of the level and of the special prime.
        Digits of one row at a time stay in the processor's cache.
        """
        level, degree = polynomial.shape
        base = self._with_special(level)
        coefficients = np.empty_like(polynomial)

        def prepare(start: int, stop: int) -> None:
            switching.centred_coefficients(
                coefficients, polynomial, self._unmixing, self._primes, base.places, start, stop
            )

        def work(start: int, stop: int) -> None:
            # Allocated once: fresh pages cost as much as the products.
            digits, pair = np.empty_like(polynomial), np.empty((2, 1, degree))
            for row in range(start, stop):
                table, prime = self._mixing[base.places[row]], base.primes[row]
                switching.extend(digits, coefficients, polynomial, row, table, prime)
                switch(row, digits, pair)

        deal(prepare, level, TRANSFORM * polynomial.size)
        deal(work, level + 1, (TRANSFORM + 2 * keys) * level * (level + 1) * degree)

    def _multiply_key(self, total: Values, row: int, digits: Values, key: SwitchingKey) -> None:
        """Add digits (level, N) times a key, in one row of ``total``."""
        level = len(digits)
        parts, key_row, prime = self._key_row(key, row, level)
        counting = self._counting[:level]
        switching.multiply_key(total, row, digits, counting, parts, key_row, 2, prime)

    def _key_row(self, key: SwitchingKey, row: int, level: int) -> tuple[Values, int, float]:
        """A key's parts, which of their rows is for one of a level's rows, and its prime."""
        if key.level < level:
            raise ValueError(f"the key is for levels up to {key.level}, the ciphertext at {level}")
        special = row == level
        return key.parts, key.level if special else row, self._primes[-1 if special else row]
