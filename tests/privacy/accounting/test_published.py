"""Published and closed-form figures, and the peer whose curves we compose."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import erfc, log_ndtr

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    epsilon,
)

DELTA = 1e-5


def test_reference_setting():
    events = {GaussianRelease(1.2, Poisson(120 / 3383)): 100}
    assert epsilon(events, delta=DELTA, accountant="pld") == pytest.approx(1.707, abs=5e-4)
    assert epsilon(events, delta=DELTA, accountant="rdp") == pytest.approx(1.986, abs=5e-4)


def test_fixed_size_is_charged_for_twice_the_norm():
    # 100 rounds with a tenth of the population each.
    events = {GaussianRelease(1.2, FixedSize(100, 1000)): 100}
    assert epsilon(events, delta=DELTA) == pytest.approx(38.0, abs=0.05)
    # Feeding 1.2 straight through would claim 11.2.
    events = {GaussianRelease(2.4, FixedSize(100, 1000)): 100}
    assert epsilon(events, delta=DELTA) == pytest.approx(11.2, abs=0.05)


@pytest.mark.parametrize(
    ("population", "cohort", "published"),
    [(763_430, 5_000, 4.634), (763_430, 1_250, 2.038), (10**8, 5_000, 1.152)],
)
def test_mcmahan_2018_table_1(population, cohort, published):
    # z = 1, 5,000 rounds, δ = 1e-9, with the paper's own conversion: the moments accountant of
    # Abadi et al. 2016, ε = min over whole α of (T·RDP(α) + log(1/δ)/(α − 1)).
    rounds, delta = 5_000, 1e-9
    accountant = RdpAccountant(orders=range(2, 129))
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(
            cohort / population, dp_accounting.GaussianDpEvent(1.0)
        ),
        rounds,
    )
    papers = min(
        divergence + math.log(1 / delta) / (order - 1)
        for order, divergence in zip(accountant.orders, accountant.rdp, strict=True)
    )
    assert papers == pytest.approx(published, abs=5e-4)
    events = {GaussianRelease(1.0, Poisson(cohort / population)): rounds}
    for ours in ("pld", "rdp"):
        assert epsilon(events, delta=delta, accountant=ours) <= published


def balle_wang_delta(sigma, eps):
    def phi(x):
        return 0.5 * erfc(-x / math.sqrt(2))

    return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)


@given(
    multipliers=st.lists(st.floats(0.3, 50), min_size=1, max_size=5),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
def test_unsampled_gaussians_have_their_closed_form(multipliers, delta):
    events = [GaussianRelease(z, Full()) for z in multipliers]
    ours = epsilon(events, delta=delta)
    joint = sum(z**-2 for z in multipliers) ** -0.5
    assert balle_wang_delta(joint, ours) <= delta * (1 + 1e-9)
    if ours > 1e-6:
        assert balle_wang_delta(joint, ours * (1 - 1e-6)) > delta


@pytest.mark.parametrize("z", [0.8, 1.5, 4.0])
def test_sampled_composition_at_rate_nearly_one_meets_the_closed_form(z):
    exact = epsilon({GaussianRelease(z, Full()): 20}, delta=DELTA)
    numeric = epsilon({GaussianRelease(z, Poisson(1 - 1e-9)): 20}, delta=DELTA)
    assert exact <= numeric * (1 + 1e-7)
    assert numeric == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta"),
    [
        (1.2, 120 / 3383, 10, 1e-5),
        (1.2, 120 / 3383, 1000, 1e-5),
        (0.6, 0.01, 200, 1e-6),
        (3.0, 0.3, 60, 1e-4),
        (0.3, 0.05, 20, 1e-3),
    ],
)
def test_agrees_with_googles_pld_and_never_below_its_optimistic_bound(z, rate, rounds, delta):
    ours = epsilon({GaussianRelease(z, Poisson(rate)): rounds}, delta=delta, accountant="pld")

    def googles(**options):
        single = privacy_loss_distribution.from_gaussian_mechanism(
            z, sampling_prob=rate, value_discretization_interval=1e-3, **options
        )
        return single.self_compose(rounds).get_epsilon_for_delta(delta)

    assert ours >= googles(pessimistic_estimate=False, use_connect_dots=False)
    assert ours == pytest.approx(googles(), rel=1e-3)
    assert ours <= googles() * (1 + 1e-6)


def test_heterogeneous_rounds_agree_with_googles_pld():
    rounds = {(1.2, 0.05): 40, (2.0, 0.2): 30, (0.9, 0.01): 100}
    ours = epsilon(
        {
            **{GaussianRelease(z, Poisson(q)): n for (z, q), n in rounds.items()},
            GaussianRelease(8.0, Full()): 3,
        },
        delta=DELTA,
    )
    composed = privacy_loss_distribution.from_gaussian_mechanism(8.0 / math.sqrt(3))
    for (z, q), n in rounds.items():
        single = privacy_loss_distribution.from_gaussian_mechanism(z, sampling_prob=q)
        composed = composed.compose(single.self_compose(n))
    assert ours == pytest.approx(composed.get_epsilon_for_delta(DELTA), rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    z=st.floats(0.5, 5),
    rate=st.floats(0.001, 0.9),
    rounds=st.integers(1, 300),
    delta=st.sampled_from([1e-4, 1e-6, 1e-9]),
)
def test_pld_is_never_above_renyi_and_grows_with_rounds(z, rate, rounds, delta):
    release = GaussianRelease(z, Poisson(rate))
    pld = epsilon({release: rounds}, delta=delta, accountant="pld")
    assert 0 <= pld <= epsilon({release: rounds}, delta=delta, accountant="rdp")
    # One more round never costs less (the grid may change, and with it the rounding up).
    assert epsilon({release: rounds + 1}, delta=delta) >= pld * (1 - 1e-6)


@settings(max_examples=15, deadline=None)
@given(
    z=st.floats(0.4, 50),
    rate=st.floats(1e-6, 0.9),
    rounds=st.integers(1, 3000),
    digits=st.integers(1, 300),
)
def test_of_renyis_orders_none_is_left_out_that_would_be_tighter(z, rate, rounds, digits):
    """Where δ is below what PLD resolves, Rényi's best order decides."""
    events = {GaussianRelease(z, Poisson(rate)): rounds}
    pld, rdp = (epsilon(events, delta=10.0**-digits, accountant=a) for a in ("pld", "rdp"))
    assert pld <= rdp


