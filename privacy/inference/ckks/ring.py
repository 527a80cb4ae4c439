"""Rings of CKKS on SEAL: encoding, residues in and out, and operations on ciphertexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tenseal import sealapi as seal

from privacy.inference.ckks import streams
from privacy.inference.ckks.streams import Parts, Residues

CONJUGATE = 0
"""Stands for complex conjugation among rotation steps, where 0 has no other use."""

MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Bits of the whole modulus at 128-bit security, by ring degree.

Homomorphic Encryption Standard (2018), table 1: ternary secret, classical attacks.
"""


@dataclass(frozen=True, slots=True)
class Plaintext:
    """An encoded polynomial, as the ring made it."""

    handle: Any
    scale: float

    @property
    def is_zero(self) -> bool:
        """Whether every coefficient rounded to zero; SEAL refuses products with such."""
        return bool(self.handle.is_zero())


@dataclass(slots=True)
class Ciphertext:
    """A ciphertext with its scale and the number of primes that are left."""

    handle: Any
    scale: float
    level: int


class Ring:
    """Parameters of CKKS at 128-bit security, and the arithmetic under them.

    Ciphertexts are made of residues in the number-theoretic domain and become residues again.

    Parameters
    ----------
    degree : int
        N, the ring degree; a ciphertext has N/2 slots.
    prime_bits : sequence of int
        Bits of each prime, in SEAL's order: the prime that is left at the end comes first, and
        the special prime of key switching, if there is more than one, last.

    Raises
    ------
    ValueError
        If SEAL refuses the parameters, as it does where they do not hold 128 bits of security.
    """

    def __init__(self, degree: int, prime_bits: Sequence[int]) -> None:
        if degree not in MAX_MODULUS_BITS:
            raise ValueError(f"degree is {degree}; choose one of {sorted(MAX_MODULUS_BITS)}")
        self._prepare(degree, seal.CoeffModulus.Create(degree, list(prime_bits)))

    def _prepare(self, degree: int, modulus: Sequence[Any]) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus(list(modulus))
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            bits = [prime.bit_count() for prime in modulus]
            raise ValueError(
                f"SEAL refuses degree {degree} with primes of {bits} bits: "
                f"{self.context.parameters_error_message()}"
            )
        self.degree = degree
        self.slots = degree // 2
        self.primes: tuple[int, ...] = tuple(m.value() for m in parameters.coeff_modulus())
        self.levels = max(1, len(self.primes) - 1)
        self.key_id = self.context.key_parms_id()
        self._ids: dict[int, Any] = {}
        data = self.context.first_context_data()
        for level in range(self.levels, 0, -1):
            self._ids[level] = data.parms_id()
            data = data.next_context_data()
        self._evaluator = seal.Evaluator(self.context)
        self._encoder = seal.CKKSEncoder(self.context)

    def at_bottom(self, level: int) -> "Ring":
        """The ring with the first ``level`` primes alone, in which ciphertexts there lie too."""
        ring = Ring.__new__(Ring)
        ring._prepare(self.degree, [seal.Modulus(prime) for prime in self.primes[:level]])
        return ring

    @cached_property
    def eighth_root(self) -> int:
        """An element of order eight modulo the first prime."""
        prime = self.primes[0]
        powers = (pow(base, (prime - 1) // 8, prime) for base in range(2, prime))
        return next(root for root in powers if pow(root, 4, prime) == prime - 1)

    @cached_property
    def roots(self) -> NDArray[np.complex128]:
        """ζ^(3^j) for slot j: where the slots evaluate a plaintext polynomial, (N/2,)."""
        return np.asarray(np.exp(1j * np.pi * self._slot_powers / self.degree))

    @cached_property
    def _slot_powers(self) -> NDArray[np.int64]:
        powers = [1]
        while len(powers) < self.slots:
            powers.append(powers[-1] * 3 % (2 * self.degree))
        return np.array(powers)

    def galois_element(self, step: int) -> int:
        """The Galois element that rotates the slots left by ``step``, or conjugates them."""
        if step == CONJUGATE:
            return 2 * self.degree - 1
        return pow(3, step % self.slots, 2 * self.degree)

    # --- plaintexts ------------------------------------------------------------------------

    def encode(self, slots: NDArray[Any] | float, scale: float, level: int) -> Plaintext:
        """A plaintext with these slot values, shape (N/2,), real or complex; a number for all."""
        plain = seal.Plaintext()
        values = slots.tolist() if isinstance(slots, np.ndarray) else slots
        self._encoder.encode(values, self._ids[level], scale, plain)
        return Plaintext(plain, scale)

    def encode_coefficients(
        self, values: NDArray[np.float64], scale: float, level: int
    ) -> Plaintext:
        """A plaintext polynomial with these real coefficients, shape (N,)."""
        twisted = values * np.exp(1j * np.pi * np.arange(self.degree) / self.degree)
        # The polynomial at every odd power of ζ; the slots are those at powers of three.
        points = np.fft.ifft(twisted) * self.degree
        return self.encode(points[(self._slot_powers - 1) // 2], scale, level)

    def coefficients(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The real polynomial with these slot values, shape (N,)."""
        points = np.empty(self.degree, dtype=np.complex128)
        places = (self._slot_powers - 1) // 2
        points[places] = slots
        points[self.degree - 1 - places] = slots.conj()
        twisted = np.fft.fft(points) / self.degree
        turned = twisted * np.exp(-1j * np.pi * np.arange(self.degree) / self.degree)
        return np.asarray(turned.real, dtype=np.float64)

    # --- residues in and out ---------------------------------------------------------------

    def ciphertext(self, residues: Residues, scale: float) -> Ciphertext:
        """The ciphertext of the residues of its polynomials, shape (size, level, N)."""
        level = residues.shape[1]
        handle = streams.load_ciphertext(
            seal.Ciphertext(), self.context, self._ids[level], residues, scale
        )
        return Ciphertext(handle, scale, level)

    def residues(self, value: Ciphertext) -> Residues:
        """The polynomials of a ciphertext, shape (size, level, N)."""
        return streams.ciphertext_residues(value.handle)

    def coefficient_residues(self, value: Ciphertext) -> Residues:
        """As :meth:`residues`, out of the number-theoretic domain; the ciphertext is used up."""
        self._evaluator.transform_from_ntt_inplace(value.handle)
        return streams.ciphertext_residues(value.handle)

    def relinearisation_keys(self, parts: Parts) -> Any:
        """Relinearisation keys of their parts, one a data prime."""
        return streams.load_switching_keys(
            seal.RelinKeys(), self.context, self.key_id, {0: parts}, 1
        )

    def rotation_keys(self, keys: dict[int, Parts]) -> Any:
        """Galois keys of their parts, by Galois element."""
        by_row = {(element - 1) // 2: parts for element, parts in keys.items()}
        return streams.load_switching_keys(
            seal.GaloisKeys(), self.context, self.key_id, by_row, self.degree
        )

    # --- operations ------------------------------------------------------------------------

    def multiply_plain(self, value: Ciphertext, plain: Plaintext) -> Ciphertext:
        """The product with a plaintext that is not zero."""
        product = seal.Ciphertext()
        self._evaluator.multiply_plain(value.handle, plain.handle, product)
        return Ciphertext(product, value.scale * plain.scale, value.level)

    def multiply(self, one: Ciphertext, other: Ciphertext) -> Ciphertext:
        """The product of two ciphertexts of one level, of size 3."""
        product = seal.Ciphertext()
        if one is other:
            self._evaluator.square(one.handle, product)
        else:
            self._evaluator.multiply(one.handle, other.handle, product)
        return Ciphertext(product, one.scale * other.scale, one.level)

    def add(self, total: Ciphertext, other: Ciphertext) -> None:
        """Add a ciphertext of the same level, whose scale is the same up to rounding."""
        other.handle.scale = total.handle.scale = total.scale
        self._evaluator.add_inplace(total.handle, other.handle)

    def add_plain(self, total: Ciphertext, plain: Plaintext) -> None:
        """Add a plaintext, whose scale is the same up to rounding."""
        total.handle.scale = plain.scale
        self._evaluator.add_plain_inplace(total.handle, plain.handle)

    def relinearise(self, value: Ciphertext, keys: Any) -> None:
        """Bring a ciphertext of size 3 back to size 2; one of size 2 stays as it is."""
        if value.handle.size() > 2:
            self._evaluator.relinearize_inplace(value.handle, keys)

    def rescale(self, value: Ciphertext) -> None:
        """Divide by the last prime that is left, and drop it."""
        self._evaluator.rescale_to_next_inplace(value.handle)
        self.rescaled_to(value, value.scale / self.primes[value.level - 1])
        value.level -= 1

    def rescaled_to(self, value: Ciphertext, scale: float) -> None:
        """Read a ciphertext at another scale."""
        value.scale = value.handle.scale = scale

    def at_level(self, value: Ciphertext, level: int) -> Ciphertext:
        """A copy with the primes above ``level`` dropped."""
        copy = seal.Ciphertext()
        self._evaluator.mod_switch_to(value.handle, self._ids[level], copy)
        copy.scale = value.scale
        return Ciphertext(copy, value.scale, level)

    def rotate(self, value: Ciphertext, step: int, keys: Any) -> Ciphertext:
        """The slots rotated left by ``step``, or conjugated."""
        rotated = seal.Ciphertext()
        self._evaluator.apply_galois(value.handle, self.galois_element(step), keys, rotated)
        return Ciphertext(rotated, value.scale, value.level)
