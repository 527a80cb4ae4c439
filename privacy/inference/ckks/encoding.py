"""Slots and coefficients: the canonical embedding, by a Fourier transform of N/2 points.

Slot j of a real polynomial is its value at ζ^(3^j), ζ = exp(iπ/N) (Cheon, Kim, Kim and Song 2017,
section 3.2; SEAL's generator 3). One of each conjugate pair of roots is a ζ^(4t+1): with
b_k = c_k + i·c_(k+N/2), the values there are a Fourier transform of b_k·ζ^k.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._lanes import fma, rint
from privacy.inference.ckks.transforms import Values, forward
from privacy.kernels import compiled

_PASS_BITS = 50


class Encoder:
    """The embedding of one ring degree."""

    def __init__(self, degree: int) -> None:
        self._half = half = degree // 2
        powers = [1]
        while len(powers) < half:
            powers.append(powers[-1] * 3 % (2 * degree))
        exponents = np.array(powers)
        self.roots = np.exp(1j * np.pi * exponents / degree)
        self._conjugated = exponents % 4 == 3
        self._points = np.where(self._conjugated, 2 * degree - exponents, exponents) // 4
        self._twist = np.exp(1j * np.pi * np.arange(half) / degree)

    def coefficients(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The real polynomial with these slot values, (N/2,) to (N,)."""
        values = np.empty(self._half, dtype=np.complex128)
        values[self._points] = np.where(self._conjugated, slots.conj(), slots)
        pairs = np.fft.fft(values) / self._half * self._twist.conj()
        return np.concatenate([pairs.real, pairs.imag])

    def slots(self, coefficients: NDArray[np.float64]) -> NDArray[np.complex128]:
        """The slot values of a real polynomial, (N,) to (N/2,)."""
        pairs = coefficients[: self._half] + 1j * coefficients[self._half :]
        values = (np.fft.ifft(pairs * self._twist) * self._half)[self._points]
        return np.asarray(np.where(self._conjugated, values.conj(), values))


@lru_cache(maxsize=8)
def encoder(degree: int) -> Encoder:
    """The embedding of a ring degree; it is made once."""
    return Encoder(degree)


def passes(largest: float) -> int:
    """How often :func:`transform_rows` reduces whole numbers of at most this size.

    A pass takes about 50 bits off a number, whatever it is: with b = rint(v/q) in doubles,
    v - b·q is a multiple of the unit of b, or of 1, and at most 2^52.6 of those, so that it is
    exact.
    """
    return max(1, math.ceil(math.log2(max(largest, 2.0)) / _PASS_BITS) + 1)


@compiled
def transform_rows(
    rows: Values,
    coefficients: Values,
    passes: int,
    tables: Values,
    primes: Values,
    base: NDArray[np.int64],
    start: int,
    stop: int,
) -> None:
    """Whole numbers (N,) modulo the primes of ``base``, transformed, (rows, N); tasks are rows."""
    for row in range(start, stop):
        prime, target = primes[base[row]], rows[row]
        inverse = 1.0 / prime
        for n in range(target.size):
            target[n] = coefficients[n]
        for _ in range(passes):
            for n in range(target.size):
                target[n] = fma(-rint(target[n] * inverse), prime, target[n])
        forward(target, tables[base[row]], prime)