@pytest.mark.parametrize("z", [0.46, 0.48, 0.5, 0.52, 0.54, 0.56])
def test_one_round_of_a_tiny_rate_is_near_the_exact_formula(z):
    """Nearly all mass is at 0, where rounding by itself would be as large as δ."""
    rate, delta = 1e-6, 1e-12

    def exact_delta(eps):
        plain = math.log1p(math.expm1(eps) / rate)  # without sampling, where with it ε is eps
        above, below = 0.5 / z - plain * z, -0.5 / z - plain * z
        return rate * (math.exp(log_ndtr(above)) - math.exp(plain + log_ndtr(below)))

    exact = brentq(lambda eps: exact_delta(eps) - delta, 1e-9, 5.0)
    assert exact <= epsilon([GaussianRelease(z, Poisson(rate))], delta=delta) <= 1.45 * exact


def test_deltas_too_small_for_plain_floats_are_still_bounded():
    events = {GaussianRelease(1.2, Poisson(0.03)): 100}
    found = [epsilon(events, delta=10.0**-k) for k in (5, 10, 20, 40)]
    assert found == sorted(found)
    assert found[-1] < math.inf


@pytest.mark.parametrize("sampling", [Poisson(0.1), Full(), FixedSize(1, 10)])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_price_falls_with_noise_to_next_to_nothing(sampling, accountant):
    if isinstance(sampling, FixedSize) and accountant == "pld":
        return
    prices = [
        epsilon([GaussianRelease(z, sampling)], delta=DELTA, accountant=accountant)
        for z in (0.01, 0.1, 1.0, 10.0, 1e3, 1e6, 1e9, 1e15)
    ]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] < 1e-4
    assert prices[0] < math.inf


def test_zero_noise_is_unbounded_and_nothing_is_free():
    for sampling in (Poisson(0.1), Full(), FixedSize(1, 10)):
        for accountant in ("pld", "rdp"):
            if isinstance(sampling, FixedSize) and accountant == "pld":
                continue
            events = [GaussianRelease(0.0, sampling)]
            assert epsilon(events, delta=DELTA, accountant=accountant) == math.inf
    assert epsilon([], delta=DELTA) == 0.0


def test_additive_deltas_are_taken_off():
    round_ = GaussianRelease(1.2, Poisson(0.03))
    with_aborts = epsilon([round_, AdditiveDelta(2e-6), AdditiveDelta(1e-6)], delta=DELTA)
    assert with_aborts == pytest.approx(epsilon([round_], delta=7e-6), rel=1e-9)
    assert epsilon([AdditiveDelta(DELTA)], delta=DELTA) == math.inf
    assert epsilon([AdditiveDelta(DELTA / 2)], delta=DELTA) == 0.0


def test_replace_one_doubles_an_unsampled_sum():
    events = [GaussianRelease(3.0, Full())]
    doubled = epsilon(events, delta=DELTA, adjacency=Adjacency.REPLACE_ONE)
    assert doubled == pytest.approx(epsilon([GaussianRelease(1.5, Full())], delta=DELTA))
