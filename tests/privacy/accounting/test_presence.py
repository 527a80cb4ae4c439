"""A client whose presence decides whether a round opens is paid for."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import AdditiveDelta, FixedSize, Full, Poisson, presence_delta
from privacy.secure_aggregation import Adversary, RoundPlan, plan_round


def planned(min_clients, tolerated):
    def opening(clients, cohort):
        try:
            return plan_round(
                clients,
                adversary=Adversary(max_corrupt_fraction=0.05),
                max_dropout_fraction=tolerated,
                min_clients=min_clients,
                cohort=cohort,
            )
        except ValueError:
            return None

    return opening


def everybody(survivors):
    """A complete graph that opens with so many survivors."""

    def opening(clients, cohort):
        if clients < max(survivors, 3):
            return None
        return RoundPlan(clients, clients - 1, survivors - 1, survivors, cohort)

    return opening


def exact_decisions(population, rate, dropout_probability, opening, max_clients=None):
    """The probability that one client's presence may decide, by enumeration of all others.

    How many of those who drop out did so before they announced themselves is the worst case.
    """

    opening = cache(opening)

    def opens(announced, survived, drawn):
        plan = opening(announced, drawn)
        if plan is None or (max_clients is not None and announced > max_clients):
            return False
        return survived >= plan.min_survivors

    total = 0.0
    others = population - 1
    for drawn in range(others + 1):
        for lost in range(drawn + 1):
            chance = stats.binom.pmf(drawn, others, rate) * stats.binom.pmf(
                lost, drawn, dropout_probability
            )
            for drops in (0, 1):
                own = dropout_probability if drops else 1 - dropout_probability
                survived = drawn - lost
                differs = any(
                    opens(announced, survived, drawn)
                    != opens(announced + joins, survived + 1 - drops, drawn + 1)
                    for joins in ((0, 1) if drops else (1,))
                    for announced in range(survived, drawn + 1)
                )
                total += chance * own * rate * differs
    return total


@pytest.mark.parametrize("rate", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("dropout_probability", [0.0, 0.1])
@pytest.mark.parametrize("survivors", [4, 9])
@pytest.mark.parametrize("max_clients", [None, 14])
def test_it_covers_what_enumeration_finds(rate, dropout_probability, survivors, max_clients):
    opening = everybody(survivors)
    sampling = Poisson(rate) if rate < 1 else Full()
    charged = presence_delta(
        population=20,
        sampling=sampling,
        dropout_probability=dropout_probability,
        opening=opening,
        max_clients=max_clients,
    ).delta
    exact = exact_decisions(20, rate, dropout_probability, opening, max_clients)
    assert exact <= charged
    # Not far above: the charge counts all rounds that the others alone do not open.
    fails = rate * stats.binom.cdf(survivors - 1, 19, rate * (1 - dropout_probability))
    if max_clients is not None:
        fails += rate * stats.binom.sf(max_clients - 1, 19, rate)
    assert charged <= fails * (1 + 1e-5) + 1e-15


@pytest.mark.parametrize("tolerated", [0.2, 0.35])
def test_it_covers_the_protocols_own_plans(tolerated):
    opening = planned(10, tolerated)
    charged = presence_delta(
        population=60, sampling=Poisson(0.4), dropout_probability=0.05, opening=opening
    ).delta
    assert exact_decisions(60, 0.4, 0.05, opening) <= charged < 0.4


@dataclass(frozen=True)
class Sparse:
    neighbours: int
    threshold: int
    min_survivors: int


def test_clients_left_alone_are_charged():
    """Ten of 40 neighbours of 100 clients suffice; then 35: a common failure."""
    charges = [
        presence_delta(
            population=100,
            sampling=Full(),
            dropout_probability=0.05,
            opening=lambda n, m, t=threshold: Sparse(40, t, 60),
        ).delta
        for threshold in (10, 35)
    ]
    assert charges[0] < 1e-9
    one = stats.binom.sf(5, 40, 0.05)
    assert charges[1] == pytest.approx(min(1.0, 2 * 100 * one), rel=1e-5)


def test_a_sensible_plan_costs_next_to_nothing():
    """1,000 clients, a tenth of them a round, 75 rounds: δ = 1e-5 hardly notices."""
    delta = presence_delta(
        population=1000,
        sampling=Poisson(0.1),
        dropout_probability=0.02,
        opening=everybody(40),
        max_clients=160,
    ).delta
    assert 0 < 75 * delta < 1e-7
    tight = presence_delta(
        population=1000, sampling=Poisson(0.1), dropout_probability=0.02, opening=everybody(90)
    ).delta
    assert tight > 1e-3


def test_a_round_with_its_charge_is_as_private_as_the_release():
    """One client more or less of six, exactly: the charge is needed, and it suffices.

    Others hold 0, the client 1; a round of at least three is opened, with Gaussian noise.
    """
    others, rate, z, survivors = 5, 0.5, 1.0, 3
    grid = np.arange(-12.0, 13.0, 0.001)
    density = stats.norm.pdf(grid, scale=z) * 0.001
    moved = stats.norm.pdf(grid - 1, scale=z) * 0.001
    counts = stats.binom.pmf(range(others + 1), others, rate)

    def law(present):
        """What is seen: that nothing opened, or the size of the others' cohort and the sum."""
        closed, opened = 0.0, []
        for count, chance in enumerate(counts):
            drawn = rate if present else 0.0
            alone, joined = count >= survivors, count + 1 >= survivors
            closed += chance * ((1 - drawn) * (not alone) + drawn * (not joined))
            opened.append(chance * ((1 - drawn) * alone * density + drawn * joined * moved))
        return np.concatenate([[closed], *opened])

    def delta(p, q, factor):
        return np.maximum(p - factor * q, 0).sum()

    charge = presence_delta(
        population=others + 1,
        sampling=Poisson(rate),
        dropout_probability=0.0,
        opening=everybody(survivors),
    ).delta
    with_client, without = law(present=True), law(present=False)
    amplified = (1 - rate) * density + rate * moved
    for factor in (1.0, math.e, math.e**3):
        for p, q, sampled, plain in (
            (with_client, without, amplified, density),
            (without, with_client, density, amplified),
        ):
            assert delta(p, q, factor) <= delta(sampled, plain, factor) + charge
    uncharged = delta(amplified, density, math.e**3)
    assert delta(with_client, without, math.e**3) > 3 * uncharged


