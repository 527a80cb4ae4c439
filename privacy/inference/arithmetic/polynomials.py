"""Activations as few multiplications of ciphertexts, at the least depth.

An activation arrives here monic and depressed: y^d + a_(d-2)·y^(d-2) + ... + a_1·y, without a
constant; what is missing was folded into the affine maps around it (substituting y - c for x
removes the second-highest power). The formulas are written once, over an *algebra*: ciphertexts
when a query is answered, scales when a plan is made, values with derivatives when its error is
predicted.

====== ======================================================== ===== ========
degree formula, u = y²                                          depth products
====== ======================================================== ===== ========
2      u                                                        1     1
3      y·(u + a1)                                               2     2
4      (u + a2/2)² + a1·y                                       2     2
5      y·(w + a1 - a3²/4) + a2·u,  w = (u + a3/2)²              3     3
6      r·(r² + a2 - a4²/3) + y·(a3·u + a1),  r = u + a4/3       3     4
7      (y·u)·(w + a3 - a5²/4) + a4·w + (a2 - a4·a5)·u + a1·y,   3     4
       w = (u + a5/2)²
====== ======================================================== ===== ========

Products by constants cost no level: their scale is chosen so that they meet what they are added
to. Constants left over by the completed squares (in degrees 4 and 7) are in :func:`offset`.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from privacy.inference.compiler.lowering import Activation, Vector

DEPTH = {2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3}
PRODUCTS = {2: 1, 3: 2, 4: 2, 5: 3, 6: 4, 7: 4}

V = TypeVar("V")


class Algebra(Protocol[V]):
    """What a formula is made of. Values carry a scale; products must be narrowed before use."""

    def product(self, one: V, other: V) -> V:
        """The product of two values; its scale is the product of theirs."""

    def narrow(self, value: V) -> V:
        """A product made usable: relinearised, rescaled, one level lower."""

    def relinearise(self, value: V) -> V:
        """A product made usable at the scale that it has."""

    def plus(self, value: V, constant: float) -> V:
        """``value`` + constant."""

    def times(self, value: V, constant: float, *, meet: V) -> V:
        """``value``·constant at the scale of ``meet``."""

    def times_for(self, value: V, constant: float, *, partner: V, meet: V) -> V:
        """``value``·constant, narrowed, at a scale whose product with ``partner`` meets another."""

    def add(self, one: V, other: V) -> V:
        """The sum of two values of one scale."""


def offset(activation: Activation) -> float:
    """What :func:`evaluate` returns too much, everywhere; the next affine map takes it off."""
    a = (*activation.coefficients, *[0.0] * 8)
    if activation.degree == 4:
        return a[2] ** 2 / 4
    if activation.degree == 6:
        delta = a[4] / 3
        return delta**3 + (a[2] - a[4] ** 2 / 3) * delta
    if activation.degree == 7:
        return a[4] * a[5] ** 2 / 4
    return 0.0


def evaluate(algebra: Algebra[V], activation: Activation, y: V, *, rescaled: bool = True) -> V:
    """Evaluate a monic, depressed activation, up to :func:`offset`.

    ``rescaled`` is false for a square that keeps its scale; no other activation can.
    """
    degree, a = activation.degree, (*activation.coefficients, *[0.0] * 8)
    if not rescaled:
        return algebra.relinearise(algebra.product(y, y))
    u = algebra.narrow(algebra.product(y, y))
    if degree == 2:
        return u
    if degree == 3:
        return algebra.narrow(algebra.product(y, _plus(algebra, u, a[1])))
    if degree == 4:
        r = _plus(algebra, u, a[2] / 2)
        return algebra.narrow(_with_terms(algebra, algebra.product(r, r), [(y, a[1])]))
    if degree == 5:
        r = _plus(algebra, u, a[3] / 2)
        w = algebra.narrow(algebra.product(r, r))
        total = algebra.product(y, _plus(algebra, w, a[1] - a[3] ** 2 / 4))
        return algebra.narrow(_with_terms(algebra, total, [(u, a[2])]))
    if degree == 6:
        r = _plus(algebra, u, a[4] / 3)
        w = algebra.narrow(algebra.product(r, r))
        total = algebra.product(r, _plus(algebra, w, a[2] - a[4] ** 2 / 3))
        if a[3] != 0.0:
            odd = algebra.times_for(u, a[3], partner=y, meet=total)
            total = algebra.add(total, algebra.product(y, _plus(algebra, odd, a[1])))
        else:
            total = _with_terms(algebra, total, [(y, a[1])])
        return algebra.narrow(total)
    r = _plus(algebra, u, a[5] / 2)
    w = algebra.narrow(algebra.product(r, r))
    cube = algebra.narrow(algebra.product(y, u))
    total = algebra.product(cube, _plus(algebra, w, a[3] - a[5] ** 2 / 4))
    terms = [(w, a[4]), (u, a[2] - a[4] * a[5]), (y, a[1])]
    return algebra.narrow(_with_terms(algebra, total, terms))


def _plus(algebra: Algebra[V], value: V, constant: float) -> V:
    return algebra.plus(value, constant) if constant != 0.0 else value


def _with_terms(algebra: Algebra[V], total: V, terms: list[tuple[V, float]]) -> V:
    for value, constant in terms:
        if constant != 0.0:
            total = algebra.add(total, algebra.times(value, constant, meet=total))
    return total


@dataclass(frozen=True)
class Scaled:
    """A value of which only scale and level are known."""

    scale: float
    level: int


@dataclass(frozen=True)
class Narrowing:
    """A rescaling: the level and scale before it, and the scale after it."""

    level: int
    before: float
    after: float


@dataclass
class ScaleAlgebra:
    """Follows scales and levels; primes by level, the one that a rescaling at it drops."""

    primes: dict[int, float]
    narrowings: list[Narrowing] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)

    def product(self, one: Scaled, other: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return Scaled(one.scale * other.scale, min(one.level, other.level))

    def narrow(self, value: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        after = value.scale / self.primes[value.level]
        self.narrowings.append(Narrowing(value.level, value.scale, after))
        return Scaled(after, value.level - 1)

    def relinearise(self, value: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return value

    def plus(self, value: Scaled, constant: float) -> Scaled:
        """See :class:`Algebra`."""
        return value

    def times(self, value: Scaled, constant: float, *, meet: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        self.constants.append(meet.scale / value.scale)
        return Scaled(meet.scale, min(value.level, meet.level))

    def times_for(self, value: Scaled, constant: float, *, partner: Scaled, meet: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        wanted = meet.scale / partner.scale * self.primes[value.level]
        self.constants.append(wanted / value.scale)
        return self.narrow(Scaled(wanted, value.level))

    def add(self, one: Scaled, other: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return Scaled(one.scale, min(one.level, other.level))


@dataclass(frozen=True)
class Differentiated:
    """A value, and its derivatives by what carries noise, elementwise."""

    value: Vector
    by: dict[str, Vector]


@dataclass
class DerivativeAlgebra:
    """Follows values and their derivatives by the activation's input, narrowings and constants.

    With ``absolute``, values are bounds of magnitudes and constants count by their size, so that
    the derivatives are bounds too.
    """

    absolute: bool
    narrowed: int = 0
    multiplied: int = 0

    def start(self, value: Vector) -> Differentiated:
        """The activation's input."""
        return Differentiated(value, {"y": np.ones_like(value)})

    def _constant(self, constant: float) -> float:
        return abs(constant) if self.absolute else constant

    def product(self, one: Differentiated, other: Differentiated) -> Differentiated:
        """See :class:`Algebra`."""
        by = {
            key: one.by.get(key, 0.0) * other.value + other.by.get(key, 0.0) * one.value
            for key in (*one.by, *(key for key in other.by if key not in one.by))
        }
        return Differentiated(one.value * other.value, by)

    def narrow(self, value: Differentiated) -> Differentiated:
        """See :class:`Algebra`."""
        name = f"narrowing {self.narrowed}"
        self.narrowed += 1
        return Differentiated(value.value, {**value.by, name: np.ones_like(value.value)})

    def relinearise(self, value: Differentiated) -> Differentiated:
        """See :class:`Algebra`."""
        return value

    def plus(self, value: Differentiated, constant: float) -> Differentiated:
        """See :class:`Algebra`."""
        return Differentiated(value.value + self._constant(constant), value.by)

    def times(
        self, value: Differentiated, constant: float, *, meet: Differentiated
    ) -> Differentiated:
        """See :class:`Algebra`."""
        by = {key: part * self._constant(constant) for key, part in value.by.items()}
        by[f"constant {self.multiplied}"] = value.value
        self.multiplied += 1
        return Differentiated(value.value * self._constant(constant), by)

    def times_for(
        self,
        value: Differentiated,
        constant: float,
        *,
        partner: Differentiated,
        meet: Differentiated,
    ) -> Differentiated:
        """See :class:`Algebra`."""
        return self.narrow(self.times(value, constant, meet=meet))

    def add(self, one: Differentiated, other: Differentiated) -> Differentiated:
        """See :class:`Algebra`."""
        keys = (*one.by, *(key for key in other.by if key not in one.by))
        zero = np.zeros_like(one.value)
        by = {key: one.by.get(key, zero) + other.by.get(key, zero) for key in keys}
        return Differentiated(one.value + other.value, by)
