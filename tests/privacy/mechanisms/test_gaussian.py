"""Noise: what is drawn is exactly what is accounted for.

Statistical tests draw from a seed, so that they cannot flicker; each threshold is set for a
false alarm once in a million seeds.
"""

import inspect
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privacy.mechanisms import (
    SeededRandomness,
    SystemRandomness,
    add_gaussian,
    add_rounded_gaussian,
)
from privacy.mechanisms import _rejection_sampling as _proposals
from privacy.mechanisms import gaussian as noise
from privacy.mechanisms._exact_arithmetic import nearest
from privacy.mechanisms._proposal_table import CELLS
from tests.privacy.mechanisms.draws import FarOut, gaussian, rounded_gaussian

FALSE_ALARM = 1e-6


def lattice_probabilities(sigma, largest):
    """P(round(N(0, σ²)) = k) for |k| ≤ largest, and the rest, to 40 digits."""
    with mpmath.workdps(40):

        def upper(x):
            return mpmath.erfc(mpmath.mpf(x) / (mpmath.mpf(sigma) * mpmath.sqrt(2))) / 2

        inner = [
            upper(abs(k) - 0.5) - upper(abs(k) + 0.5) if k else 1 - 2 * upper(0.5)
            for k in range(-largest, largest + 1)
        ]
        return np.array([float(p) for p in inner] + [float(2 * upper(largest + 0.5))])


def chi_square_p(values, sigma):
    largest = max(1, int(sigma * 4.2))
    probabilities = lattice_probabilities(sigma, largest)
    inside = np.abs(values) <= largest
    counts = np.bincount(values[inside] + largest, minlength=2 * largest + 1)
    counts = np.append(counts, np.count_nonzero(~inside))
    expected = probabilities * len(values)
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    return stats.chisquare(counts[kept], expected[kept] * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.9, 1.0, 2.7, 16.0, 61.3])
def test_rounded_gaussian_has_the_probabilities_of_the_lattice(sigma):
    values = rounded_gaussian(1_000_000, sigma=sigma, randomness=SeededRandomness(11))
    assert values.dtype == np.int64
    assert chi_square_p(values, sigma) > FALSE_ALARM


@pytest.mark.parametrize("sigma", [1e-303, 1e-300, 1e-290, 1e-280, 1e-12])
def test_the_smallest_noise_is_noise(sigma):
    """The same draws as of another deviation, to the last bits that doubles have."""
    drawn, wide = (
        gaussian(1_000, sigma=scale, randomness=SeededRandomness(15)) for scale in (sigma, 1.0)
    )
    assert drawn == pytest.approx(wide * sigma, rel=2.0**-40, abs=2.0**-1073)


