"""Published and closed-form figures."""

import pytest

from privacy.accounting import Adjacency, FixedSize, GaussianRelease, Poisson, epsilon

DELTA = 1e-5


def test_dp_fedavg_setting_of_reference():
    events = {GaussianRelease(1.2, Poisson(120 / 3383)): 100}
    assert epsilon(events, delta=DELTA, accountant="pld") == pytest.approx(1.707, abs=5e-4)
    assert epsilon(events, delta=DELTA, accountant="rdp") == pytest.approx(1.986, abs=5e-4)


def test_fixed_size_is_charged_for_twice_the_norm():
    # 100 rounds with a tenth of the population each.
    events = {GaussianRelease(1.2, FixedSize(100, 1000)): 100}
    assert epsilon(events, delta=DELTA) == pytest.approx(38.0, abs=0.05)
    # Feeding 1.2 straight through would claim 11.2.
    events = {GaussianRelease(2.4, FixedSize(100, 1000)): 100}
    claimed = epsilon(events, delta=DELTA, adjacency=Adjacency.REPLACE_ONE)
    assert claimed == pytest.approx(11.2, abs=0.05)
