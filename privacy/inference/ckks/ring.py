"""Rings of CKKS: encoding, residues in and out, and operations on ciphertexts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks import _key_switching as switching
from privacy.inference.ckks._processor import say_slow
from privacy.inference.ckks._threads import deal
from privacy.inference.ckks.encoding import encoder, passes, transform_rows
from privacy.inference.ckks.primes import choose_primes
from privacy.inference.ckks.seeded import expand
from privacy.inference.ckks.transforms import Values, backward, reversed_bits, tables

Residues = NDArray[np.uint64]
Parts = Sequence[tuple[Residues, bytes]]
"""Of a switching key: one ciphertext a data prime, its second polynomial as a seed."""
_TRANSFORM = 8
"""A value that is transformed takes as long as so many that are multiplied."""
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


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A rotated ciphertext before its division by the special prime, (2, level + 1, N)."""

    polynomials: Values
    scale: float


class SwitchingKey(NamedTuple):
    """A key for levels up to ``level``: (parts, 2, level + 1, N), the special prime's row last."""

    parts: Values
    level: int


RotationKeys = Mapping[int, SwitchingKey]
"""By Galois element; each key was rotated backwards."""


class _Base(NamedTuple):
    """The primes of some rows, by their places in the ring; of divisors, inverses."""

    places: NDArray[np.int64]
    primes: Values
    inverses: Values
    """Of the last prime modulo the others, centred."""
    last: Values
    """The last prime modulo the others, centred."""


