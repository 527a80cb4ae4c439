"""Sums over persons: nobody moves one by more than R + √d cells; noise from the honest silos."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from privacy.accounting import FixedSize, Full, Poisson
from privacy.mechanisms import PersonSum, SeededRandomness, SiloGaussian
from privacy.secure_aggregation import RoundTerms
from privacy.secure_aggregation._masking import centred, ring_bits

FALSE_ALARM = 1e-6

ANY = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-2.0, 2.0),
    st.sampled_from([0.0, 5e-324, -5e-324, 1e-310, 1.0, 1e154, 1e300, -1.7e308]),
)


def vectors(rows: Any, size: int, dtype: Any = np.float64) -> Any:
    return arrays.arrays(dtype, st.tuples(rows, st.just(size)), elements=ANY)


def summed(persons: Any, radius: int, norm: float = 1.0, limit: int | None = None) -> Any:
    total = PersonSum(persons.shape[1], clipping_norm=norm, radius=radius, limit=limit)
    total.add(persons)
    return total.integers()


def squared(integers: Any) -> int:
    return sum(int(i) ** 2 for i in integers)


def within(integers: Any, mechanism: SiloGaussian) -> bool:
    """Exactly: the norm is below R + √d, and so at most the sensitivity that is charged."""
    size, radius = len(integers), mechanism.radius
    # ‖x‖ ≤ R + √d, in rationals: ‖x‖² - R² - d ≤ 2R√d.
    beyond = squared(integers) - radius**2 - size
    below = beyond <= 0 or beyond**2 <= 4 * radius**2 * size
    return below and squared(integers) <= mechanism.sensitivity(size) ** 2


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.sampled_from([1e-12, 0.02, 1.0, 1e12]), st.data())
def test_one_person_moves_a_sum_by_no_more_than_is_charged(
    size: int, bits: int, norm: float, data: st.DataObject
) -> None:
    """Any values beside any others', any radius, norm and limit; exact arithmetic decides."""
    mechanism = SiloGaussian(3, 1, radius=1 << bits)
    others = data.draw(vectors(st.integers(0, 6), size))
    person = data.draw(vectors(st.just(1), size))
    place = data.draw(st.integers(0, len(others)))
    everybody = np.concatenate([others[:place], person, others[place:]])
    limit = data.draw(st.none() | st.integers(1, 2 << bits))
    without, with_person = (
        summed(rows, mechanism.radius, norm, limit) for rows in (others, everybody)
    )
    assert within(with_person - without, mechanism)


def test_the_bound_is_nearly_reached() -> None:
    """A coordinate of just over one cell is carried over to two by the others' fraction."""
    size, radius = 4096, 65
    mechanism = SiloGaussian(3, 1, radius=radius)
    person = np.full((1, size), 1 / math.sqrt(size))  # 65/64 cells each
    others = np.full((1, size), 0.495 / radius)
    moved = summed(np.concatenate([others, person]), radius) - summed(others, radius)
    assert within(moved, mechanism)
    assert squared(moved) == (2 * 64) ** 2  # of (65 + 64)²
    # One that is too small to see by itself moves many cells.
    tiny = np.full((1, size), 0.01 / radius)
    others = np.full((1, size), 0.495 / radius)
    assert squared(summed(tiny, radius)) == 0
    assert squared(summed(np.concatenate([others, tiny]), radius)) == size


