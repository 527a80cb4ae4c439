"""Number-theoretic transforms on residues held in doubles.

Order and roots are SEAL's: the smallest primitive 2N-th root of unity ψ, its powers in bit-reversed
order, so that value i of a transformed polynomial is the polynomial at ψ^(2·bitrev(i) + 1).

**Exactness.** Write |x| ≤ m·q for a value, q < 2^50; all values are whole numbers, exact while
m ≤ 8, since 8q < 2^53. Factors w are centred, |w| ≤ q/2. In a product (``_lanes``) h = x·w has a
relative error of 2^-53, 1/q has one, and so has h·(1/q): b is within 1/2 + 3·2^-53·|xw/q| of xw/q,
and so |c| ≤ (1/2 + 3m/16)·q, as 2^-53·q < 1/8. Nothing else is rounded: l is a multiple of 1 and
what h lacks; h - b·q = c - l is a whole number below 2^53. A reduction leaves m = 1/2 and 2^-47.

- *Forward*: residues enter with m = 1. A stage makes x ± c of x and y: m grows to
  m_x + 1/2 + 3m_y/16. Every second pair of stages, the single stage and the last three reduce their
  x first. With 15 stages (N = 32768) no m exceeds 6.
- *Inverse*: x + y and c of x - y: m doubles, or becomes 1/2 + 3·2m/16. Sums are reduced after every
  pair of stages, after the first three and after the single stage; after a pair the largest is
  1/2 + 3m/4 for m before it, which from 5/4 stays below 2, so that sums of four stay below 8. The
  first three stages add up to eight residues of [0, q): less than 8q < 2^53.

``tests/privacy/inference/ckks/test_transforms.py`` follows these bounds through every ring degree.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._butterflies import (
    mix_halves,
    mix_last,
    mix_quarters,
    mix_quarters_reducing,
    unmix_first,
    unmix_halves,
    unmix_last,
    unmix_quarters,
)
from privacy.inference.ckks._lanes import LANES, fma, rint
from privacy.kernels import compiled

Values = NDArray[np.float64]
"""Residues as doubles: whole numbers, in [0, q) between one kernel and the next."""

_SQUARE = LANES * LANES
_NEAR = 2048
"""Values that stay in the processor's first cache, 16 KiB."""


@compiled
def forward(values: Values, table: Values, prime: float) -> None:
    """Transform the coefficients of a polynomial, residues in [-q, q], in place."""
    inverse = 1.0 / prime
    degree = values.size
    blocks, length, passes = 1, degree, 0
    while length > _NEAR:
        for block in range(blocks):
            _mix(values, table, blocks + block, block * length, length, passes & 1, prime, inverse)
        blocks, length, passes = 4 * blocks, length >> 2, passes + 1
    for block in range(blocks):
        # The rest of the stages on one block after the other.
        start = block * length
        inside, size, later = 1, length, passes
        while size > 2 * LANES:
            for part in range(inside):
                at = (blocks + block) * inside + part
                _mix(values, table, at, start + part * size, size, later & 1, prime, inverse)
            inside, size, later = 4 * inside, size >> 2, later + 1
        if size == 2 * LANES:
            for part in range(inside):
                factor = table[(blocks + block) * inside + part]
                mix_halves(values, start + part * size, factor, prime, inverse)
        for place in range(start, start + length, _SQUARE):
            factors = (degree + 7 * place) >> 3
            mix_last(values, place, table, factors, prime, inverse)


@compiled
def _mix(
    values: Values,
    table: Values,
    at: int,
    start: int,
    length: int,
    reducing: int,
    prime: float,
    inverse: float,
) -> None:
    """Two stages on a block of values."""
    quarter = length >> 2
    outer, low, high = table[at], table[2 * at], table[2 * at + 1]
    if reducing:
        for place in range(start, start + quarter, LANES):
            mix_quarters_reducing(values, place, quarter, outer, low, high, prime, inverse)
    else:
        for place in range(start, start + quarter, LANES):
            mix_quarters(values, place, quarter, outer, low, high, prime, inverse)


