"""Calibration never passes its target, and comes near it."""

import pytest

from privacy.accounting import (
    Budget,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    calibrate_noise_multiplier,
    calibrate_rounds,
    calibrate_sampling_rate,
    epsilon,
)


@pytest.mark.parametrize(
    ("target", "rounds", "sampling"),
    [
        (3.0, 100, Poisson(0.1)),
        (0.2, 1, Poisson(0.02)),
        (20.0, 200, Full()),
        (1.0, 30, FixedSize(10, 100)),
    ],
)
def test_noise_multiplier(target, rounds, sampling):
    budget = Budget(target, 1e-5)
    z = calibrate_noise_multiplier(sampling=sampling, rounds=rounds, budget=budget)

    def cost(multiplier):
        return epsilon({GaussianRelease(multiplier, sampling): rounds}, delta=budget.delta)

    assert cost(z) <= target
    assert cost(z * (1 - 1e-4)) > target


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_rounds(accountant):
    release, budget = GaussianRelease(1.2, Poisson(120 / 3383)), Budget(2.0, 1e-5)
    rounds = calibrate_rounds(
        noise_multiplier=1.2, sampling=release.sampling, budget=budget, accountant=accountant
    )
    assert epsilon({release: rounds}, delta=1e-5, accountant=accountant) <= 2.0
    assert epsilon({release: rounds + 1}, delta=1e-5, accountant=accountant) > 2.0


def test_sampling_rate():
    budget = Budget(2.0, 1e-5)
    rate = calibrate_sampling_rate(noise_multiplier=1.2, rounds=100, budget=budget)

    def cost(q):
        return epsilon({GaussianRelease(1.2, Poisson(q)): 100}, delta=1e-5)

    assert cost(rate) <= 2.0 < cost(rate * 1.0001)
    assert calibrate_sampling_rate(noise_multiplier=500.0, rounds=1, budget=budget) == 1.0


def test_what_is_spent_is_not_spent_again():
    spent = {GaussianRelease(1.2, Poisson(0.03)): 100}
    budget = Budget(3.0, 1e-5)
    z = calibrate_noise_multiplier(sampling=Poisson(0.03), rounds=50, budget=budget, spent=spent)
    both = {**spent, GaussianRelease(z, Poisson(0.03)): 50}
    assert 2.99 < epsilon(both, delta=1e-5) <= 3.0


def test_the_impossible_is_refused_with_the_settings():
    spent = {GaussianRelease(0.3, Full()): 1}
    with pytest.raises(ValueError, match=r"epsilon 1 at delta 1e-05 in 10 rounds, of which"):
        calibrate_noise_multiplier(
            sampling=Poisson(0.1), rounds=10, budget=Budget(1.0, 1e-5), spent=spent
        )
    with pytest.raises(ValueError, match=r"not one round with noise multiplier 0.5"):
        calibrate_rounds(noise_multiplier=0.5, sampling=Full(), budget=Budget(1.0, 1e-5))
    with pytest.raises(ValueError, match=r"no sampling rate .* noise multiplier 0 in 3 rounds"):
        calibrate_sampling_rate(noise_multiplier=0.0, rounds=3, budget=Budget(1.0, 1e-5))
    with pytest.raises(ValueError, match="rounds is 0"):
        calibrate_noise_multiplier(sampling=Full(), rounds=0, budget=Budget(1.0, 1e-5))
