"""The transforms, beside Python's integers, and the bounds that make them exact."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.inference.ckks._elementwise import product as compiled_product
from privacy.inference.ckks.primes import MAX_MODULUS_BITS, is_prime
from privacy.inference.ckks.transforms import (
    backward,
    forward,
    reversed_bits,
    smallest_root,
    tables,
)

DEGREES = sorted(MAX_MODULUS_BITS)
BITS = (24, 27, 30, 35, 40, 45, 49, 50)


def largest_prime(bits: int, degree: int) -> int:
    candidate = ((1 << bits) - 1) // (2 * degree) * 2 * degree + 1
    while not is_prime(candidate):
        candidate -= 2 * degree
    return candidate


def by_integers(values: list[int], root: int, prime: int) -> list[int]:
    """Cooley and Tukey's butterflies, reduced at every step."""
    degree, values = len(values), list(values)
    powers = [1]
    while len(powers) < degree:
        powers.append(powers[-1] * root % prime)
    table = [powers[at] for at in reversed_bits(degree).tolist()]
    length, blocks = degree, 1
    while blocks < degree:
        length //= 2
        for block in range(blocks):
            factor = table[blocks + block]
            for at in range(2 * block * length, (2 * block + 1) * length):
                one, other = values[at], values[at + length] * factor
                values[at], values[at + length] = (one + other) % prime, (one - other) % prime
        blocks *= 2
    return values


