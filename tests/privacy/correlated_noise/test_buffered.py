"""BLT: its optimum, what a client moves against every pattern, and buffers that round."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from privacy.accounting import CyclicGroups
from privacy.correlated_noise import (
    BLT,
    BLTFactor,
    CorrelatedNoise,
    MinSeparation,
    NoiseInstance,
    banded_coefficients,
    blt_factor,
    relative_error,
    sensitivity,
    workload,
)
from privacy.correlated_noise.buffered import _Noise
from privacy.mechanisms import SeededRandomness
from tests.privacy.correlated_noise.test_coefficients import brute_force, patterns

ONE = 1 << 16


@pytest.mark.parametrize(
    ("rounds", "separation", "momentum", "expected"),
    [
        (100, 10, 0.0, 0.4403),
        (100, 10, 0.9, 0.3602),
        (1000, 10, 0.9, 0.3272),
        (1000, 100, 0.0, 0.1724),
        (1000, 100, 0.9, 0.1320),
    ],
)
def test_a_few_buffers_leave_little_more_than_bands_do(
    rounds: int, separation: int, momentum: float, expected: float
) -> None:
    factor = blt_factor(4, rounds=rounds, momentum=momentum, separation=separation)
    bands = banded_coefficients(separation, rounds=rounds, momentum=momentum)
    mine, theirs = (
        relative_error(c, rounds=rounds, participation=MinSeparation(separation), momentum=momentum)
        for c in (factor.coefficients, bands)
    )
    assert mine == pytest.approx(expected, abs=1e-3)
    assert theirs < mine < 1.07 * theirs
    assert len(factor.decays) <= 2, "more take memory and gain nothing"


def test_no_buffers_nearby_are_better() -> None:
    draws = np.random.default_rng(1)
    factor = blt_factor(4, rounds=400, momentum=0.0, separation=40)

    def error(factor: BLTFactor) -> float:
        return relative_error(
            factor.coefficients, rounds=400, participation=MinSeparation(40), momentum=0.0
        )

    least = error(factor)
    for _ in range(40):
        moved = [
            tuple(np.rint(np.array(values) * (1 + 0.02 * draws.standard_normal())).astype(int))
            for values in (factor.decays, factor.weights)
        ]
        assert error(BLTFactor(*moved, factor.rows, factor.separation)) >= least * (1 - 1e-3)


def test_the_gradient_is_that_of_the_noise() -> None:
    problem = _Noise(workload(57, momentum=0.9), 10)
    place = np.array([-3.0, -1.0, 0.3, -0.5])
    assert problem(place)[1] == pytest.approx(
        approx_fprime(place, lambda at: problem(at)[0], 1e-7), abs=1e-4
    )
    decay, weight = np.exp(np.split(place, 2))
    weight /= 1 + weight.sum()
    c = np.concatenate([[1.0], weight @ (1 - decay[:, np.newaxis]) ** np.arange(56.0)])
    error = relative_error(c, rounds=57, participation=MinSeparation(10), momentum=0.9)
    alone = problem(np.empty(0))[0]
    assert np.exp((problem(place)[0] - alone) / 2) == pytest.approx(error)


@pytest.mark.parametrize("separation", [1, 3, 4])
def test_a_participation_costs_no_more_than_its_norm_in_any_pattern(separation: int) -> None:
    """Of all patterns of k at least so far apart the longest is √k·norm at most; and one is."""
    factor = BLTFactor((9000, 40_000), (30_000, 20_000), 11, separation)
    c, longest = factor.coefficients, 0.0
    for count in range(1, -(-11 // separation) + 1):
        participation = MinSeparation(separation, count)
        exact = brute_force(c, 11, participation)
        assert sensitivity(c, rounds=11, participation=participation) == pytest.approx(exact)
        longest = max(longest, exact / np.sqrt(count))
    assert factor.norm == pytest.approx(longest, rel=1e-8)
    assert factor.norm > longest
    assert len(list(patterns(11, MinSeparation(separation)))) > 20


def test_what_a_client_moves_is_within_reach_of_rounded_buffers() -> None:
    """By the past of either world, given what was released; its own worst, all in one direction."""
    size, radius, draws = 64, 300, np.random.default_rng(4)
    factor = BLTFactor((500, 30_000), (30_000, 20_000), 24, 5)
    released = draws.integers(-(10**5), 10**5, (24, size))
    others = draws.integers(-(10**4), 10**4, (24, size))
    mine = np.zeros_like(others)
    mine[::5, 0] = radius  # five times, the most there are
    means = []
    for sums in (others, others + mine):
        past, rows = factor.remember(size), []
        for total, row in zip(sums, released, strict=True):
            part = total << 16
            past.take_back(part, 0)
            rows.append(part / ONE)
            past.add(row - total)
        means.append(np.array(rows))
    moved = np.linalg.norm(means[1] - means[0])
    ideal = sensitivity(factor.coefficients, rounds=24, participation=MinSeparation(5)) * radius
    assert moved > 0.999 * ideal
    assert moved != pytest.approx(ideal, rel=1e-7), "rounding is seen"
    assert moved <= np.sqrt(5) * factor.reach(radius, size)
    off = (2**8 + ONE / 500 + 2**8 + ONE / 30_000) / ONE
    paid = radius * factor.norm + np.sqrt(size * 24) * off
    assert factor.reach(radius, size) == pytest.approx(paid, rel=1e-9)


def test_buffers_exceed_the_exact_sums_by_less_than_is_paid() -> None:
    factor = BLTFactor((300, 65_536, 20_000), (20_000, 30_000, 9000), 40, 4)
    past, draws = factor.remember(9), np.random.default_rng(3)
    buffers = [[Fraction(0)] * 9 for _ in factor.decays]
    paid = sum(2**8 + ONE / decay for decay in factor.decays) / ONE
    largest = 0.0
    for t in range(40):
        row = np.zeros(9, int) if t in (3, 17) else draws.integers(-(2**20), 2**20, 9)
        past.add(None if t in (3, 17) else row)
        buffers = [
            [Fraction(ONE - decay, ONE) * v + Fraction(weight, ONE) * x for v, x in pairs]
            for decay, weight, pairs in (
                (decay, weight, zip(buffer, row.tolist(), strict=True))
                for decay, weight, buffer in zip(
                    factor.decays, factor.weights, buffers, strict=True
                )
            )
        ]
        taken = np.zeros(9, dtype=np.int64)
        past.take_back(taken, 0)
        exact = [sum(column, Fraction(0)) for column in zip(*buffers, strict=True)]
        off = [float(Fraction(-n, ONE) - e) for n, e in zip(taken.tolist(), exact, strict=True)]
        assert min(off) >= 0
        largest = max(largest, *off)
    assert paid / 20 < largest < paid


def test_its_memory_is_that_of_its_buffers_however_many_rounds() -> None:
    factor = blt_factor(4, rounds=200, momentum=0.9, separation=20)
    noise, randomness = CorrelatedNoise(factor, sigma=30.0, size=1000), SeededRandomness(1)
    for _ in range(220):
        noise.draw(randomness.bytes(32))
        assert noise.nbytes == 8000 * len(factor.decays)
    with pytest.raises(ValueError, match="for 220 rows"):
        noise.draw(randomness.bytes(32))


def test_a_row_beyond_its_integers_is_refused() -> None:
    factor = BLTFactor((9000,), (60_000,), 11, 3)
    with pytest.raises(OverflowError, match="beyond"):
        factor.remember(2).add(np.array([0, -int(2**6.1 * factor.largest_sigma)]))
    with pytest.raises(ValueError, match=r"noise_multiplier is 100000.0; give at most 1\d\d\d"):
        BLT().sigma(factor, noise_multiplier=1e5, radius=1 << 20, size=9)


def test_it_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    factor, randomness = BLTFactor((9000, 70), (60_000, 7), 40, 3), SeededRandomness(3)
    instance = NoiseInstance.new("a", factor, sigma=30.0, size=100, randomness=randomness)
    noise = instance.noise()
    for row in range(30):
        instance = instance.begin_row(noise, randomness)
        if row == 4:
            noise.skip()
            instance = instance.without(4)
            continue
        assert instance.keys[-1] is not None
        noise.draw(instance.keys[-1])
    instance.save(tmp_path / "noise")
    assert (tmp_path / "noise").stat().st_size < 6000
    again = NoiseInstance.load(tmp_path / "noise")
    assert again == instance
    assert np.array_equal(again.noise().draw(bytes(32)), noise.draw(bytes(32)))


def test_cohorts_drawn_within_a_group_and_wrong_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give sampling=CyclicGroups\(4\)"):
        BLT().check_turns(CyclicGroups(4, 0.5))
    with pytest.raises(ValueError, match="together at most"):
        BLTFactor((5, 5), (40_000, 40_000), 9, 3)
    with pytest.raises(ValueError, match="buffers is 9"):
        BLT(9)


def test_more_groups_than_memory_are_as_many_as_rounds() -> None:
    """Nobody comes twice, however many there are."""
    once = blt_factor(2, rounds=5, momentum=0.5, separation=5)
    many = blt_factor(2, rounds=5, momentum=0.5, separation=10**15)
    assert (many.decays, many.weights) == (once.decays, once.weights)
    assert many.norm == pytest.approx(np.linalg.norm(many.coefficients))