@settings(max_examples=200, deadline=None)
@given(vectors(st.integers(1, 8), 5), st.randoms(use_true_random=False), st.data())
def test_sums_are_exact_in_any_order_and_in_any_pieces(
    persons: Any, shuffled: Any, data: st.DataObject
) -> None:
    radius = 1 << 16
    order = list(range(len(persons)))
    shuffled.shuffle(order)
    pieces = PersonSum(5, clipping_norm=0.5, radius=radius)
    cut = data.draw(st.integers(0, len(persons)))
    for part in (persons[order][:cut], persons[order][cut:]):
        pieces.add(part)
    assert np.array_equal(pieces.integers(), summed(persons, radius, 0.5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_within_the_norm_is_summed_as_it_is(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    persons = (rng.standard_normal((50, 300)) / 300).astype(dtype)
    kept = persons.copy()
    radius = 1 << 16
    exact = persons.astype(np.float64).sum(axis=0) * radius * (1 - 2.0**-20)
    assert np.abs(summed(persons, radius) - exact).max() <= 0.5 + 50 * 2.0**-20 + 1e-9
    assert np.array_equal(persons, kept)


def test_longer_ones_are_scaled_to_the_norm_and_broken_ones_add_zero() -> None:
    radius = 1 << 16
    long = np.array([[3.0, 4.0], [3e200, 4e200]])
    assert np.abs(summed(long, radius, 2.0) - 2 * radius * np.array([0.6, 0.8])).max() <= 1
    for broken in (math.nan, math.inf, -math.inf):
        assert not summed(np.array([[broken, 1.0]]), radius).any()
    assert not summed(np.zeros((3, 2)), radius).any()
    assert not summed(np.zeros((0, 2)), radius).any()


def test_more_vectors_than_are_added_at_once() -> None:
    persons = np.random.default_rng(1).standard_normal((5000, 3))
    radius = 1 << 20
    one_by_one = PersonSum(3, clipping_norm=0.1, radius=radius)
    for person in persons:
        one_by_one.add(person[None])
    assert np.array_equal(one_by_one.integers(), summed(persons, radius, 0.1))


def test_the_sum_of_the_fewest_silos_has_the_claimed_noise() -> None:
    """Chi-square and Kolmogorov-Smirnov, each a false alarm in 10⁶ seeds.

    With one silo's share left out, or shares for all of 10 silos where 8 were left, it fails.
    """
    mechanism, z, size = SiloGaussian(8, 2), 1.25, 20_000
    shares = []
    for seed in range(10):
        share = np.zeros(size, dtype=np.int64)
        mechanism.add_share(share, noise_multiplier=z, randomness=SeededRandomness(seed))
        shares.append(share)

    def fits(noise: Any) -> bool:
        """Whether the spread is z·R, for tests of `size` draws."""
        square = float(np.square(noise / (z * mechanism.radius)).sum())
        return bool(
            stats.chi2.isf(1 - FALSE_ALARM / 2, size) < square
            and square < stats.chi2.isf(FALSE_ALARM / 2, size)
        )

    honest = sum(shares[: mechanism.honest])
    assert fits(honest)
    assert stats.kstest(honest / (z * mechanism.radius), "norm").pvalue > FALSE_ALARM
    assert not fits(sum(shares[: mechanism.honest - 1]))
    for_all = SiloGaussian(10, 2).share_variance(z)
    assert not fits(honest * math.sqrt(for_all / mechanism.share_variance(z)))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.data(), st.floats(1e-3, 100))
def test_shares_are_sized_for_the_fewest_honest(silos: int, data: st.DataObject, z: float) -> None:
    colluders = data.draw(st.integers(1, silos - 1))
    mechanism = SiloGaussian(silos, colluders)
    exact = (Fraction(z) * mechanism.radius) ** 2
    total = (silos - colluders) * Fraction(mechanism.share_variance(z))
    assert exact <= total <= exact * Fraction(1 + 2.0**-50)


def test_an_opened_sum_is_in_the_units_of_the_clipping_norm() -> None:
    mechanism = SiloGaussian(3)
    persons = np.array([[0.3, -0.4], [0.03, 0.04]])
    opened = mechanism.open_sum(2, clipping_norm=0.5, persons=2)
    opened.add(persons)
    values = mechanism.decode(opened.integers(), clipping_norm=0.5)
    assert values == pytest.approx(persons.sum(axis=0), abs=1e-5)
    assert values.dtype == np.float64
    for wrong in (np.zeros(3), np.zeros((2, 2), np.int64)):
        with pytest.raises(ValueError, match="one row of int64"):
            mechanism.decode(wrong, clipping_norm=0.5)


@pytest.mark.parametrize("sampling", [Poisson(0.02), Poisson(0.9), Full()])
def test_sums_fit_the_ring(sampling: Any) -> None:
    """Everybody that can be drawn, at the clipping norm in one coordinate, and the noise's tail."""
    mechanism, persons, z = SiloGaussian(8, 1), 50_000, 3.0
    bound = mechanism.bound(parameters=1000, noise_multiplier=z, persons=persons, sampling=sampling)
    rate = sampling.rate if isinstance(sampling, Poisson) else 1.0
    beyond = stats.binom.sf(np.arange(persons + 1), persons, rate)
    most = int(np.argmax(beyond <= 2.0**-101))
    for silos in (8, 20):
        noise = 10 * math.sqrt(silos * mechanism.share_variance(z))
        assert most * mechanism.radius + silos / 2 + noise <= silos * bound
    RoundTerms(run=bytes(16), number=1, size=1000, bound=bound, min_clients=8)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-60, 60), min_size=3, max_size=8),
    st.integers(1, 80),
    st.sampled_from([Poisson(0.1), Full()]),
    st.floats(0.01, 100),
)
def test_no_sum_wraps_around_its_ring_whatever_silos_hold(
    held: list[int], persons: int, sampling: Any, z: float
) -> None:
    """Silos of so many persons, all at the norm in one direction, with N said to be any number."""
    mechanism, silos = SiloGaussian(3, 1), len(held)
    bound = mechanism.bound(parameters=2, noise_multiplier=z, persons=persons, sampling=sampling)
    opened = np.zeros(2, np.int64)
    for count in held:
        total = mechanism.open_sum(2, clipping_norm=1.0, persons=persons, sampling=sampling)
        total.add(np.tile([[0.0, float(np.sign(count))]], (abs(count), 1)))
        opened += total.integers()
    noise = math.ceil(10 * math.sqrt(silos * mechanism.share_variance(z)))
    bits = ring_bits(silos, bound)
    for extreme in (opened - noise, opened + noise):
        assert np.array_equal(centred(extreme.astype(np.uint64) % (1 << bits), bits), extreme)
    if sampling == Full() and sum(map(abs, held)) <= persons:
        each = mechanism.radius * (1 - 2.0**-20)
        assert abs(opened[1] - sum(held) * each) <= silos


