"""Sums and products of polynomials, value by value.

Residues lie in [0, q), q < 2^50, before and after. A product x·w - b·q of two of them (``_lanes``)
is exact and at most (1/2 + 3/8)·q in size (``transforms``); a residue and four of them add up to
less than (1 + 4·7/8)·q < 8q, and one reduction brings that back. Longer sums are reduced after
every four products, or six: 1 + 6·7/8 is below 8 too.

Each kernel works on the tasks ``start`` to ``stop``, so that threads can share them: the rows of
all polynomials, one polynomial after the other, where nothing else is said. ``primes`` are those of
a polynomial's rows. Terms are named by their places among ``values``, which can hold more.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._lanes import fma, rint
from privacy.inference.ckks._sums import PAIRS_SUMMED, SUMMED, sum_pairs, sum_products
from privacy.inference.ckks.transforms import Values
from privacy.kernels import compiled

Places = NDArray[np.int64]

_CHUNK = 512
"""Values that are worked on together: a few arrays of so many stay in the first cache."""
_TOGETHER = 4
"""Products that are added up without a reduction."""
_PAIRS_TOGETHER = 3
"""Terms of a sum of products of pairs: two products each in the middle, 1 + 6·7/8 primes."""
ONE = np.zeros(1, dtype=np.int64)
"""The places of a single term."""


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
def chunk(degree: int) -> int:
    """How many values of a polynomial are worked on together: a multiple of 32, as N is."""
    return min(_CHUNK, degree)


@compiled
def sum_row(
    total: Values,
    at: int,
    values: Values,
    value: int,
    value_step: int,
    places: Places,
    weights: Values,
    weight: int,
    weight_step: int,
    adding: int,
    prime: float,
    count: int,
) -> None:
    """Σ_t values[places[t]]·weights[t], ``count`` residues from ``at`` on of ``total``.

    Values and weights begin at ``value`` and ``weight``, and one lies ``..._step`` after the other.
    What is there is added if ``adding`` is 1.
    """
    inverse = 1.0 / prime
    terms = places.size
    for first in range(0, terms, _TOGETHER):
        together = min(_TOGETHER, terms - first)
        more = 1 if first > 0 else adding
        for n in range(0, count, SUMMED):
            sum_products(
                total,
                at + n,
                values,
                value + n,
                value_step,
                places,
                weights,
                weight + n,
                weight_step,
                first,
                together,
                more,
                prime,
                inverse,
            )


@compiled
def weighted_sum(
    total: Values,
    values: Values,
    places: Places,
    weights: Values,
    adding: int,
    primes: Values,
    start: int,
    stop: int,
) -> None:
    """Σ_t values[places[t]]·weights[t]: polynomials (size, rows, N), weights (terms, rows, N).

    It is added to ``total`` if ``adding`` is 1.
    """
    rows, degree = primes.size, total.shape[2]
    row_step, size = values.shape[2] * degree, values.shape[1]
    for task in range(start, stop):
        index, row = task // rows, task % rows
        at = (index * total.shape[1] + row) * degree
        value, weight = index * row_step + row * degree, row * degree
        for n in range(0, degree, chunk(degree)):
            sum_row(
                total,
                at + n,
                values,
                value + n,
                size * row_step,
                places,
                weights,
                weight + n,
                weights.shape[1] * degree,
                adding,
                primes[row],
                chunk(degree),
            )


def add_product(total: Values, value: Values, weights: Values, primes: Values) -> None:
    """Add polynomials (size, rows, N), each times the same one (rows, N)."""
    tasks = len(value) * len(primes)
    weighted_sum(total, value[None], ONE, weights[None], 1, primes, 0, tasks)


@compiled
def sum_of_products(
    total: Values,
    ones: Values,
    places: Places,
    others: Values,
    primes: Values,
    start: int,
    stop: int,
) -> None:
    """Σ_t ones[places[t]]·others[t], pairs of polynomials (2, rows, N), the sum (3, rows, N).

    Tasks are rows.
    """
    rows, degree = primes.size, total.shape[2]
    terms, together = places.size, _PAIRS_TOGETHER
    for row in range(start, stop):
        prime = primes[row]
        inverse = 1.0 / prime
        for near in range(row * degree, (row + 1) * degree, chunk(degree)):
            for first in range(0, terms, together):
                for n in range(near, near + chunk(degree), PAIRS_SUMMED):
                    sum_pairs(
                        total,
                        n,
                        rows * degree,
                        ones,
                        n,
                        ones.shape[2] * degree,
                        places,
                        others,
                        n,
                        others.shape[2] * degree,
                        first,
                        min(together, terms - first),
                        1 if first > 0 else 0,
                        prime,
                        inverse,
                    )


@compiled
def scale_rows(
    result: Values, values: Values, factors: Values, primes: Values, start: int, stop: int
) -> None:
    """Each row of polynomials (size, rows, N) times its centred factor.

    ``result`` can have more rows.
    """
    rows = primes.size
    for task in range(start, stop):
        index, row = task // rows, task % rows
        prime, factor = primes[row], factors[row]
        inverse = 1.0 / prime
        target, source = result[index, row], values[index, row]
        for n in range(target.size):
            rest = product(source[n], factor, prime, inverse)
            target[n] = rest + prime if rest < 0.0 else rest


@compiled
def reorder(
    result: Values, values: Values, order: NDArray[np.uint32], start: int, stop: int
) -> None:
    """Value ``order[n]`` of each polynomial (rows, N) at place n."""
    for row in range(start, stop):
        target, source = result[row], values[row]
        for n in range(target.size):
            target[n] = source[order[n]]