def test_plans_are_made_for_cohorts_that_are_drawn():
    asked = set()

    def opening(clients, cohort):
        asked.add(cohort)
        return Sparse(40, 10, 700)

    presence_delta(population=1000, sampling=Full(), dropout_probability=0.05, opening=opening)
    assert asked == {999, 1000}  # without the client and with it
    asked.clear()
    presence_delta(population=1000, sampling=Poisson(0.5), dropout_probability=0.4, opening=opening)
    assert stats.binom.cdf(min(asked), 999, 0.5) > 1e-18 < stats.binom.sf(max(asked) - 2, 999, 0.5)


def test_a_cohort_of_fixed_size_is_not_charged():
    free = presence_delta(
        population=100, sampling=FixedSize(50, 100), dropout_probability=0.5, opening=everybody(40)
    )
    assert free == AdditiveDelta(0.0)


def test_what_never_opens_costs_the_rate():
    closed = presence_delta(
        population=50,
        sampling=Poisson(0.2),
        dropout_probability=0.0,
        opening=lambda clients, cohort: None,
    )
    assert closed.delta == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"population": 0}, "population is 0"),
        ({"dropout_probability": 1.0}, "dropout_probability is 1.0"),
        ({"dropout_probability": math.nan}, "dropout_probability is nan"),
    ],
)
def test_impossible_settings_are_refused(change, match):
    settings = {"population": 10, "sampling": Poisson(0.5), "dropout_probability": 0.1}
    with pytest.raises(ValueError, match=match):
        presence_delta(**{**settings, **change}, opening=everybody(3))


def test_pairs_of_dropouts_and_plans_are_all_looked_at():
    """The need for survivors may jump between n and n + 1; both sides of the jump count."""

    def up(clients, cohort):
        return Sparse(clients - 1, 2, 5 if clients < 12 else 11)

    def down(clients, cohort):
        return Sparse(clients - 1, 2, 11 if clients < 12 else 5)

    for jump, population, rate, dropout_probability in itertools.product(
        (up, down), (15, 25), (0.5, 0.8), (0.0, 0.2)
    ):
        charged = presence_delta(
            population=population,
            sampling=Poisson(rate),
            dropout_probability=dropout_probability,
            opening=jump,
        ).delta
        assert exact_decisions(population, rate, dropout_probability, jump) <= charged
