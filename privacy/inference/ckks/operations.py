"""The algebra of activations on ciphertexts."""

import math
from dataclasses import dataclass
from typing import Any

from privacy.inference.ckks.ring import Ring, seal


@dataclass(frozen=True)
class Cipher:
    """A ciphertext with the scale and level that the plan gives it."""

    ciphertext: Any
    scale: float
    level: int


class CipherAlgebra:
    """Follows :class:`privacy.inference.arithmetic.polynomials.Algebra` on ciphertexts.

    Parameters
    ----------
    ring : Ring
    relin : SEAL relinearisation keys
    leave_at : int
        A product that ends at this level is left without relinearisation (0: none is).
    """

    def __init__(self, ring: Ring, relin: Any, *, leave_at: int) -> None:
        self._ring = ring
        self._relin = relin
        self._leave_at = leave_at

    def _at(self, value: Cipher, level: int) -> Any:
        """A copy of the ciphertext, with the primes above ``level`` dropped."""
        copy = seal.Ciphertext()
        self._ring.evaluator.mod_switch_to(value.ciphertext, self._ring.parms_id(level), copy)
        copy.scale = value.scale
        return copy

    def product(self, one: Cipher, other: Cipher) -> Cipher:
        """The product of two values, of size 3."""
        level = min(one.level, other.level)
        result = self._at(one, level)
        if one is other:
            self._ring.evaluator.square_inplace(result)
        else:
            self._ring.evaluator.multiply_inplace(result, self._at(other, level))
        return Cipher(result, one.scale * other.scale, level)

    def narrow(self, value: Cipher) -> Cipher:
        """Relinearise where it is due, and rescale."""
        evaluator, result = self._ring.evaluator, value.ciphertext
        if result.size() > 2 and value.level - 1 != self._leave_at:
            evaluator.relinearize_inplace(result, self._relin)
        evaluator.rescale_to_next_inplace(result)
        scale = value.scale / self._ring.primes[value.level - 1]
        result.scale = scale
        return Cipher(result, scale, value.level - 1)

    def relinearise(self, value: Cipher) -> Cipher:
        """Relinearise where it is due."""
        if value.level != self._leave_at:
            self._ring.evaluator.relinearize_inplace(value.ciphertext, self._relin)
        return value

    def plus(self, value: Cipher, constant: float) -> Cipher:
        """``value`` + constant."""
        plain = self._ring.encode_constant(constant, value.scale, value.level)
        result = seal.Ciphertext()
        self._ring.evaluator.add_plain(value.ciphertext, plain, result)
        return Cipher(result, value.scale, value.level)

    def times(self, value: Cipher, constant: float, *, meet: Cipher) -> Cipher:
        """``value``·constant at the scale and level of ``meet``."""
        return self._times(value, constant, meet.scale, min(value.level, meet.level))

    def times_for(self, value: Cipher, constant: float, *, partner: Cipher, meet: Cipher) -> Cipher:
        """``value``·constant, rescaled, at a scale whose product with ``partner`` meets another."""
        prime = self._ring.primes[value.level - 1]
        return self.narrow(
            self._times(value, constant, meet.scale / partner.scale * prime, value.level)
        )

    def _times(self, value: Cipher, constant: float, scale: float, level: int) -> Cipher:
        result = self._at(value, level)
        # SEAL refuses a product with nothing: a constant that rounds to it counts one unit of its
        # scale, half a unit more than rounding may be off.
        least = value.scale / scale
        if abs(constant) < least:
            constant = math.copysign(least, constant)
        plain = self._ring.encode_constant(constant, scale / value.scale, level)
        self._ring.evaluator.multiply_plain_inplace(result, plain)
        result.scale = scale
        return Cipher(result, scale, level)

    def add(self, one: Cipher, other: Cipher) -> Cipher:
        """The sum of two values, on top of the first one."""
        other.ciphertext.scale = one.ciphertext.scale = one.scale
        level = min(one.level, other.level)
        result = self._at(one, level)
        self._ring.evaluator.add_inplace(result, self._at(other, level))
        return Cipher(result, one.scale, level)
