"""Arithmetic of elements: sums, constants, products and powers, written out or as layers.

A value that is a polynomial of one other, with the same coefficients for every element, stays one
until something else needs it: ``x + 0.5 * x**2`` is a single activation. A product of two values is
a difference of two squares, ((a + b)² - (a - b)²)/4.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import polynomial

from privacy.inference.arithmetic.network import Activation, Vector
from privacy.inference.compiler.activations import MAX_DEGREE
from privacy.inference.compiler.lowering.matrices import identity, scaling
from privacy.inference.compiler.lowering.values import Value, activated, affine
from privacy.inference.errors import UnsupportedLayerError

_NEGLIGIBLE = 2.0**-30
"""Largest part of a power in the polynomial at which the power is left out."""


@dataclass
class Elementwise:
    """A polynomial of each element of a value, c₀ + c₁x + ...; its name is the last layer's."""

    base: Value
    coefficients: tuple[float, ...] = (0.0, 1.0)
    name: str = ""
    _made: Value | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return self.base.shape

    def value(self) -> Value:
        """It itself; made once."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Value:
        coefficients = _relevant(self)
        if len(coefficients) > 2:
            return activated(self.base, Activation(coefficients, self.name))
        offset, factor = (*coefficients, 0.0)[:2]
        if (offset, factor) == (0.0, 1.0):
            return self.base
        size = self.base.size
        part = (self.base, scaling(np.full(size, factor)))
        return affine(self.shape, self.name or "scaling", [part], np.full(size, offset))


def _relevant(value: Elementwise) -> tuple[float, ...]:
    """The coefficients, without highest powers that contribute nothing over the range."""
    coefficients = np.array(value.coefficients)
    powers = np.arange(len(coefficients))
    most = float(value.base.span.magnitude.max())
    # Squared in units of the largest, so that nothing overflows.
    largest = float(np.abs(value.base.points).max()) or 1.0
    usual = largest * math.sqrt(float(np.mean((value.base.points / largest) ** 2)))
    with np.errstate(all="ignore"):
        # The largest value of each power, beside the usual one of the largest part.
        at_most = np.where(coefficients == 0.0, 0.0, np.abs(coefficients) * most**powers)
        least = _NEGLIGIBLE * (np.abs(coefficients) * usual**powers).max()
    there = np.flatnonzero(~(at_most <= least))
    relevant = coefficients[: max(2, int(there.max(initial=0)) + 1)]
    if len(relevant) > MAX_DEGREE + 1:
        raise UnsupportedLayerError(
            f"layer {value.name} has {len(relevant)} coefficients; give 2 to {MAX_DEGREE + 1} "
            f"(degree 1 to {MAX_DEGREE})"
        )
    return tuple(relevant.tolist())


def linear_of(value: Elementwise, factor: float, offset: float, name: str) -> Elementwise:
    """A value times a number, plus a number."""
    coefficients = [factor * c for c in value.coefficients]
    coefficients[0] += offset
    return Elementwise(value.base, tuple(coefficients), name)


def total(one: Elementwise, other: Elementwise, sign: float, name: str) -> Elementwise:
    """The sum of two values of one shape, the other times a sign."""
    if one.base is other.base:
        terms = polynomial.polyadd(one.coefficients, sign * np.array(other.coefficients))
        return Elementwise(one.base, tuple(terms.tolist()), name)
    first, second = one.value(), other.value()
    parts = [(first, identity(first.size)), (second, scaling(np.full(second.size, sign)))]
    return Elementwise(affine(one.shape, name, parts, np.zeros(first.size)))


def shifted(value: Elementwise, constant: Vector, name: str) -> Elementwise:
    """A value plus a constant for each element."""
    made = value.value()
    return Elementwise(affine(made.shape, name, [(made, identity(made.size))], constant))


def scaled(value: Elementwise, factors: Vector, name: str) -> Elementwise:
    """A value times a constant for each element."""
    made = value.value()
    return Elementwise(affine(made.shape, name, [(made, scaling(factors))], np.zeros(made.size)))


def power(value: Elementwise, exponent: float, name: str) -> Elementwise:
    """A value to a whole power."""
    if exponent not in range(1, MAX_DEGREE + 1):
        raise UnsupportedLayerError(
            f"layer {name} takes the power {exponent:g}; give a whole one from 1 to {MAX_DEGREE}"
        )
    degree = (len(value.coefficients) - 1) * int(exponent)
    if degree <= MAX_DEGREE:
        terms = polynomial.polypow(value.coefficients, int(exponent))
        return Elementwise(value.base, tuple(terms.tolist()), name)
    return Elementwise(value.value(), (*[0.0] * int(exponent), 1.0), name)


def product(one: Elementwise, other: Elementwise, name: str) -> Elementwise:
    """Two values of one shape, element by element."""
    degree = len(one.coefficients) + len(other.coefficients) - 2
    if one.base is other.base and degree <= MAX_DEGREE:
        terms = polynomial.polymul(one.coefficients, other.coefficients)
        return Elementwise(one.base, tuple(terms.tolist()), name)
    first, second = one.value(), other.value()
    if first is second:
        return power(Elementwise(first), 2, name)
    # Factors of one size, so that their sum and their difference are of one size too.
    sizes = [float(v.span.magnitude.max()) for v in (first, second)]
    ratio = math.sqrt(sizes[1] / sizes[0]) if min(sizes) > 0 and math.isfinite(max(sizes)) else 1.0
    size = first.size
    squares = []
    for sign in (1.0, -1.0):
        parts = [
            (first, scaling(np.full(size, ratio))),
            (second, scaling(np.full(size, sign / ratio))),
        ]
        sums = affine(one.shape, name, parts, np.zeros(size))
        squares.append(activated(sums, Activation((0.0, 0.0, 1.0), name)))
    parts = [
        (squares[0], scaling(np.full(size, 0.25))),
        (squares[1], scaling(np.full(size, -0.25))),
    ]
    return Elementwise(affine(one.shape, name, parts, np.zeros(size)))