def test_a_sum_that_is_cut_says_so_in_the_silos_log(caplog: pytest.LogCaptureFixture) -> None:
    cells = SiloGaussian(3).open_sum(2, clipping_norm=1.0, persons=2)
    cells.add(np.tile([[1.0, 0.0]], (3, 1)))
    assert cells.integers().tolist() == [2 * (1 << 16), 0]
    assert "1 of 2 numbers of this silo's sum are cut" in caplog.text


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"colluders": 0}, ValueError, "each silo knows its own share"),
        ({"colluders": 3}, ValueError, "it must lie above colluders"),
        ({"radius": 2**21}, ValueError, "radius"),
        ({"min_silos": 2.5}, TypeError, "min_silos"),
    ],
)
def test_impossible_settings_are_refused(given: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        SiloGaussian(**{"min_silos": 3, "colluders": 1} | given)


def test_a_fixed_cohort_is_refused() -> None:
    with pytest.raises(ValueError, match="use Poisson"):
        SiloGaussian(3).account(parameters=1, noise_multiplier=1.0, sampling=FixedSize(1, 2))


def test_more_persons_than_64_bits_hold_are_still_added_exactly() -> None:
    """8.4 million at the largest R: in 64 bits of 2⁻²⁰ cells their sum would turn negative."""
    radius = 1 << 20
    together, one = (PersonSum(1, clipping_norm=1.0, radius=radius) for _ in range(2))
    block = np.ones((1 << 19, 1))
    for _ in range(17):
        together.add(block)
    one.add(block[:1])
    each = int(one._together[0])  # in 2⁻²⁰ cells
    assert together.integers()[0] == (17 * (1 << 19) * each + (1 << 19)) >> 20
