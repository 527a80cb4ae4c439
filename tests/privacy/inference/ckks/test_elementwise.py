"""Sums, products and key switching value by value, beside Python's integers."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.inference.ckks import _elementwise as elementwise
from privacy.inference.ckks import _key_switching as switching
from privacy.inference.ckks._threads import deal
from privacy.inference.ckks.encoding import passes, transform_rows
from privacy.inference.ckks.transforms import tables
from tests.privacy.inference.ckks.test_transforms import by_integers, largest_prime, smallest_root

DEGREE = 1024
BITS = st.integers(24, 50)
SEEDS = st.integers(0, 999)


def polynomials(seed: int, shape: tuple[int, ...], primes: list[int]) -> np.ndarray:
    """Residues (..., primes, N), every pair of extremes among the first 36 of each."""
    generator = np.random.default_rng(seed)
    rows = []
    for prime in primes:
        row = generator.integers(0, prime, (*shape, DEGREE))
        half = prime // 2  # a multiple of N: such sums are doubles for longer than others
        extremes = np.array([0, 1, prime - 1, half - 1, half, half + 1])
        row[..., :36] = np.repeat(extremes, 6) if seed % 2 else np.tile(extremes, 6)
        rows.append(row)
    return np.stack(rows, axis=-2).astype(np.float64)


def integers(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64).astype(object)


@given(bits=st.lists(BITS, min_size=1, max_size=3), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_sums_and_products_are_exact(bits: list[int], seed: int) -> None:
    primes = [largest_prime(each, DEGREE) for each in bits]
    moduli, rows = np.array(primes, dtype=object)[:, None], len(primes)
    one, other = (polynomials(2 * seed + i, (2,), primes) for i in range(2))
    plain = polynomials(2 * seed + 1, (), primes)
    limits = np.array(primes, dtype=np.float64)
    total = one.copy()
    elementwise.add(total, other, limits, 0, 2 * rows)
    assert np.array_equal(total, (integers(one) + integers(other)) % moduli)
    elementwise.multiply_plain(total, one, plain, limits, 0, 2 * rows)
    times = integers(one) * integers(plain)
    assert np.array_equal(total, times % moduli)
    total = other.copy()
    elementwise.add_multiplied_plain(total, one, plain, limits, 0, 2 * rows)
    assert np.array_equal(total, (integers(other) + times) % moduli)
    result = np.empty((3, rows, DEGREE))
    elementwise.multiply(result, one, other, limits, 0, rows)
    (a0, a1), (b0, b1) = integers(one), integers(other)
    expected = np.stack([a0 * b0, a0 * b1 + a1 * b0, a1 * b1]) % moduli
    assert np.array_equal(result, expected)
    for prime, addend, value in zip(primes, other[0], one[0], strict=True):
        for factor in (prime // 2, -(prime // 2), 1):
            scaled = addend.copy()
            switching.add_scaled(scaled, value, float(factor), float(prime))
            assert np.array_equal(scaled, (integers(addend) + integers(value) * factor) % prime)


@given(
    bits=st.lists(BITS, min_size=2, max_size=4),
    digits=st.integers(1, 40),
    seed=SEEDS,
)
@example(bits=[50, 50, 49], digits=40, seed=1)  # forty times half a prime: more than 2^53
@settings(max_examples=30, deadline=None)
def test_products_with_a_key_are_exact(bits: list[int], digits: int, seed: int) -> None:
    primes = [largest_prime(each, DEGREE) for each in bits]
    moduli, rows = np.array(primes, dtype=object)[:, None], len(primes)
    given_digits = polynomials(seed, (digits,), primes)
    key = polynomials(seed + 1, (digits, 2), primes)
    total = np.empty((2, rows, DEGREE))
    for row, prime in enumerate(primes):
        digits_here = np.ascontiguousarray(given_digits[:, row])
        switching.multiply_key(total, row, digits_here, key, row, float(prime))
    expected = (integers(given_digits)[:, None] * integers(key)).sum(axis=0) % moduli
    assert np.array_equal(total, expected)


@given(bits=BITS, last=BITS, seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_division_by_the_last_prime_rounds(bits: int, last: int, seed: int) -> None:
    """Coefficients (x - [x]_p)/p modulo q, with [x]_p in [-p/2, p/2]."""
    prime, divisor = largest_prime(bits, DEGREE), largest_prime(last, DEGREE)
    if prime == divisor:
        return
    primes = np.array([prime, divisor], dtype=np.float64)
    mixing, unmixing = zip(*(tables(each, DEGREE) for each in (prime, divisor)), strict=True)
    values = polynomials(seed, (1,), [prime, divisor])
    remainders, result = np.empty((1, DEGREE)), np.empty((1, 1, DEGREE))
    base, at_last = np.array([0, 1]), np.array([1])
    switching.centred_coefficients(
        remainders, values[:, 1].copy(), np.stack(unmixing), primes, at_last, 0, 1
    )
    inverse = pow(divisor, -1, prime)
    centred = np.array([inverse - prime if inverse > prime // 2 else inverse], dtype=np.float64)
    switching.divide_by_last(
        result, values, remainders, centred, np.stack(mixing), primes, base, 0, 1
    )
    assert np.abs(remainders).max() <= divisor / 2
    rest = [int(each) % prime for each in remainders[0]]
    transformed = by_integers(rest, smallest_root(prime, DEGREE), prime)
    expected = [
        (int(value) - minus) * inverse % prime
        for value, minus in zip(values[0, 0], transformed, strict=True)
    ]
    assert result[0, 0].astype(np.int64).tolist() == expected


@given(bits=BITS, seed=SEEDS, size=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_any_double_that_is_whole_is_reduced_exactly(bits: int, seed: int, size: int) -> None:
    prime = largest_prime(bits, DEGREE)
    generator = np.random.default_rng(seed)
    values = np.rint(np.ldexp(generator.uniform(-1, 1, DEGREE), size))
    values[:4] = [2.0**size, -(2.0**size), 0.0, np.ldexp(1 - 2.0**-53, size)]
    values = np.rint(values)
    rows = np.empty((1, DEGREE))
    mixing = tables(prime, DEGREE)[0][None]
    largest = float(np.abs(values).max())
    transform_rows(
        rows,
        values,
        passes(largest),
        mixing,
        np.array([float(prime)]),
        np.zeros(1, dtype=np.int64),
        0,
        1,
    )
    expected = by_integers([int(v) % prime for v in values], smallest_root(prime, DEGREE), prime)
    assert rows[0].astype(np.int64).tolist() == expected


@given(tasks=st.integers(1, 40), products=st.sampled_from([1, 1 << 24]))
@settings(max_examples=60, deadline=None)
def test_every_task_is_done_once(tasks: int, products: int) -> None:
    done = np.zeros(tasks, dtype=np.int64)

    def work(start: int, stop: int) -> None:
        done[start:stop] += 1

    deal(work, tasks, products)
    assert done.tolist() == [1] * tasks
