"""Sums of discrete Gaussians are bounded from above, and by no more than they cost."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    DiscreteGaussianSum,
    FixedSize,
    Full,
    GaussianRelease,
    Ledger,
    Poisson,
    against_server,
    epsilon,
    read_ledger,
)
from privacy.accounting.events import event_from_dict, event_to_dict
from privacy.accounting.gaussian import as_gaussian, distance_from_one

ZERO_OUT = Adjacency.ZERO_OUT_ONE


FULL = Full()


def release(z=0.937, sampling=FULL, radius=1 << 16, honest=55, shares=None, dimension=10**6):
    shares = shares or honest
    return DiscreteGaussianSum(
        (z * radius) ** 2 / honest, radius, dimension, shares, honest, sampling
    )


def exact_sum(variance, shares, reach):
    """P(X₁ + … + X_n = k) for |k| ≤ reach, by direct convolution with 40 digits."""
    with mpmath.workdps(40):
        one = [
            mpmath.exp(-mpmath.mpf(k * k) / (2 * mpmath.mpf(variance))) for k in range(reach + 1)
        ]
        total = 2 * mpmath.fsum(one) - one[0]
        single = {k: one[abs(k)] / total for k in range(-reach, reach + 1)}
        law = {0: mpmath.mpf(1)}
        for _ in range(shares):
            law = {
                k: mpmath.fsum(
                    p * single[k - j] for j, p in law.items() if -reach <= k - j <= reach
                )
                for k in range(-reach, reach + 1)
            }
        return law


def exact_delta(pairs, loss_above):
    """Σ (P − e^ε Q)⁺."""
    with mpmath.workdps(40):
        factor = mpmath.exp(mpmath.mpf(loss_above))
        return mpmath.fsum(max(p - factor * q, mpmath.mpf(0)) for p, q in pairs)


def shifted_pairs(law, shift, rate=1.0):
    """(P, Q) of one integer with and without a client that moves it by ``shift``."""
    zero, rate = mpmath.mpf(0), mpmath.mpf(rate)
    reach = max(law)
    return [
        ((1 - rate) * law.get(k, zero) + rate * law.get(k - shift, zero), law.get(k, zero))
        for k in range(-reach, reach + shift + 1)
    ]


def product(one, other):
    return [(p * r, q * s) for (p, q), (r, s) in itertools.product(one, other)]


CASES = [
    # variance of a share, shares, reach of the convolution
    (0.25, 3, 12),
    (0.5, 2, 14),
    (1.0, 4, 24),
    (3.0, 3, 32),
]


@pytest.mark.parametrize(("variance", "shares", "reach"), CASES)
def test_the_distance_of_a_sum_from_one_is_never_understated(variance, shares, reach):
    law, one = exact_sum(variance, shares, reach), exact_sum(variance * shares, 1, reach)
    event = DiscreteGaussianSum(variance, 1, 1, shares, shares, Full())
    apart = max(abs(mpmath.log(law[k] / one[k])) for k in range(-reach // 2, reach // 2 + 1))
    assert apart <= distance_from_one(event) / 2
    if shares == 2:  # further ones partly cancel
        assert distance_from_one(event) / 2 <= 3 * apart


@pytest.mark.parametrize(("variance", "shares", "reach"), CASES)
@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_is_above_the_exact_one(variance, shares, reach, rate, accountant):
    """One integer and two, one round and two, both directions; against a direct computation."""
    law = exact_sum(variance, shares, reach)
    sampling = Poisson(rate) if rate < 1 else Full()
    for shift, delta in ((1, 1e-2), (2, 1e-3)):
        pairs = shifted_pairs(law, shift, rate)
        event = DiscreteGaussianSum(variance, shift, 1, shares, shares, sampling)
        claimed = epsilon({event: 1}, delta=delta, accountant=accountant, adjacency=ZERO_OUT)
        twice = epsilon({event: 2}, delta=delta, accountant=accountant, adjacency=ZERO_OUT)
        for directed in (pairs, [(q, p) for p, q in pairs]):
            assert exact_delta(directed, claimed) <= delta
            assert exact_delta(product(directed, directed), twice) <= delta
    # Two integers, moved along the diagonal: norm √2 at most 2.
    event = DiscreteGaussianSum(variance, 2, 2, shares, shares, sampling)
    claimed = epsilon({event: 1}, delta=1e-3, accountant=accountant, adjacency=ZERO_OUT)
    zero = mpmath.mpf(0)
    plane = [
        (
            (1 - rate) * law[a] * law[b] + rate * law.get(a - 1, zero) * law.get(b - 1, zero),
            law[a] * law[b],
        )
        for a, b in itertools.product(law, law)
    ]
    for directed in (plane, [(q, p) for p, q in plane]):
        assert exact_delta(directed, claimed) <= 1e-3


@pytest.mark.parametrize("variance", [0.5, 1.0, 3.0])
def test_a_post_processed_gaussian_is_as_near_as_is_claimed(variance):
    """The integer drawn around a Gaussian, by quadrature, against one discrete Gaussian."""
    near, apart = as_gaussian(DiscreteGaussianSum(variance, 1, 1, 1, 1, FULL))
    spread = near.noise_multiplier**2
    smoothing = variance - spread
    assert smoothing > 0
    step = 0.002
    centres = np.arange(-12 * variance**0.5, 12 * variance**0.5, step)
    density = np.exp(-(centres**2) / (2 * spread)) / math.sqrt(2 * math.pi * spread) * step
    around = np.arange(-40, 41)
    kernel = np.exp(-((around[:, None] - centres) ** 2) / (2 * smoothing))
    drawn = (density * kernel / kernel.sum(axis=0)).sum(axis=1)
    plain = np.exp(-(around**2) / (2 * variance))
    inner = np.abs(around) <= 5 * variance**0.5
    found = np.abs(np.log(drawn[inner] / (plain / plain.sum())[inner])).max()
    assert found <= apart + 1e-9
    assert variance > 0.5 or found > 0.04


@pytest.mark.parametrize("rounds", [1, 5])
def test_the_distance_is_paid_for_each_round(rounds):
    event = DiscreteGaussianSum(0.4, 1, 1, 3, 3, Poisson(0.3))
    near, apart = as_gaussian(event)
    assert apart > 0.01
    alone = epsilon({near: rounds}, delta=1e-4 * math.exp(-rounds * apart))
    claimed = epsilon({event: rounds}, delta=1e-4)
    assert claimed == pytest.approx(alone + 2 * rounds * apart, rel=1e-6)


def test_a_nearby_gaussian_is_near_where_the_lattice_is_fine():
    near, apart = as_gaussian(release())
    assert 0 < apart < 1e-25
    assert 0.937 * (1 - 1e-9) < near.noise_multiplier < 0.937


def test_coarse_lattices_cost_more_and_hopeless_ones_everything():
    fine = epsilon({release(): 100}, delta=1e-5, adjacency=ZERO_OUT)
    coarse = epsilon({release(radius=10): 100}, delta=1e-5, adjacency=ZERO_OUT)
    hopeless = epsilon({release(radius=4): 100}, delta=1e-5, adjacency=ZERO_OUT)
    assert fine < coarse < hopeless
    sampled = release(radius=4, sampling=Poisson(0.1))
    assert epsilon({sampled: 100}, delta=1e-5, adjacency=ZERO_OUT) > 1000


def test_the_two_figures_of_the_plan():
    """z = 0.937, q = 0.1, T = 100, δ = 1e-5: 8 amplified, 101.7 not; distributed noise as much."""
    amplified = epsilon({GaussianRelease(0.937, Poisson(0.1)): 100}, delta=1e-5)
    plain = epsilon({GaussianRelease(0.937, Full()): 100}, delta=1e-5)
    assert amplified == pytest.approx(8.0, abs=0.03)
    assert plain == pytest.approx(101.7, abs=0.1)
    event = release(sampling=Poisson(0.1))
    assert amplified <= epsilon({event: 100}, delta=1e-5) <= amplified * (1 + 1e-6)
    against = {against_server(event): 100}
    assert plain <= epsilon(against, delta=1e-5, adjacency=ZERO_OUT) <= plain * (1 + 1e-6)


def test_renyi_of_an_unsampled_sum_is_the_papers_bound():
    """Proposition 14 and the conversion of Canonne et al., computed apart."""
    event, rounds, delta = release(z=2.0, radius=12, honest=7, dimension=500), 20, 1e-6
    variance, d, n, radius = event.variance, 500, 7, 12
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, n))
    total = math.sqrt(n * variance)
    best = math.inf
    for order in np.arange(1.01, 200, 0.01):
        divergence = min(
            order / 2 * (radius / total) ** 2 + tau * d,
            order / 2 * (radius / total + tau * math.sqrt(d)) ** 2,
        )
        found = rounds * divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, found)
    claimed = epsilon({event: rounds}, delta=delta, accountant="rdp", adjacency=ZERO_OUT)
    assert best * (1 - 1e-9) <= claimed <= best * 1.01


def test_composes_with_other_events():
    event, other = release(sampling=Poisson(0.1)), GaussianRelease(1.0, Poisson(0.1))
    alone = epsilon({event: 50}, delta=1e-5)
    both = epsilon({event: 50, other: 50}, delta=1e-5)
    assert alone < both
    assert both == pytest.approx(
        epsilon({GaussianRelease(0.937, Poisson(0.1)): 50, other: 50}, delta=1e-5), rel=1e-6
    )
    charged = epsilon([*[event] * 50, AdditiveDelta(5e-6)], delta=1e-5)
    assert charged == pytest.approx(epsilon({event: 50}, delta=5e-6), rel=1e-6)


def test_more_shares_than_honest_ones_help_against_those_who_see_the_model_only():
    one = release(sampling=Poisson(0.1), honest=55, shares=150)
    few = release(sampling=Poisson(0.1), honest=55, shares=55)
    assert one.noise_multiplier > 1.6 * few.noise_multiplier
    assert epsilon({one: 100}, delta=1e-5) < epsilon({few: 100}, delta=1e-5)
    against = [epsilon({against_server(e): 9}, delta=1e-5, adjacency=ZERO_OUT) for e in (one, few)]
    assert against[0] == against[1]


def test_what_an_overflow_may_show_is_charged_where_the_server_completes():
    whole, completed = (release(z=9.0, sampling=Poisson(0.1), shares=n) for n in (55, 60))
    for accountant in ("pld", "rdp"):
        low = {"delta": 2.0**-59, "accountant": accountant}
        assert epsilon({completed: 1}, **low) < math.inf
        assert epsilon({completed: 2}, **low) == math.inf
        assert epsilon({whole: 2}, **low) < math.inf
        assert epsilon({against_server(completed): 2}, adjacency=ZERO_OUT, **low) < math.inf
        # Beyond ε = 27 the charge would no longer cover it.
        weak = release(z=0.1, sampling=Poisson(0.1), shares=60)
        assert epsilon({weak: 1}, delta=1e-5, accountant=accountant) == math.inf
        assert 27 < epsilon({release(z=0.1): 1}, delta=1e-5, accountant=accountant) < math.inf


def test_the_server_sees_its_own_noise():
    event = against_server(GaussianRelease(3.0, Poisson(0.1)))
    assert epsilon([event], delta=1e-5, adjacency=ZERO_OUT) == math.inf
    assert against_server(AdditiveDelta(1e-7)) == AdditiveDelta(1e-7)


def test_adjacencies():
    event = release(sampling=Poisson(0.1))
    assert epsilon([event], delta=1e-5) == epsilon([event], delta=1e-5, adjacency=ZERO_OUT)
    for wrong, adjacency in (
        (event, Adjacency.REPLACE_ONE),
        (GaussianRelease(1.0, FixedSize(10, 100)), ZERO_OUT),
    ):
        with pytest.raises(ValueError, match="accounted under"):
            epsilon([wrong], delta=1e-5, adjacency=adjacency)
    doubled = epsilon([release(z=2.0)], delta=1e-5, adjacency=Adjacency.REPLACE_ONE)
    assert doubled == pytest.approx(epsilon([release(z=1.0)], delta=1e-5), rel=1e-6)
    renyi = epsilon([release(z=2.0)], delta=1e-5, adjacency=Adjacency.REPLACE_ONE, accountant="rdp")
    assert renyi == pytest.approx(epsilon([release(z=1.0)], delta=1e-5, accountant="rdp"), rel=1e-6)


def test_the_ledger_keeps_and_answers_both_figures(tmp_path):
    event = release(sampling=Poisson(0.1), honest=55, shares=150)
    assert event_from_dict(event_to_dict(event)) == event
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="p") as ledger:
        for number in (1, 2):
            ledger.append(event, run="a", round=number)
            ledger.append(AdditiveDelta(1e-9), run="a", round=number)
        assert ledger.epsilon(1e-5) == read_ledger(path).epsilon(1e-5)
        against = ledger.epsilon_against_server(1e-5)
    contents = read_ledger(path)
    assert contents.records[0].event == event
    assert contents.epsilon_against_server(1e-5) == against
    assert against == pytest.approx(
        epsilon({GaussianRelease(0.937, Full()): 2}, delta=1e-5 - 2e-9), rel=1e-6
    )
    with Ledger.open(path, population="p") as ledger:
        ledger.append(GaussianRelease(1.0, Poisson(0.1)), run="b", round=1)
        assert ledger.epsilon_against_server(1e-5) == math.inf
        assert ledger.epsilon(1e-5) < math.inf


def test_what_secure_aggregation_may_fail_to_hide_is_charged_against_the_server(tmp_path):
    with Ledger.open(tmp_path / "ledger.jsonl", population="p") as ledger:
        ledger.append(release(sampling=Poisson(0.1)), run="a", round=1)
        assert ledger.epsilon_against_server(1e-12) < math.inf
        ledger.append(release(sampling=Poisson(0.1)), run="a", round=2)
        # Twice 2⁻⁴⁰ is more than this δ.
        assert ledger.epsilon_against_server(1e-12) == math.inf
        assert ledger.epsilon(1e-12) < math.inf


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"variance": 0.2}, "at least 1/4"),
        ({"variance": math.inf}, "at least 1/4"),
        ({"sensitivity": 0}, "sensitivity is 0"),
        ({"dimension": 0}, "dimension is 0"),
        ({"shares": 10}, "honest is 55 and shares 10"),
        ({"honest": 0}, "honest is 0"),
    ],
)
def test_impossible_events_are_refused(change, match):
    fields = event_to_dict(release(sampling=Full()))
    with pytest.raises(ValueError, match=match):
        event_from_dict({**fields, **change})
    with pytest.raises((ValueError, TypeError), match="FixedSize"):
        event_from_dict(
            {**fields, "sampling": event_to_dict(GaussianRelease(1.0, FixedSize(1, 2)))["sampling"]}
        )