@pytest.mark.parametrize("sigma", [2.0**10, 2.0**20 + 0.3, 2.0**30, 2.0**40])
def test_rounded_gaussian_is_normal_when_wide(sigma):
    values = rounded_gaussian(200_000, sigma=sigma, randomness=SeededRandomness(12))
    assert stats.kstest(values / sigma, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_variance_mean_and_kurtosis(draw):
    count, sigma = 4_000_000, 1000.0
    x = draw(count, sigma=sigma, randomness=SeededRandomness(13)) / sigma
    limit = -stats.norm.ppf(FALSE_ALARM / 2)
    variance = 1 + (1 / 12 / sigma**2 if draw is rounded_gaussian else 0)
    assert abs(x.mean()) < limit / np.sqrt(count)
    assert abs(np.mean(x**2) - variance) < limit * np.sqrt(2 / count)
    assert abs(np.mean(x**4) - 3) < limit * np.sqrt(96 / count)


def test_continuous_gaussian_is_normal_also_far_out():
    x = gaussian(1_000_000, sigma=1.0, randomness=SeededRandomness(14))
    assert stats.kstest(x, "norm").pvalue > FALSE_ALARM
    expected = 2 * stats.norm.sf(4.5) * len(x)
    far = np.count_nonzero(np.abs(x) > 4.5)
    assert stats.poisson.cdf(far, expected) > FALSE_ALARM
    assert stats.poisson.sf(far - 1, expected) > FALSE_ALARM


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_draws_are_independent(draw):
    randomness = SeededRandomness(15)
    count, limit = 1_000_000, -stats.norm.ppf(FALSE_ALARM / 20)
    first = draw(count, sigma=100.0, randomness=randomness) / 100
    second = draw(count, sigma=100.0, randomness=randomness) / 100
    # Neighbours, chunk against chunk, call against call; values, squares and signs.
    pairs = [
        (first[:-1], first[1:]),
        (first[: -_proposals.CHUNK], first[_proposals.CHUNK :]),
        (first[: _proposals.CHUNK], second[: _proposals.CHUNK]),
        (first, second),
    ]
    for transform in (np.asarray, np.square, np.sign):
        for left, right in pairs:
            correlation = np.corrcoef(transform(left), transform(right))[0, 1]
            assert abs(correlation) < limit / np.sqrt(len(left))


def test_what_doubles_cannot_round_is_rounded_exactly():
    # A σ so wide that doubles often cannot decide, against exact arithmetic for every draw.
    count, sigma = 3_000, 2.0**40
    sampler = _proposals.Sampler(SeededRandomness(16))
    draws = sampler.draw(count)
    width = Fraction(sigma) / CELLS
    exact = [nearest(sampler.settle(draws, i), width) for i in range(count)]
    assert rounded_gaussian(count, sigma=sigma, randomness=SeededRandomness(16)).tolist() == exact
    continuous = gaussian(count, sigma=sigma, randomness=SeededRandomness(16))
    assert np.abs(continuous - exact).max() <= 0.5 + 2.0**-8
    at_place = [sampler.settle(draws, i) for i in range(count)]
    reals = [draw.sign * width * (draw.cell + draw.place.low) for draw in at_place]
    for mine, real in zip(continuous, reals, strict=True):
        assert abs(Fraction(mine) - real) <= abs(real) * Fraction(1, 1 << 51) + Fraction(
            sigma
        ) * Fraction(1, 1 << 57)


def test_half_integers_are_decided_exactly():
    # A σ for which the draw lies next to a half-integer, where doubles are no judge.
    for seed in range(200):
        sampler = _proposals.Sampler(SeededRandomness(seed), size=1)
        draw = sampler.settle(sampler.draw(1), 0)
        k = 10**9 + seed
        sigma = float((k + Fraction(1, 2)) * CELLS / (draw.cell + draw.place.low))
        exact = nearest(draw, Fraction(sigma) / CELLS)
        assert abs(exact) in (k, k + 1)
        drawn = rounded_gaussian(1, sigma=sigma, randomness=SeededRandomness(seed))
        assert drawn.tolist() == [exact]


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_the_far_tail_reaches_the_noise(draw):
    x = draw(200, sigma=2.0**20, randomness=FarOut(23)) / 2.0**20
    assert 6.0 <= np.abs(x).min() < np.abs(x).max() < 14
    assert abs(np.sign(x).sum()) < 80


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_a_seed_repeats_and_the_system_does_not(draw):
    one = draw(1000, sigma=50.0, randomness=SeededRandomness(1))
    assert np.array_equal(one, draw(1000, sigma=50.0, randomness=SeededRandomness(1)))
    assert not np.array_equal(one, draw(1000, sigma=50.0, randomness=SeededRandomness(2)))
    system = SystemRandomness()
    # 1,000 lattice draws agree by chance with a probability far below 10⁻¹⁰⁰⁰.
    assert not np.array_equal(
        draw(1000, sigma=50.0, randomness=system), draw(1000, sigma=50.0, randomness=system)
    )


def test_numpys_global_generator_is_neither_read_nor_written():
    before = np.random.get_state()  # noqa: NPY002
    rounded_gaussian(10_000, sigma=5.0, randomness=SystemRandomness())
    gaussian(10_000, sigma=5.0, randomness=SystemRandomness())
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(left, right) for left, right in zip(before, after, strict=True))
    assert "np.random" not in inspect.getsource(noise)


