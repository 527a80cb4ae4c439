"""Noise: what is drawn is exactly what is accounted for.

Statistical tests draw from a seed, so that they cannot flicker; each threshold is set for a
false alarm once in a million seeds.
"""

import inspect
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms import (
    SeededRandomness,
    SystemRandomness,
    add_gaussian,
    add_rounded_gaussian,
)
from privacy.mechanisms import _exact_arithmetic as _exact
from privacy.mechanisms import _rejection_sampling as _proposals
from privacy.mechanisms import gaussian as noise
from privacy.mechanisms._exact_arithmetic import (
    LazyUniform,
    cumulative_bounds,
    exp_bounds,
    pick_cell,
)
from tests.privacy.mechanisms.draws import gaussian, rounded_gaussian

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


def test_the_fast_way_decides_as_the_exact_one():
    count, sigma = 3_000, 2.0**40
    batch = _proposals.propose_batch(count, SeededRandomness(16))
    raw = SeededRandomness(16).bytes(16 * count)
    places = np.frombuffer(raw, np.uint64, count)
    accepts = np.frombuffer(raw, np.uint32, count, 8 * count)
    tops = np.frombuffer(raw, np.uint16, count, 12 * count).astype(int)
    rests = np.frombuffer(raw, np.uint16, count, 14 * count).astype(int)
    assert not batch.settled
    more = SeededRandomness(17)
    for i in range(count):
        place = LazyUniform(int(places[i]), 64, more)
        j = _exact.propose(
            LazyUniform(int(tops[i] << 15 | rests[i] >> 1), 31, more),
            LazyUniform(int(accepts[i]), 32, more),
            place,
        )
        assert batch.accepted[i] == (j is not None)
        if j is not None:
            assert batch.cell[i] == j
            assert batch.sign[i] == (-1 if rests[i] & 1 else 1)
    # Rounding: a σ so wide that doubles often cannot decide, against exact arithmetic.
    values = rounded_gaussian(count // 2, sigma=sigma, randomness=SeededRandomness(16))
    size = noise_batch_size(count // 2)
    batch = _proposals.propose_batch(size, SeededRandomness(16))
    exact = [
        int(batch.sign[i])
        * _exact.rounded(
            int(batch.cell[i]), LazyUniform(int(batch.raw_place[i]), 64, more), Fraction(sigma)
        )
        for i in np.flatnonzero(batch.accepted)
    ]
    assert values.tolist() == exact[: count // 2]


def test_half_integers_are_decided_exactly():
    # A σ for which the first draw lies next to a half-integer, where doubles are no judge.
    for seed in range(200):
        batch = _proposals.propose_batch(noise_batch_size(1), SeededRandomness(seed))
        i = int(np.flatnonzero(batch.accepted)[0])
        j, k = int(batch.cell[i]), 10**9 + seed
        x = (j + Fraction(float(batch.place[i]))) / 16
        sigma = float((k + Fraction(1, 2)) / x)
        place = LazyUniform(int(batch.raw_place[i]), 64, SeededRandomness(seed + 1))
        exact = int(batch.sign[i]) * _exact.rounded(j, place, Fraction(sigma))
        assert abs(exact) in (k, k + 1)
        drawn = rounded_gaussian(1, sigma=sigma, randomness=SeededRandomness(seed))
        assert drawn.tolist() == [exact]


def noise_batch_size(size):
    """How many proposals the first batch for ``size`` draws makes."""
    sizes = []

    def draws(count):
        sizes.append(count)
        return np.zeros(count, dtype=np.int64)

    _proposals.add_accepted(np.zeros(size, dtype=np.int64), draws)
    return sizes[0]


def test_the_exact_way_alone_has_the_right_distribution():
    # No bit known in advance: every decision is made by lazily extended bits.
    randomness, sigma, values = SeededRandomness(18), Fraction(7, 10), []
    while len(values) < 4_000:
        place = LazyUniform(0, 0, randomness)
        j = _exact.propose(LazyUniform(0, 0, randomness), LazyUniform(0, 0, randomness), place)
        if j is not None:
            sign = 1 - 2 * (randomness.bytes(1)[0] & 1)
            values.append(sign * _exact.rounded(j, place, sigma))
    assert chi_square_p(np.array(values), 0.7) > FALSE_ALARM


def test_no_tail_is_cut():
    # The 31 bits 0…0 leave infinitely many cells: those with C(j) < 2⁻³¹.
    randomness = SeededRandomness(19)
    cells = np.array([pick_cell(LazyUniform(0, 31, randomness)) for _ in range(3_000)])
    weights = np.array([float(mpmath.exp(-mpmath.mpf(j * j) / 512)) for j in range(400)])
    tail = np.cumsum(weights[::-1])[::-1] / weights.sum()
    first = int(np.flatnonzero(tail * 2.0**31 < 1)[0]) - 1
    conditional = np.minimum(tail * 2.0**31, 1.0)
    probabilities = conditional[first:-1] - conditional[first + 1 :]
    assert cells.min() >= first
    shown = probabilities * len(cells) >= 10
    last = int(np.flatnonzero(shown)[-1])
    counts = np.bincount(cells - first, minlength=last + 1)
    counts = np.append(counts[: last + 1], counts[last + 1 :].sum())
    expected = np.append(probabilities[: last + 1], probabilities[last + 1 :].sum()) * len(cells)
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


class FarOut(SeededRandomness):
    """A seed whose proposals all have the cell bits 0…0, which doubles cannot decide."""

    def bytes(self, count):
        drawn = super().bytes(count)
        return drawn[: count - count // 4] + bytes(count // 4) if count > 16 else drawn


@pytest.mark.parametrize("draw", [gaussian, rounded_gaussian])
def test_what_doubles_cannot_decide_is_settled_exactly(draw):
    x = draw(200, sigma=2.0**20, randomness=FarOut(23)) / 2.0**20
    # |Z| beyond the cells with C(j) ≥ 2⁻³¹, and falling off as the normal tail does there.
    assert 6.0 < x.min() < x.max() < 8.5
    tail = stats.norm.sf(x) / stats.norm.sf(x.min())
    assert stats.kstest(tail, "uniform").pvalue > FALSE_ALARM


@settings(deadline=None)
@given(x=st.fractions(0, 20, max_denominator=10**6), precision=st.integers(8, 200))
def test_exponential_bounds_enclose(x, precision):
    low, high = exp_bounds(x, precision)
    with mpmath.workprec(precision + 60):
        exact = mpmath.exp(-mpmath.mpf(x.numerator) / x.denominator) * 2**precision
    assert low <= exact <= high
    assert high - low <= 64


@pytest.mark.parametrize("precision", [64, 128, 192])
def test_cumulative_bounds_enclose(precision):
    bounds = cumulative_bounds(precision)
    with mpmath.workprec(precision + 200):
        weights = [mpmath.exp(-mpmath.mpf(j * j) / 512) for j in range(800)]
        total = mpmath.fsum(weights)
        for j in range(0, len(bounds), 7):
            exact = mpmath.fsum(weights[j:]) / total * 2**precision
            assert bounds[j][0] <= exact <= bounds[j][1]
            assert bounds[j][1] - bounds[j][0] <= 4


def test_a_guide_that_disagrees_with_the_cells_would_show():
    guide, thresholds = _proposals.cell_guide()
    assert (thresholds >> 15).max() < 1 << 16
    for top in [0, 1, 77, 4_000, 31_337, 65_000, 65_535]:
        for rest in (0, 1 << 14, (1 << 15) - 1):
            if guide[top] != _proposals.CROSSED:
                exact = pick_cell(LazyUniform(top << 15 | rest, 31, SeededRandomness(20)))
                assert guide[top] == exact
    assert np.count_nonzero(guide == _proposals.CROSSED) <= len(thresholds)


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
