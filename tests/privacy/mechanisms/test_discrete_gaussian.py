"""The discrete Gaussian: exactly the probabilities that are accounted for.

Tests draw from a seed, so that they cannot flicker; each threshold is set for a false alarm once
in a million seeds.
"""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms import (
    SeededRandomness,
    SystemRandomness,
    add_discrete_gaussian,
)
from privacy.mechanisms import _rejection_sampling as _proposals
from tests.privacy.mechanisms.draws import FarOut, discrete_gaussian

FALSE_ALARM = 1e-6


def probabilities(variance, largest):
    """P(k) for |k| ≤ largest, and the rest, to 40 digits."""
    with mpmath.workdps(40):
        weights = [mpmath.exp(-mpmath.mpf(k * k) / (2 * mpmath.mpf(variance))) for k in range(5000)]
        total = 2 * mpmath.fsum(weights) - 1
        inner = [float(weights[abs(k)] / total) for k in range(-largest, largest + 1)]
        return np.array([*inner, float(2 * mpmath.fsum(weights[largest + 1 :]) / total)])


def chi_square_p(values, variance):
    largest = max(1, int(variance**0.5 * 4.2))
    expected = probabilities(variance, largest) * len(values)
    inside = np.abs(values) <= largest
    counts = np.bincount(values[inside] + largest, minlength=2 * largest + 1)
    counts = np.append(counts, np.count_nonzero(~inside))
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    return stats.chisquare(counts[kept], expected[kept] * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("variance", [0.25, 0.5, 1.0, 7.3, 1023.0, 16_383.0, 16_384.0, 66_000.5])
def test_it_has_its_probabilities(variance):
    """With σ from 1/2 to 257: places in a cell are 0 bits up to σ = 128, then one, then two."""
    values = discrete_gaussian(1_000_000, variance=variance, randomness=SeededRandomness(41))
    assert values.dtype == np.int64
    assert chi_square_p(values, variance) > FALSE_ALARM


@pytest.mark.parametrize("sigma", [2.0**10, 2.0**20 + 0.3, 2.0**30, 2.0**40])
def test_it_is_normal_when_wide(sigma):
    values = discrete_gaussian(
        200_000, variance=Fraction(sigma) ** 2, randomness=SeededRandomness(42)
    )
    assert stats.kstest(values / sigma, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("bits", range(11))
def test_every_bit_of_a_wide_draw_is_even(bits):
    """The lattice has no coarser one inside: each low bit is a fair coin, to 2⁻¹⁰⁰ and more."""
    values = discrete_gaussian(1 << 18, variance=2.0**24, randomness=SeededRandomness(43))
    ones = int(((values >> bits) & 1).sum())
    assert stats.binomtest(ones, len(values)).pvalue > FALSE_ALARM


def test_variance_mean_and_kurtosis():
    count, sigma = 4_000_000, 1000.0
    x = discrete_gaussian(count, variance=sigma**2, randomness=SeededRandomness(44)) / sigma
    limit = -stats.norm.ppf(FALSE_ALARM / 2)
    assert abs(x.mean()) < limit / np.sqrt(count)
    assert abs(np.mean(x**2) - 1) < limit * np.sqrt(2 / count)
    assert abs(np.mean(x**4) - 3) < limit * np.sqrt(96 / count)
    far = np.count_nonzero(np.abs(x) > 4.5)
    expected = 2 * stats.norm.sf(4.5) * count
    assert stats.poisson.cdf(far, expected) > FALSE_ALARM
    assert stats.poisson.sf(far - 1, expected) > FALSE_ALARM


def test_draws_are_independent():
    randomness, count = SeededRandomness(45), 1_000_000
    limit = -stats.norm.ppf(FALSE_ALARM / 20)
    first, second = (
        discrete_gaussian(count, variance=1e4, randomness=randomness) / 100 for _ in range(2)
    )
    chunk = _proposals.CHUNK
    pairs = [
        (first[:-1], first[1:]),
        (first[:-chunk], first[chunk:]),
        (first[:chunk], second[:chunk]),
        (first, second),
    ]
    for transform in (np.asarray, np.square, np.sign):
        for left, right in pairs:
            correlation = np.corrcoef(transform(left), transform(right))[0, 1]
            assert abs(correlation) < limit / np.sqrt(len(left))


def test_the_far_tail_reaches_the_noise():
    # A variance whose table has the real grid's selectors.
    x = discrete_gaussian(200, variance=2.0**40, randomness=FarOut(48)) / 2.0**20
    assert 6.0 <= np.abs(x).min() < np.abs(x).max() < 14
    assert abs(np.sign(x).sum()) < 80


def test_a_seed_repeats_and_the_system_does_not():
    def draw(randomness):
        return discrete_gaussian(1000, variance=2500.0, randomness=randomness)

    assert np.array_equal(draw(SeededRandomness(1)), draw(SeededRandomness(1)))
    # 1,000 draws agree by chance with a probability far below 10⁻¹⁰⁰⁰.
    assert not np.array_equal(draw(SystemRandomness()), draw(SystemRandomness()))


@pytest.mark.parametrize("size", [0, 1, _proposals.CHUNK + 1])
def test_noise_is_added_to_every_element_once(size):
    values = np.full(size, 10**6, dtype=np.int64)
    add_discrete_gaussian(values, variance=2.0**60, randomness=SeededRandomness(49))
    alone = discrete_gaussian(size, variance=2.0**60, randomness=SeededRandomness(49))
    assert np.array_equal(values - 10**6, alone)
    # At σ = 2³⁰ an element that was missed would be 10⁶ exactly.
    assert not np.any(values == 10**6)


def test_impossible_requests_are_refused():
    randomness = SeededRandomness(1)
    assert not discrete_gaussian(5, variance=0, randomness=randomness).any()
    for variance in (0.2, -1.0, float("nan"), float("inf"), 2.0**81):
        with pytest.raises(ValueError, match="finer lattice"):
            discrete_gaussian(5, variance=variance, randomness=randomness)
    with pytest.raises(TypeError, match="out has dtype float64"):
        add_discrete_gaussian(np.zeros(3), variance=1.0, randomness=randomness)
    with pytest.raises(ValueError, match="contiguous"):
        add_discrete_gaussian(
            np.zeros((4, 4), np.int64)[:, ::2], variance=1.0, randomness=randomness
        )
