"""ε in other words never promises more than ε, and is exact where the truth is known."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privacy.accounting import (
    AdditiveDelta,
    DiscreteGaussianSum,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    Repeated,
    attack_advantage,
    attack_success,
    epsilon,
    gaussian_dp,
    without_amplification,
)

DELTA = 1e-5
SAMPLED = {GaussianRelease(1.2, Poisson(0.0355)): 100}


@settings(deadline=None, max_examples=40)
@given(
    z=st.floats(0.2, 100),
    times=st.integers(1, 5),
    delta=st.sampled_from([1e-3, 1e-5, 1e-9]),
    alarms=st.sampled_from([0.001, 0.01, 0.1, 0.5]),
)
def test_a_gaussian_is_what_it_is(z: float, times: int, delta: float, alarms: float) -> None:
    events = {GaussianRelease(z, Full()): times}
    mu = math.sqrt(times) / z
    found = gaussian_dp(events, delta=delta)
    assert mu * (1 - 1e-9) <= found <= mu * 1.06
    rate = attack_success(events, delta=delta, false_alarm_rate=alarms)
    truth = float(norm.cdf(norm.ppf(alarms) + mu))
    assert truth * (1 - 1e-9) <= rate <= truth + 0.01
    variation = float(2 * norm.cdf(mu / 2) - 1)
    assert variation * (1 - 1e-9) <= attack_advantage(events, delta=delta) <= variation + 0.01


def test_no_attack_on_samples_does_better() -> None:
    """The best test of the two worlds themselves, by simulation: 20 standard errors below."""
    z, q, rounds, alarms = 0.8, 0.3, 4, 0.1
    draw = np.random.default_rng(5)

    def losses(present: bool, size: int = 200_000) -> np.ndarray:
        joined = draw.random((size, rounds)) < q if present else np.zeros((size, rounds))
        x = draw.normal(joined, z)
        return np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z))).sum(axis=1)

    threshold = np.quantile(losses(False), 1 - alarms)
    achieved = float((losses(True) > threshold).mean())
    bound = attack_success(
        {GaussianRelease(z, Poisson(q)): rounds}, delta=1e-5, false_alarm_rate=alarms
    )
    assert achieved - 0.005 <= bound <= achieved + 0.05
    assert bound > 2 * alarms


@settings(max_examples=5, deadline=None)
@given(delta=st.floats(1e-5, 0.3))
def test_the_gaussian_is_no_more_private_anywhere(delta: float) -> None:
    mu = gaussian_dp(SAMPLED, delta=DELTA)
    gaussian = {GaussianRelease(1 / mu, Full()): 1}
    assert epsilon(gaussian, delta=delta) >= epsilon(SAMPLED, delta=delta) * (1 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    delta=st.floats(0.99, 1.0, exclude_max=True),
    z=st.sampled_from([2.0, 0.1, 0.03]),
    alarms=st.floats(0.001, 0.9),
)
@example(delta=0.999, z=0.1, alarms=0.1)
@example(delta=1 - 2**-53, z=0.1, alarms=0.1)
def test_every_delta_that_epsilon_answers_has_an_answer(
    delta: float, z: float, alarms: float
) -> None:
    """Next to no promise is one all the same, and it is not under-stated."""
    events = [GaussianRelease(z, Full())]
    truth = float(norm.cdf(norm.ppf(alarms) + 1 / z))
    assert truth * (1 - 1e-9) <= attack_success(events, delta=delta, false_alarm_rate=alarms) <= 1
    spent = epsilon(events, delta=delta)
    assert gaussian_dp(events, delta=delta) >= (1 / z) * (1 - 1e-9) or spent == 0


def test_they_are_ordered_as_epsilon_is() -> None:
    less = {GaussianRelease(2.4, Poisson(0.0355)): 100}
    for measure in (
        lambda events: gaussian_dp(events, delta=DELTA),
        lambda events: attack_advantage(events, delta=DELTA),
        lambda events: attack_success(events, delta=DELTA, false_alarm_rate=0.01),
    ):
        assert measure(less) < measure(SAMPLED) < measure({GaussianRelease(0.3, Full()): 1})


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert gaussian_dp([], delta=DELTA) < 1e-4  # what is (0, δ)-private
    assert attack_success([], delta=DELTA, false_alarm_rate=0.1) == pytest.approx(0.1, abs=2e-5)
    bare = [GaussianRelease(0.0, Full())]
    assert gaussian_dp(bare, delta=DELTA) == math.inf
    assert attack_success(bare, delta=DELTA, false_alarm_rate=0.1) == 1.0
    fixed = {GaussianRelease(30.0, FixedSize(10, 100)): 5}
    assert 0 < gaussian_dp(fixed, delta=DELTA) < 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_a_false_alarm_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="false_alarm_rate"):
        attack_success(SAMPLED, delta=DELTA, false_alarm_rate=rate)


def test_without_amplification_everybody_is_in_every_round() -> None:
    assert without_amplification(GaussianRelease(2.0, Poisson(0.1))) == GaussianRelease(2.0, Full())
    assert without_amplification(AdditiveDelta(1e-9)) == AdditiveDelta(1e-9)
    repeated = Repeated(GaussianRelease(2.0, Poisson(0.1)), 5)
    assert without_amplification(repeated) == Repeated(GaussianRelease(2.0, Full()), 5)
    masked = DiscreteGaussianSum(1e6, 1000, 10, 50, 40, Poisson(0.1))
    plain = without_amplification(masked)
    assert (plain.sampling, plain.shares) == (Full(), 50)
    events = {without_amplification(event): times for event, times in SAMPLED.items()}
    joint = GaussianRelease(0.12, Full())
    assert epsilon(events, delta=DELTA) == pytest.approx(epsilon([joint], delta=DELTA))
