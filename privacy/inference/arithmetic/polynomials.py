"""Activations as few multiplications of ciphertexts, at the least depth.

An activation arrives here monic and depressed: y^d + a_(d-2)·y^(d-2) + ... + a_1·y, without a
constant; the rest was folded into the affine maps around it (substituting y - c for x removes the
second-highest power). The formulas are written once, over an *algebra*: ciphertexts
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

Products by constants take no level: their scale is chosen to meet that of the sum. Completed
squares leave constants over (:func:`constant_left_over`).
"""

import math
from typing import Protocol, TypeVar

from privacy.inference.arithmetic.network import Activation
from privacy.inference.ckks import Ciphertext, Ring
from privacy.inference.public_keys import Keys

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


def constant_left_over(activation: Activation) -> float:
    """Constant by which :func:`evaluate` exceeds the polynomial; the next affine map removes it."""
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
    """Evaluate a monic, depressed activation, up to :func:`constant_left_over`.

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


def activate(
    ring: Ring,
    keys: Keys,
    activation: Activation,
    value: Ciphertext,
    *,
    rescaled: bool,
    large_at: int = 0,
) -> Ciphertext:
    """:func:`evaluate` on a ciphertext.

    A product that ends at the level ``large_at`` is left without relinearisation (0: none is).
    """
    algebra = _CiphertextAlgebra(ring, keys, large_at)
    return evaluate(algebra, activation, value, rescaled=rescaled)


class _CiphertextAlgebra:
    def __init__(self, ring: Ring, keys: Keys, large_at: int) -> None:
        self._ring = ring
        self._keys = keys.relinearisation
        self._large_at = large_at

    def product(self, one: Ciphertext, other: Ciphertext) -> Ciphertext:
        level = min(one.level, other.level)
        if one is other:
            return self._ring.multiply(one, one)
        return self._ring.multiply(self._at(one, level), self._at(other, level))

    def _at(self, value: Ciphertext, level: int) -> Ciphertext:
        return value if value.level == level else self._ring.at_level(value, level)

    def narrow(self, value: Ciphertext) -> Ciphertext:
        if value.level - 1 != self._large_at:
            self._ring.relinearise(value, self._keys)
        self._ring.rescale(value)
        return value

    def relinearise(self, value: Ciphertext) -> Ciphertext:
        if value.level != self._large_at:
            self._ring.relinearise(value, self._keys)
        return value

    def plus(self, value: Ciphertext, constant: float) -> Ciphertext:
        result = self._ring.at_level(value, value.level)
        self._ring.add_plain(result, self._ring.encode_addend(constant, value.scale, value.level))
        return result

    def times(self, value: Ciphertext, constant: float, *, meet: Ciphertext) -> Ciphertext:
        return self._times(value, constant, meet.scale, min(value.level, meet.level))

    def times_for(
        self, value: Ciphertext, constant: float, *, partner: Ciphertext, meet: Ciphertext
    ) -> Ciphertext:
        prime = self._ring.primes[value.level - 1]
        scale = meet.scale / partner.scale * prime
        return self.narrow(self._times(value, constant, scale, value.level))

    def _times(self, value: Ciphertext, constant: float, scale: float, level: int) -> Ciphertext:
        # SEAL refuses a product with nothing: a constant that rounds to it counts one unit of its
        # scale, half a unit more than rounding may be off.
        least = value.scale / scale
        if abs(constant) < least:
            constant = math.copysign(least, constant)
        plain = self._ring.encode(constant, scale / value.scale, level)
        result = self._ring.multiply_plain(self._at(value, level), plain)
        self._ring.rescaled_to(result, scale)
        return result

    def add(self, one: Ciphertext, other: Ciphertext) -> Ciphertext:
        level = min(one.level, other.level)
        result = self._ring.at_level(one, level)
        self._ring.add(result, self._at(other, level))
        return result