class Ring:
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

    def __init__(self, degree: int, prime_bits: Sequence[int]) -> None:
        say_slow()
        self.primes = choose_primes(degree, prime_bits)
        self.degree = degree
        self.slots = degree // 2
        self.levels = max(1, len(self.primes) - 1)
        self._encoder = encoder(degree)
        self._primes = np.array(self.primes, dtype=np.float64)
        self._mixing, self._unmixing = _stacked(degree, self.primes)
        self._bases: dict[tuple[int, ...], _Base] = {}

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
        """The Galois element that rotates the slots left by ``step``, or conjugates them."""
        if step == CONJUGATE:
            return 2 * self.degree - 1
        return pow(3, step % self.slots, 2 * self.degree)

    def _base(self, places: tuple[int, ...]) -> _Base:
        if places not in self._bases:
            *others, last = (self.primes[place] for place in places)
            inverses = [_centred(pow(last, -1, prime), prime) for prime in others]
            remainders = [_centred(last % prime, prime) for prime in others]
            self._bases[places] = _Base(
                np.array(places, dtype=np.int64),
                self._primes[list(places)],
                np.array(inverses, dtype=np.float64),
                np.array(remainders, dtype=np.float64),
            )
        return self._bases[places]

    def _extended(self, level: int) -> _Base:
        """The primes of a level and the special one."""
        return self._base((*range(level), len(self.primes) - 1))

    # --- plaintexts ------------------------------------------------------------------------

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
        if isinstance(slots, np.ndarray):
            coefficients = self._encoder.coefficients(slots.astype(np.complex128, copy=False))
        else:
            coefficients = np.zeros(self.degree)
            coefficients[0] = slots
        return self.encode_coefficients(coefficients, scale, level, hoisted=hoisted)

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

        deal(work, len(places), _TRANSFORM * result.size)
        return result

    def coefficients(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The real polynomial with these slot values, shape (N,)."""
        return self._encoder.coefficients(slots)

    # --- residues in and out ---------------------------------------------------------------

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

    def _order(self, element: int) -> NDArray[np.uint32]:
        return _automorphism(self.degree, element)

    # --- sums and products -----------------------------------------------------------------

    def multiply_plain(self, value: Ciphertext, plain: Plaintext) -> Ciphertext:
        """The product with a plaintext."""
        result = np.empty_like(value.polynomials)
        primes = self._primes[: value.level]

        def work(start: int, stop: int) -> None:
            elementwise.multiply_plain(
                result, value.polynomials, plain.polynomial, primes, start, stop
            )

        deal(work, value.size * value.level, result.size // 2)
        return Ciphertext(result, value.scale * plain.scale)

    def add_multiplied_plain(self, total: Ciphertext, value: Ciphertext, plain: Plaintext) -> None:
        """Add the product with a plaintext, whose scale is that of ``total`` up to rounding."""
        self._widen(total, value.size)
        primes = self._primes[: value.level]

        def work(start: int, stop: int) -> None:
            elementwise.add_multiplied_plain(
                total.polynomials, value.polynomials, plain.polynomial, primes, start, stop
            )

        deal(work, value.size * value.level, value.polynomials.size // 2)

    def multiply(self, one: Ciphertext, other: Ciphertext) -> Ciphertext:
        """The product of two ciphertexts of size 2 and of one level, of size 3."""
        if one.size != 2 or other.size != 2:
            raise ValueError("a product takes ciphertexts of size 2; relinearise them")
        result = np.empty((3, one.level, self.degree))
        primes = self._primes[: one.level]

        def work(start: int, stop: int) -> None:
            elementwise.multiply(result, one.polynomials, other.polynomials, primes, start, stop)

        deal(work, one.level, result.size)
        return Ciphertext(result, one.scale * other.scale)

    def add(self, total: Ciphertext, other: Ciphertext) -> None:
        """Add a ciphertext of the same level, whose scale is the same up to rounding."""
        self._widen(total, other.size)
        primes = self._primes[: total.level]
        tasks = other.size * other.level
        elementwise.add(total.polynomials, other.polynomials, primes, 0, tasks)

    def _widen(self, total: Ciphertext, size: int) -> None:
        missing = size - total.size
        if missing > 0:
            zeros = np.zeros((missing, total.level, self.degree))
            total.polynomials = np.concatenate([total.polynomials, zeros])

    def add_plain(self, total: Ciphertext, plain: Plaintext) -> None:
        """Add a plaintext, whose scale is the same up to rounding."""
        total.scale = plain.scale
        primes = self._primes[: total.level]
        elementwise.add(total.polynomials, plain.polynomial[None], primes, 0, total.level)

    def rescale(self, value: Ciphertext) -> None:
        """Divide by the last prime that is left, and drop it."""
        scale = value.scale / self.primes[value.level - 1]
        base = self._base(tuple(range(value.level)))
        value.polynomials = self._divided(value.polynomials, base)
        value.scale = scale

    def rescaled_to(self, value: Ciphertext, scale: float) -> None:
        """Read a ciphertext at another scale."""
        value.scale = scale

    def at_level(self, value: Ciphertext, level: int) -> Ciphertext:
        """A copy with the primes above ``level`` dropped."""
        return Ciphertext(value.polynomials[:, :level].copy(), value.scale)

    def _divided(self, polynomials: Values, base: _Base) -> Values:
        """Polynomials (size, rows, N) divided by their last prime, which is dropped."""
        size, rows, degree = polynomials.shape
        remainders = np.empty((size, degree))
        last, places = polynomials[:, -1].copy(), np.full(size, base.places[-1])
        result = np.empty((size, rows - 1, degree))

        def prepare(start: int, stop: int) -> None:
            switching.centred_coefficients(
                remainders, last, self._unmixing, self._primes, places, start, stop
            )

        def divide(start: int, stop: int) -> None:
            switching.divide_by_last(
                result,
                polynomials,
                remainders,
                base.inverses,
                self._mixing,
                self._primes,
                base.places,
                start,
                stop,
            )

        deal(prepare, size, _TRANSFORM * remainders.size)
        deal(divide, size * (rows - 1), _TRANSFORM * result.size)
        return result

    def divided_by_special(self, polynomials: Values) -> Ciphertext:
        """The ciphertext of polynomials (size, level + 1, N), divided by the special prime."""
        base = self._extended(polynomials.shape[1] - 1)
        return Ciphertext(self._divided(polynomials, base), 1.0)

    # --- key switching ---------------------------------------------------------------------

    def relinearise(self, value: Ciphertext, key: SwitchingKey | None) -> None:
        """Bring a ciphertext of size 3 back to size 2; one of size 2 stays as it is."""
        if value.size == 2:
            return
        if key is None:
            raise ValueError("a product of ciphertexts needs a relinearisation key")
        base = self._extended(value.level)
        total = np.empty((2, value.level + 1, self.degree))

        def switch(row: int, digits: Values) -> None:
            self._multiply_key(total, row, digits, key)

        self._with_digits(value.polynomials[2], switch, 1)
        result = self._divided(total, base)
        elementwise.add(result, value.polynomials[:2], base.primes[:-1], 0, 2 * value.level)
        value.polynomials = result

    def rotate(self, value: Ciphertext, step: int, keys: RotationKeys) -> Ciphertext:
        """The slots rotated left by ``step``, or conjugated."""
        return self.rotate_many(value, (step,), keys)[0]

    def rotate_many(
        self, value: Ciphertext, steps: Iterable[int], keys: RotationKeys
    ) -> list[Ciphertext]:
        """The slots rotated by each step, for little more than half the price of as many rotations.

        They share the ciphertext's digits (Halevi and Shoup 2018, section 4.2).
        """
        elements = [self.galois_element(step) for step in steps]
        base, primes = self._extended(value.level), self._primes[: value.level]
        totals = [np.empty((2, value.level + 1, self.degree)) for _ in elements]

        def switch(row: int, digits: Values) -> None:
            for element, total in zip(elements, totals, strict=True):
                self._multiply_key(total, row, digits, keys[element])

        self._with_digits(value.polynomials[1], switch, len(elements))
        rotated = []
        for element, total in zip(elements, totals, strict=True):
            divided = self._divided(total, base)
            elementwise.add(divided, value.polynomials[:1], primes, 0, value.level)
            rotated.append(Ciphertext(self._reordered(divided, element), value.scale))
        return rotated

    def hoist(
        self, value: Ciphertext, steps: Iterable[int | None], keys: RotationKeys
    ) -> list[Hoisted]:
        """The slots rotated by each step, not at all by None, for :meth:`combine`.

        What is left of a rotation is the division by the special prime, which a sum of them needs
        once (Bossuat et al. 2021, section 4.3).
        """
        level, base = value.level, self._extended(value.level)
        elements = [None if step is None else self.galois_element(step) for step in steps]
        results = [np.empty((2, level + 1, self.degree)) for _ in elements]

        def switch(row: int, digits: Values) -> None:
            scratch = np.empty((2, 1, self.degree))
            for element, result in zip(elements, results, strict=True):
                if element is None:
                    result[:, row] = 0.0
                    self._add_times_special(result[:, row], value, row, base)
                else:
                    self._multiply_key(scratch, row, digits, keys[element])
                    self._add_times_special(scratch[:1, 0], value, row, base)
                    order = self._order(element)
                    for source, target in zip(scratch, result, strict=True):
                        elementwise.reorder(target[row : row + 1], source, order, 0, 1)

        self._with_digits(value.polynomials[1], switch, len(elements))
        return [Hoisted(result, value.scale) for result in results]

    def _add_times_special(self, rows: Values, value: Ciphertext, row: int, base: _Base) -> None:
        """Add the special prime times the first polynomials, in one row."""
        if row < value.level:
            for target, polynomial in zip(rows, value.polynomials, strict=False):
                switching.add_scaled(target, polynomial[row], base.last[row], base.primes[row])

    def combine(self, terms: Sequence[tuple[Hoisted, Plaintext | None]]) -> Ciphertext:
        """The sum of rotations, each times its plaintext if there is one, divided once.

        All must have the same level, and the same scale up to rounding; plaintexts are encoded
        with ``hoisted``.
        """
        first, plain = terms[0]
        rows = first.polynomials.shape[1]
        base = self._extended(rows - 1)
        total = np.empty_like(first.polynomials)

        def work(start: int, stop: int) -> None:
            total[:, start:stop] = 0.0
            for row in range(start, stop):
                primes = base.primes[row : row + 1]
                for term, factor in terms:
                    for index in range(2):
                        sums = total[index, row][None, None]
                        addend = term.polynomials[index, row][None, None]
                        if factor is None:
                            elementwise.add(sums, addend, primes, 0, 1)
                        else:
                            elementwise.add_multiplied_plain(
                                sums, addend, factor.polynomial[row][None], primes, 0, 1
                            )

        deal(work, rows, len(terms) * total.size)
        scale = first.scale if plain is None else first.scale * plain.scale
        return Ciphertext(self._divided(total, base), scale)

    def _with_digits(
        self, polynomial: Values, switch: Callable[[int, Values], None], keys: int
    ) -> None:
        """Call ``switch`` for each row with a polynomial's centred digits there, (level, N).

        ``polynomial`` is (level, N), and the rows are those of the level and of the special prime.
        Digits of one row at a time stay in the processor's cache.
        """
        level, degree = polynomial.shape
        base = self._extended(level)
        coefficients = np.empty_like(polynomial)

        def prepare(start: int, stop: int) -> None:
            switching.centred_coefficients(
                coefficients, polynomial, self._unmixing, self._primes, base.places, start, stop
            )

        def work(start: int, stop: int) -> None:
            digits = np.empty_like(polynomial)
            for row in range(start, stop):
                table, prime = self._mixing[base.places[row]], base.primes[row]
                switching.extend(digits, coefficients, polynomial, row, table, prime)
                switch(row, digits)

        deal(prepare, level, _TRANSFORM * polynomial.size)
        deal(work, level + 1, (_TRANSFORM + 2 * keys) * level * (level + 1) * degree)

    def _multiply_key(self, total: Values, row: int, digits: Values, key: SwitchingKey) -> None:
        """Digits (level, N) times a key, in one row of ``total``, or in its only one."""
        level = len(digits)
        if key.level < level:
            raise ValueError(f"the key is for levels up to {key.level}, the ciphertext at {level}")
        prime = self._primes[row if row < level else -1]
        place = 0 if total.shape[1] == 1 else row
        key_row = row if row < level else key.level
        switching.multiply_key(total, place, digits, key.parts, key_row, prime)

    def _reordered(self, polynomials: Values, element: int) -> Values:
        """Polynomials (size, rows, N) under an automorphism."""
        result = np.empty_like(polynomials)
        order, degree = self._order(element), self.degree
        flat, target = polynomials.reshape(-1, degree), result.reshape(-1, degree)

        def work(start: int, stop: int) -> None:
            elementwise.reorder(target, flat, order, start, stop)

        deal(work, len(flat), result.size)
        return result


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