@pytest.mark.parametrize(
    "size", [0, 1, 2, _proposals.CHUNK, _proposals.CHUNK + 1, 3 * _proposals.CHUNK - 1]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_noise_is_added_to_every_element_once(size, dtype):
    add = add_rounded_gaussian if dtype is np.int64 else add_gaussian
    values = np.full(size, 10**6, dtype=dtype)
    add(values, sigma=100.0, randomness=SeededRandomness(21))
    assert values.dtype == dtype
    # An element that was missed would be exactly 10⁶, which no double is by chance.
    by_chance = 0 if dtype is np.float64 else max(3, size // 100)
    assert np.count_nonzero(values == 10**6) <= by_chance
    noise_alone = np.full(size, 0, dtype=dtype)
    add(noise_alone, sigma=100.0, randomness=SeededRandomness(21))
    assert np.allclose(values - 10**6, noise_alone, atol=0.1)
    matrix = np.zeros((size, 2), dtype=dtype)
    add(matrix, sigma=100.0, randomness=SeededRandomness(22))
    assert np.count_nonzero(matrix == 0) <= max(3, size // 50)


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_no_noise_is_no_noise(draw):
    assert not draw(5, sigma=0.0, randomness=SeededRandomness(1)).any()


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_impossible_deviations_are_refused(draw, sigma):
    with pytest.raises(ValueError, match="sigma is"):
        draw(5, sigma=sigma, randomness=SeededRandomness(1))


def test_impossible_arrays_are_refused():
    randomness = SeededRandomness(1)
    with pytest.raises(ValueError, match="coarser lattice"):
        rounded_gaussian(5, sigma=2.0**41, randomness=randomness)
    with pytest.raises(TypeError, match="out has dtype float64"):
        add_rounded_gaussian(np.zeros(3), sigma=1.0, randomness=randomness)
    with pytest.raises(TypeError, match="out has dtype int64"):
        add_gaussian(np.zeros(3, dtype=np.int64), sigma=1.0, randomness=randomness)
    with pytest.raises(ValueError, match="contiguous"):
        add_gaussian(np.zeros((4, 4))[:, ::2], sigma=1.0, randomness=randomness)


# Mironov 2012: which numbers noise can reach -----------------------------------------------------


def test_low_bits_of_floating_point_noise_give_the_value_away() -> None:
    """Laplace noise by the inverse distribution function, as it is commonly written.

    Of uniform doubles k / 2^53 the logarithm has fewer values between 1 and 2 than there are
    doubles, so that a release of 1 plus noise is often none that 0 could have led to.
    """
    drawn = np.random.default_rng(1).integers(1, 2**53, size=50_000)

    def noise(k: NDArray[np.int64]) -> NDArray[np.float64]:
        return -np.log(np.ldexp(k.astype(np.float64), -53))

    def impossible_from_zero(released: NDArray[np.float64]) -> NDArray[np.bool_]:
        nearest = np.rint(np.ldexp(np.exp(-released), 53)).astype(np.int64)
        return np.all([noise(nearest + near) != released for near in range(-4, 5)], axis=0)

    def between(released: NDArray[np.float64]) -> NDArray[np.float64]:
        return released[(released >= 1) & (released < 2)]

    assert not impossible_from_zero(between(noise(drawn))).any()
    assert impossible_from_zero(between(1 + noise(drawn))).mean() > 0.3


def test_exact_noise_reaches_the_same_numbers_from_every_value() -> None:
    """Every number within two deviations of either; one is missed once in 10^60 runs."""
    for value in (0, 1):
        released = np.full(20_000, value, dtype=np.int64)
        add_rounded_gaussian(released, sigma=3.0, randomness=SystemRandomness())
        assert set(range(-6, 8)) <= set(released.tolist())
