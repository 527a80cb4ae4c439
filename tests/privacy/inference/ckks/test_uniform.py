"""Seeds for the second polynomials of queries and keys."""

import numpy as np
import pytest

from privacy.inference.ckks.seeded import SEED_BYTES, expand, reseeded

PRIMES = (2**50 - 27, 2**40 + 15)
"""Just below a power of two, and just above one, where half of the values are left out."""


def residues(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, p, shape, dtype=np.uint64) for p in PRIMES], axis=-2)


def test_residues_of_a_seed_are_uniform_below_their_primes() -> None:
    """Mean and variance of a uniform share, to 7 deviations (a chance of 1e-11)."""
    count = 1 << 16
    values = expand(bytes(range(SEED_BYTES)), PRIMES, count)
    for row, prime in zip(values, PRIMES, strict=True):
        assert int(row.max()) < prime
        share = row.astype(np.float64) / prime
        assert abs(share.mean() - 1 / 2) < 7 * (1 / 12 / count) ** 0.5
        assert abs(share.var() - 1 / 12) < 7 * (1 / 180 / count) ** 0.5
        assert len(np.unique(row)) > count - 10


def test_a_seed_gives_the_same_polynomial_and_another_one_a_different_one() -> None:
    seed, other = bytes(SEED_BYTES), b"\x01" + bytes(SEED_BYTES - 1)
    assert np.array_equal(expand(seed, PRIMES, 64), expand(seed, PRIMES, 64))
    assert not np.any(expand(seed, PRIMES, 64) == expand(other, PRIMES, 64))
    with pytest.raises(ValueError, match="key size"):
        expand(bytes(8), PRIMES, 64)


def test_exchanging_the_second_polynomial_changes_neither_message_nor_noise() -> None:
    ciphertext, secret = residues(0, (2, 32)), residues(1, (32,))
    first, seed = reseeded(ciphertext, secret, PRIMES)
    assert seed != reseeded(ciphertext, secret, PRIMES)[1]
    second = expand(seed, PRIMES, 32)
    for index, prime in enumerate(PRIMES):
        before = [
            (a + b * s) % prime
            for a, b, s in zip(*ciphertext[:, index].tolist(), secret[index].tolist(), strict=True)
        ]
        after = [
            (a + b * s) % prime
            for a, b, s in zip(
                first[index].tolist(), second[index].tolist(), secret[index].tolist(), strict=True
            )
        ]
        assert before == after