@compiled
def backward(values: Values, table: Values, prime: float) -> None:
    """Transform residues in [0, q] back into coefficients, in place."""
    inverse = 1.0 / prime
    degree = values.size
    blocks, length = 1, degree
    while length > _NEAR:
        blocks, length = 4 * blocks, length >> 2
    # Where pairs of stages leave one stage over.
    size = length
    while size > 2 * LANES:
        size >>= 2
    smallest = size
    for block in range(blocks):
        start = block * length
        for place in range(start, start + length, _SQUARE):
            unmix_first(values, place, table, (degree + 7 * place) >> 3, prime, inverse)
        size, inside = smallest, length // smallest
        if size == 2 * LANES:
            for part in range(inside):
                factor = table[(blocks + block) * inside + part]
                unmix_halves(values, start + part * size, factor, prime, inverse)
        while size < length:
            size, inside = 4 * size, inside >> 2
            if size == degree:
                _finish(values, table, prime, inverse)
                break
            for part in range(inside):
                at = (blocks + block) * inside + part
                _unmix(values, table, at, start + part * size, size, prime, inverse)
    while blocks > 1:
        blocks, length = blocks >> 2, 4 * length
        if blocks == 1:
            _finish(values, table, prime, inverse)
        else:
            for block in range(blocks):
                _unmix(values, table, blocks + block, block * length, length, prime, inverse)


@compiled
def _unmix(
    values: Values,
    table: Values,
    at: int,
    start: int,
    length: int,
    prime: float,
    inverse: float,
) -> None:
    """Two stages of the inverse on a block of values."""
    quarter = length >> 2
    outer, low, high = table[at], table[2 * at], table[2 * at + 1]
    for place in range(start, start + quarter, LANES):
        unmix_quarters(values, place, quarter, outer, low, high, prime, inverse)


@compiled
def _finish(values: Values, table: Values, prime: float, inverse: float) -> None:
    """The last two stages of the inverse, and the division by N."""
    quarter = values.size >> 2
    share, outer, low, high = table[0], table[1], table[2], table[3]
    for place in range(0, quarter, LANES):
        unmix_last(values, place, quarter, low, high, share, outer, prime, inverse)


# --- tables ---------------------------------------------------------------------------------


def reversed_bits(count: int) -> NDArray[np.int64]:
    """The numbers below ``count``, a power of two, with their bits in reverse order."""
    numbers, result = np.arange(count), np.zeros(count, dtype=np.int64)
    for _ in range(count.bit_length() - 1):
        result = result << 1 | numbers & 1
        numbers >>= 1
    return result


@lru_cache(maxsize=64)
def smallest_root(prime: int, degree: int) -> int:
    """The smallest element of order 2N modulo a prime that is 1 modulo 2N."""
    candidates = (pow(base, (prime - 1) // (2 * degree), prime) for base in range(2, prime))
    root = next(root for root in candidates if pow(root, degree, prime) == prime - 1)
    # Its odd powers are all of them.
    return int(_powers(float(root), float(root * root % prime), float(prime), degree).min())


@lru_cache(maxsize=64)
def tables(prime: int, degree: int) -> tuple[Values, Values]:
    """The tables of :func:`forward` and :func:`backward`, each (N,).

    Powers of ψ in bit-reversed order as far as N/8; then, for every 64 values, the seven vectors
    of ``_butterflies.mix_last``. The inverse's first two are 1/N, and the last stage's factor times
    that.
    """
    root = smallest_root(prime, degree)
    share = pow(degree, -1, prime)
    order = reversed_bits(degree)
    mixing = _powers(1.0, float(root), float(prime), degree)[order]
    unmixing = _powers(1.0, float(pow(root, -1, prime)), float(prime), degree)[order]
    unmixing[:2] = [share, share * int(unmixing[1]) % prime]
    return _table(mixing, prime), _table(unmixing, prime)


@compiled
def _powers(first: float, base: float, prime: float, count: int) -> Values:
    """``first``, ``first``·``base``, ``first``·``base``², ... modulo a prime."""
    inverse = 1.0 / prime
    powers = np.empty(count)
    power = first
    for n in range(count):
        powers[n] = power
        high = power * base
        low = fma(power, base, -high)
        power = fma(-rint(high * inverse), prime, high) + low
        if power < 0.0:
            power += prime
    return powers


def _table(powers: Values, prime: int) -> Values:
    centred = np.where(powers > prime // 2, powers - prime, powers)
    degree = len(powers)
    blocks = np.arange(degree // LANES).reshape(-1, LANES)
    vectors = [
        centred[degree // LANES * width + width * blocks + index]
        for width in (1, 2, 4)
        for index in range(width)
    ]
    return np.concatenate([centred[: degree // LANES], np.stack(vectors, axis=1).reshape(-1)])
