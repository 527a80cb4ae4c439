"""Sums, products and rescaling of ciphertexts."""

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks import _key_switching as switching
from privacy.inference.ckks._threads import deal
from privacy.inference.ckks.ciphertexts import Ciphertext, Ciphertexts, Plaintext, Weights
from privacy.inference.ckks.conversions import Conversions
from privacy.inference.ckks.parameters import TRANSFORM, Base
from privacy.inference.ckks.transforms import Values


class Products(Conversions):
    """Operations that need no key."""

    def multiply_plain(self, value: Ciphertext, plain: Plaintext) -> Ciphertext:
        """The product with a plaintext."""
        weights = Weights(elementwise.ONE, plain.polynomial[None], plain.scale)
        return self.weighted_sum(value.alone(), weights)

    def weighted_sum(self, values: Ciphertexts, weights: Weights) -> Ciphertext:
        """The sum of ciphertexts, each times its plaintext."""
        total = self._weighted(values.polynomials, weights, self._primes[: values.level])
        return Ciphertext(total, values.scale * weights.scale)

    def _weighted(self, values: Values, weights: Weights, primes: Values) -> Values:
        _, size, rows, degree = values.shape
        places, plains, _ = weights
        check_rows(rows, plains.shape[1])
        total = np.empty((size, rows, degree))

        def work(start: int, stop: int) -> None:
            elementwise.weighted_sum(total, values, places, plains, 0, primes, start, stop)

        deal(work, size * rows, places.size * total.size // 2)
        return total

    def multiply(self, one: Ciphertext, other: Ciphertext) -> Ciphertext:
        """The product of two ciphertexts of size 2 and of one level, of size 3."""
        return self.sum_of_products(one.alone(), other.alone(), elementwise.ONE)

    def sum_of_products(
        self, ones: Ciphertexts, others: Ciphertexts, places: NDArray[np.int64]
    ) -> Ciphertext:
        """The sum of ``ones[places[t]]`` times ``others[t]``, of size 3."""
        if ones.size != 2 or others.size != 2:
            raise ValueError("a product takes ciphertexts of size 2; relinearise them")
        check_rows(ones.level, others.level)
        result = np.empty((3, ones.level, self.degree))
        primes = self._primes[: ones.level]

        def work(start: int, stop: int) -> None:
            elementwise.sum_of_products(
                result, ones.polynomials, places, others.polynomials, primes, start, stop
            )

        deal(work, ones.level, places.size * result.size)
        return Ciphertext(result, ones.scale * others.scale)

    def add(self, total: Ciphertext, other: Ciphertext) -> None:
        """Add a ciphertext of the same level, whose scale is the same up to rounding."""
        check_rows(total.level, other.level)
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
        check_rows(total.level, len(plain.polynomial))
        total.scale = plain.scale
        primes = self._primes[: total.level]
        elementwise.add(total.polynomials, plain.polynomial[None], primes, 0, total.level)

    def rescale(self, value: Ciphertext) -> None:
        """Divide by the last prime that is left, and drop it."""
        if value.level < 2:
            raise ValueError("a ciphertext with one prime left cannot be rescaled")
        scale = value.scale / self.primes[value.level - 1]
        base = self._base(tuple(range(value.level)))
        value.polynomials = self._divided_by_last(value.polynomials, base)
        value.scale = scale

    def rescaled_to(self, value: Ciphertext, scale: float) -> None:
        """Read a ciphertext at another scale."""
        value.scale = scale

    def at_level(self, value: Ciphertext, level: int) -> Ciphertext:
        """A copy with the primes above ``level`` dropped."""
        if not 1 <= level <= value.level:
            raise ValueError(f"a ciphertext at level {value.level} cannot be brought to {level}")
        return Ciphertext(value.polynomials[:, :level].copy(), value.scale)

    def _divided_by_last(self, polynomials: Values, base: Base) -> Values:
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

        deal(prepare, size, TRANSFORM * remainders.size)
        deal(divide, size * (rows - 1), TRANSFORM * result.size)
        return result


def check_rows(one: int, other: int) -> None:
    """Kernels do not look where arrays end: what they work on together has as many rows."""
    if one != other:
        raise ValueError(f"one operand has the primes of {one} rows, the other of {other}")
