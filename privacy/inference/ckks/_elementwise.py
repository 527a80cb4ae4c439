"""Sums and products of polynomials, value by value.

Residues lie in [0, q), q < 2^50, before and after. A product x·w - b·q of two of them
(``_vectors``) is exact and at most (1/2 + 3/8)·q in size (``transforms``); two of them and a
residue add up to less than 3q, and one reduction brings that back.

Each kernel works on the rows ``start`` to ``stop`` of all rows, polynomial by polynomial, so that
threads can share them. ``primes`` are those of a polynomial's rows.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._vectors import fma, rint
from privacy.inference.ckks.transforms import Values
from privacy.kernels import compiled


@compiled
def product(x: float, w: float, prime: float, inverse: float) -> float:
    """``x``·``w`` modulo ``prime``, between -prime and prime."""
    high = x * w
    low: float = fma(x, w, -high)
    rest: float = fma(-rint(high * inverse), prime, high) + low
    return rest


@compiled
def reduced(x: float, prime: float, inverse: float) -> float:
    """A residue of [0, prime) for a whole number of at most 2^53 in size."""
    rest: float = fma(-rint(x * inverse), prime, x)
    return rest + prime if rest < 0.0 else rest


@compiled
def add(total: Values, other: Values, primes: Values, start: int, stop: int) -> None:
    """Add polynomials (size, rows, N) to others; ``other`` has no more of them."""
    rows = primes.size
    for task in range(start, stop):
        prime = primes[task % rows]
        sums, addends = total[task // rows, task % rows], other[task // rows, task % rows]
        for n in range(sums.size):
            value = sums[n] + addends[n]
            sums[n] = value - prime if value >= prime else value


@compiled
def multiply_plain(
    result: Values, value: Values, plain: Values, primes: Values, start: int, stop: int
) -> None:
    """Each polynomial of ``value`` (size, rows, N) times one (rows, N)."""
    rows = primes.size
    for task in range(start, stop):
        index, row = task // rows, task % rows
        prime = primes[row]
        inverse = 1.0 / prime
        products, one, other = result[index, row], value[index, row], plain[row]
        for n in range(products.size):
            rest = product(one[n], other[n], prime, inverse)
            products[n] = rest + prime if rest < 0.0 else rest


@compiled
def add_multiplied_plain(
    total: Values, value: Values, plain: Values, primes: Values, start: int, stop: int
) -> None:
    """As :func:`multiply_plain`, added to ``total``."""
    rows = primes.size
    for task in range(start, stop):
        index, row = task // rows, task % rows
        prime = primes[row]
        inverse = 1.0 / prime
        sums, one, other = total[index, row], value[index, row], plain[row]
        for n in range(sums.size):
            rest = sums[n] + product(one[n], other[n], prime, inverse)
            sums[n] = reduced(rest, prime, inverse)


@compiled
def multiply(
    result: Values, one: Values, other: Values, primes: Values, start: int, stop: int
) -> None:
    """Two pairs of polynomials multiplied, (3, rows, N); tasks are rows."""
    for row in range(start, stop):
        prime = primes[row]
        inverse = 1.0 / prime
        a0, a1, b0, b1 = one[0, row], one[1, row], other[0, row], other[1, row]
        first, middle, last = result[0, row], result[1, row], result[2, row]
        for n in range(first.size):
            rest = product(a0[n], b0[n], prime, inverse)
            first[n] = rest + prime if rest < 0.0 else rest
        for n in range(first.size):
            rest = product(a0[n], b1[n], prime, inverse) + product(a1[n], b0[n], prime, inverse)
            middle[n] = reduced(rest, prime, inverse)
        for n in range(first.size):
            rest = product(a1[n], b1[n], prime, inverse)
            last[n] = rest + prime if rest < 0.0 else rest


@compiled
def reorder(
    result: Values, values: Values, order: NDArray[np.uint32], start: int, stop: int
) -> None:
    """Value ``order[n]`` of each polynomial (rows, N) at place n."""
    for row in range(start, stop):
        target, source = result[row], values[row]
        for n in range(target.size):
            target[n] = source[order[n]]