def residues(kinds: list[int], seed: int, prime: int, degree: int) -> np.ndarray:
    """Uniform residues between runs of extreme ones."""
    extremes = np.array([0, 1, prime - 1, prime // 2, prime // 2 + 1])
    values = np.random.default_rng(seed).integers(0, prime, degree)
    runs = np.array_split(np.arange(degree), len(kinds))
    for kind, run in zip(kinds, runs, strict=True):
        if kind < len(extremes):
            values[run] = extremes[kind]
        elif kind == len(extremes):
            values[run] = extremes[run % len(extremes)]
    return values


@pytest.mark.parametrize("degree", DEGREES)
@given(
    bits=st.sampled_from(BITS),
    kinds=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    seed=st.integers(0, 999),
)
@settings(max_examples=12, deadline=None)
def test_a_transform_is_exact(degree: int, bits: int, kinds: list[int], seed: int) -> None:
    prime = largest_prime(bits, degree)
    values = residues(kinds, seed, prime, degree)
    mixing, unmixing = tables(prime, degree)
    transformed = values.astype(np.float64)
    forward(transformed, mixing, float(prime))
    expected = by_integers(values.tolist(), smallest_root(prime, degree), prime)
    assert transformed.astype(np.int64).tolist() == expected
    backward(transformed, unmixing, float(prime))
    np.testing.assert_array_equal(transformed, values)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("bits", BITS)
def test_the_worst_residues_come_back(degree: int, bits: int) -> None:
    """Sums of one sign are the largest that a stage can make."""
    prime = largest_prime(bits, degree)
    mixing, unmixing = tables(prime, degree)
    for value in (0, 1, prime // 2, prime // 2 + 1, prime - 1, -prime, prime):
        values = np.full(degree, float(value))
        back = values.copy()
        forward(back, mixing, float(prime))
        assert back.min() >= 0
        assert back.max() < prime
        backward(back, unmixing, float(prime))
        np.testing.assert_array_equal(back, values % prime)
        # The other way round the input is a transformed polynomial.
        if 0 <= value < prime:
            there = values.copy()
            backward(there, unmixing, float(prime))
            assert there.min() >= 0
            assert there.max() < prime
            forward(there, mixing, float(prime))
            np.testing.assert_array_equal(there, values)


def largest_factor(factor: int, sign: int, prime: int) -> int:
    """A residue whose product with a factor is as large as the quotient's rounding lets it be."""
    centred = float(factor - prime if factor > prime // 2 else factor)
    inverse = pow(factor, -1, prime)
    for share in range(690, 400, -1):
        wanted = sign * (prime * share // 1000 | 1)
        residue = wanted * inverse % prime
        if compiled_product(float(residue), centred, float(prime), 1.0 / prime) == wanted:
            return residue
    raise AssertionError("no product is as large as two fifths of the prime")


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_that_grows_in_every_stage_is_exact(degree: int, sign: int) -> None:
    """Each stage adds the largest product that there is, more than half a prime.

    With 15 stages and nothing reduced, the first value would be more than eight primes.
    """
    prime = largest_prime(50, degree)
    root = smallest_root(prime, degree)
    order = reversed_bits(degree).tolist()
    values = np.zeros(degree, dtype=np.int64)
    values[0] = prime - 1 if sign > 0 else 0
    place, block = degree, 1
    while place > 1:
        place //= 2
        values[place] = largest_factor(pow(root, order[block], prime), sign, prime)
        block *= 2
    transformed = values.astype(np.float64)
    forward(transformed, tables(prime, degree)[0], float(prime))
    assert transformed.astype(np.int64).tolist() == by_integers(values.tolist(), root, prime)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("bits", [24, 50])
def test_values_are_the_polynomial_at_roots(degree: int, bits: int) -> None:
    """Value i at ψ^(2·bitrev(i) + 1), for a polynomial of three terms."""
    prime = largest_prime(bits, degree)
    root = smallest_root(prime, degree)
    assert pow(root, degree, prime) == prime - 1
    values = np.zeros(degree)
    terms = {0: prime - 1, 1: 5, degree - 1: prime // 2}
    for power, coefficient in terms.items():
        values[power] = coefficient
    forward(values, tables(prime, degree)[0], float(prime))
    order = reversed_bits(degree)
    for at in (0, 1, 2, degree // 2, degree - 1):
        point = pow(root, 2 * int(order[at]) + 1, prime)
        expected = sum(c * pow(point, power, prime) for power, c in terms.items()) % prime
        assert values[at] == expected


# --- the bounds of the argument in the module, in units of q, for every ring degree ---------

UNIT = Fraction(1, 2**50)


def product(size: Fraction) -> Fraction:
    """The largest product of a value with a centred factor, for q < 2^50."""
    assert size <= 8
    return Fraction(1, 2) + Fraction(3, 16) * size


def reduced(size: Fraction) -> Fraction:
    assert size <= 8
    return Fraction(1, 2) + 4 * UNIT * size


def stages(degree: int) -> tuple[int, bool]:
    """Pairs of stages, and whether one is left over, beside the three of blocks of eight."""
    count = degree.bit_length() - 1 - 3
    return count // 2, count % 2 == 1


@pytest.mark.parametrize("degree", DEGREES)
def test_values_of_the_forward_transform_stay_below_eight_primes(degree: int) -> None:
    pairs, single = stages(degree)
    size = Fraction(1)
    for index in range(pairs):
        still = reduced(size) if index % 2 else size
        first = still + product(size)
        size = first + product(first)
        assert size <= 8
    if single:
        size = reduced(size) + product(size)
    first = reduced(size) + product(size)
    second = first + product(first)
    third = second + product(second)
    assert third <= 8
    assert reduced(third) < 1


@pytest.mark.parametrize("degree", DEGREES)
def test_values_of_the_inverse_transform_stay_below_eight_primes(degree: int) -> None:
    pairs, single = stages(degree)
    # Three stages of residues in [0, q): sums double, and differences are no larger than a term.
    size = Fraction(1)
    largest = reduced(Fraction(1))
    for _ in range(3):
        largest = max(largest, product(max(size, 2 * largest)))
        size *= 2
    assert size <= 8
    size = max(reduced(size), largest)
    if single:
        size = max(reduced(2 * size), product(2 * size))
    for _ in range(pairs - 1):
        assert 4 * size <= 8
        inner = product(2 * size)
        size = max(reduced(4 * size), product(4 * size), product(2 * inner))
    assert 4 * size <= 8
    inner = product(2 * size)
    assert 2 * inner <= 8
    assert product(reduced(4 * size)) < 1
