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
    total = other.copy()
    elementwise.add_product(total, one, plain, limits)
    expected = integers(other) + integers(one) * integers(plain)
    assert np.array_equal(total, expected % moduli)
    for sign in (1, -1):
        factors = sign * np.floor(limits / 2)
        scaled = np.full((2, rows + 1, DEGREE), 7.0)
        elementwise.scale_rows(scaled, one, factors, limits, 0, 2 * rows)
        times = integers(one) * integers(factors)[:, None]
        assert np.array_equal(scaled[:, :rows], times % moduli)
        assert (scaled[:, rows] == 7.0).all()


@given(
    bits=st.lists(BITS, min_size=1, max_size=3),
    places=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    size=st.integers(1, 3),
    spare=st.integers(0, 1),
    seed=SEEDS,
)
@example(bits=[50, 49, 50], places=[0, 1, 2, 3, 4, 5] * 6, size=2, spare=1, seed=1)
@example(bits=[50], places=[5], size=3, spare=0, seed=2)
@settings(max_examples=40, deadline=None)
def test_sums_of_products_are_exact(
    bits: list[int], places: list[int], size: int, spare: int, seed: int
) -> None:
    """However many terms there are, also where values have rows that the sum has not."""
    primes = [largest_prime(each, DEGREE) for each in bits]
    moduli, rows = np.array(primes, dtype=object)[:, None], len(primes)
    limits, terms = np.array(primes, dtype=np.float64), np.array(places)
    values = polynomials(seed, (6, size), primes + primes[:1] * spare)
    weights = polynomials(seed + 1, (len(places),), primes)
    expected = (integers(values[terms][:, :, :rows]) * integers(weights)[:, None]).sum(axis=0)
    for adding in (0, 1):
        total = polynomials(seed + 2, (size,), primes)
        start = integers(total) * adding
        elementwise.weighted_sum(total, values, terms, weights, adding, limits, 0, size * rows)
        assert np.array_equal(total, (start + expected) % moduli)
    pairs, others = values[:, :1].repeat(2, axis=1), polynomials(seed, (len(places), 2), primes)
    pairs[:, 1] = polynomials(seed + 3, (6,), primes + primes[:1] * spare)
    result = np.empty((3, rows, DEGREE))
    elementwise.sum_of_products(result, pairs, terms, others, limits, 0, rows)
    (a0, a1), (b0, b1) = (
        np.moveaxis(integers(each), 1, 0) for each in (pairs[terms][:, :, :rows], others)
    )
    sums = [a0 * b0, a0 * b1 + a1 * b0, a1 * b1]
    assert np.array_equal(result, np.stack([each.sum(axis=0) for each in sums]) % moduli)


@given(
    bits=st.lists(BITS, min_size=2, max_size=4),
    digits=st.integers(1, 40),
    seed=SEEDS,
)
@example(bits=[50, 50, 49], digits=40, seed=1)  # forty times half a prime: more than 2^53
@settings(max_examples=30, deadline=None)
def test_products_with_a_key_are_exact(bits: list[int], digits: int, seed: int) -> None:
    primes = [largest_prime(each, DEGREE) for each in bits]
    moduli = np.array(primes, dtype=object)[:, None]
    given_digits = polynomials(seed, (digits,), primes)
    key = polynomials(seed + 1, (digits, 2), primes)
    products = (integers(given_digits)[:, None] * integers(key)).sum(axis=0)
    parts, order = np.arange(digits), np.arange(DEGREE, dtype=np.uint32)[::-1].copy()
    start, pair = polynomials(seed + 2, (2,), primes), np.empty((2, 1, DEGREE))
    first = np.stack([integers(start)[0], 0 * integers(start)[1]])
    for adding, expected in (
        (0, products),
        (1, products + first),
        (2, products + integers(start)),
    ):
        total = start.copy()
        for row, prime in enumerate(primes):
            here = np.ascontiguousarray(given_digits[:, row])
            switching.multiply_key(total, row, here, parts, key, row, adding, float(prime))
        assert np.array_equal(total, expected % moduli)
    rotated = (products + first)[..., order]
    for adding in (False, True):
        total = start.copy()
        for row, prime in enumerate(primes):
            here = np.ascontiguousarray(given_digits[:, row])
            switching.rotate_row(
                total, start, row, here, pair, parts, key, row, order, adding, float(prime)
            )
        assert np.array_equal(total, (rotated + integers(start) * adding) % moduli)


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
