"""Key switching and rescaling: polynomials modulo many primes, brought under other primes.

A switching key holds, for each data prime q_j, an encryption of P·s'·[j] under s, where s' is the
key that a polynomial d belongs to, P the special prime, and [j] is 1 modulo q_j and 0 modulo the
others. With the digits d_j of d, its residues modulo q_j as numbers, Σ_j d_j·key_j encrypts P·d·s';
divided by P that is d·s' (the hybrid method with one prime a digit, as SEAL has it: Kim, Polyakov
and Zucca 2021, section 3).

Digits are centred, in [-q_j/2, q_j/2]. SEAL takes them from [0, q_j): their mean is then a
polynomial with equal coefficients, which puts most of the noise into one slot. An automorphism
changes signs and order of coefficients, and so commutes with centred digits: a rotation may be
taken of the digits, or, with keys that were rotated backwards, of the result (Halevi and Shoup
2018, section 4.2; Bossuat et al. 2021, section 4.3). All rotations of one ciphertext share its
digits, and a sum of them its division by P.

Sums and rotations of ciphertexts that were not divided yet go on as such: rotating one needs its
second polynomial divided, for its digits, and its first as it is.

Rows of a polynomial are named by ``base``: the places of their primes in the ring. Kernels work on
the tasks ``start`` to ``stop``, so that threads can share them.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks._elementwise import Places, chunk, product, sum_row
from privacy.inference.ckks._lanes import fma, rint
from privacy.inference.ckks.transforms import Values, backward, forward
from privacy.kernels import compiled


@compiled
def centred_coefficients(
    result: Values,
    values: Values,
    tables: Values,
    primes: Values,
    base: Places,
    start: int,
    stop: int,
) -> None:
    """Coefficients in [-q/2, q/2] of transformed polynomials (rows, N); tasks are rows."""
    for row in range(start, stop):
        prime = primes[base[row]]
        target, source = result[row], values[row]
        for n in range(target.size):
            target[n] = source[n]
        backward(target, tables[base[row]], prime)
        half = prime / 2
        for n in range(target.size):
            target[n] = target[n] - prime if target[n] > half else target[n]


@compiled
def extend(
    digits: Values,
    coefficients: Values,
    own: Values,
    row: int,
    table: Values,
    prime: float,
) -> None:
    """Digits modulo the prime of one row, transformed, (digits, N).

    ``coefficients`` are centred, (digits, N); ``own`` are the digits modulo their own primes,
    transformed, of which this row may be one.
    """
    for digit in range(coefficients.shape[0]):
        target = digits[digit]
        if digit == row:
            source = own[digit]
            for n in range(target.size):
                target[n] = source[n]
        else:
            _transform(target, coefficients[digit], table, prime)


@compiled
def _transform(target: Values, coefficients: Values, table: Values, prime: float) -> None:
    """Coefficients below 2^50 in size, modulo a prime and transformed."""
    inverse = 1.0 / prime
    for n in range(target.size):
        target[n] = fma(-rint(coefficients[n] * inverse), prime, coefficients[n])
    forward(target, table, prime)


@compiled
def multiply_key(
    total: Values,
    row: int,
    digits: Values,
    parts: Places,
    key: Values,
    key_row: int,
    adding: int,
    prime: float,
) -> None:
    """Σ_j digit_j·key_j for both components, in one row of ``total`` (2, rows, N).

    ``digits`` (digits, N) are modulo that row's prime; ``key`` (parts, 2, key rows, N), of which
    ``parts`` counts those used. What is in the row of the first component is added if ``adding`` is
    at least 1, of the second if it is 2.
    """
    degree = digits.shape[1]
    step, width = total.shape[1] * degree, key.shape[2] * degree
    for n in range(0, degree, chunk(degree)):
        for component in range(2):
            sum_row(
                total,
                component * step + row * degree + n,
                digits,
                n,
                degree,
                parts,
                key,
                component * width + key_row * degree + n,
                2 * width,
                1 if adding > component else 0,
                prime,
                chunk(degree),
            )


@compiled
def rotate_row(
    result: Values,
    total: Values,
    row: int,
    digits: Values,
    pair: Values,
    parts: Places,
    key: Values,
    key_row: int,
    order: NDArray[np.uint32],
    adding: bool,
    prime: float,
) -> None:
    """One row of a rotation, in that row of ``result`` (2, rows, N).

    Digits times a key that was rotated backwards, and the first component of ``total``
    (2, rows, N), are rotated together. They are added to what is there if ``adding`` is true.
    ``pair`` (2, 1, N) is room to work in.
    """
    first = pair[0, 0]
    for n in range(first.size):
        first[n] = total[0, row, n]
    multiply_key(pair, 0, digits, parts, key, key_row, 1, prime)
    for component in range(2):
        target, source = result[component, row], pair[component, 0]
        if adding:
            for n in range(target.size):
                value = target[n] + source[order[n]]
                target[n] = value - prime if value >= prime else value
        else:
            for n in range(target.size):
                target[n] = source[order[n]]


@compiled
def divide_by_last(
    result: Values,
    values: Values,
    remainders: Values,
    inverses: Values,
    tables: Values,
    primes: Values,
    base: Places,
    start: int,
    stop: int,
) -> None:
    """Polynomials (size, rows, N) divided by their last prime, rounded: (size, rows - 1, N).

    ``remainders`` (size, N) are the centred coefficients of the last row, and ``inverses`` the
    last prime's inverses modulo the others, centred. Tasks are size times rows - 1.
    """
    rows = base.size - 1
    for task in range(start, stop):
        index, row = task // rows, task % rows
        prime, factor = primes[base[row]], inverses[row]
        inverse = 1.0 / prime
        target, source = result[index, row], values[index, row]
        _transform(target, remainders[index], tables[base[row]], prime)
        for n in range(target.size):
            rest = product(source[n] - target[n], factor, prime, inverse)
            target[n] = rest + prime if rest < 0.0 else rest
