"""Flower's protocol, beside Flower's own accountant."""

import inspect
import json

import pytest
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyAccountant,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)

from privacy.accounting import FixedSize, GaussianRelease, Poisson, epsilon
from privacy.accounting.flower import FlowerAccountant

DELTA = 1e-5


def config(sampling, population=3383, **options):
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if sampling is SamplingMethod.WITHOUT_REPLACEMENT:
        relation = NeighboringRelation.REPLACE_ONE
    return PrivacyConfig(DELTA, population, relation, sampling, **options)


POISSON = config(SamplingMethod.POISSON, max_epsilon=2.0)
ROUND = GaussianPrivacyEvent(1.2, 120, 3383)


def test_it_has_every_member_of_the_protocol():
    accountant: PrivacyAccountant = FlowerAccountant(POISSON)
    members = {
        name: member
        for name, member in vars(PrivacyAccountant).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }
    assert len(members) == 9
    for name, member in members.items():
        ours = inspect.getattr_static(accountant, name)
        assert type(ours) is type(member)
        if callable(member):
            assert inspect.signature(ours) == inspect.signature(member)


def test_poisson_and_full_participation():
    accountant = FlowerAccountant(POISSON)
    accountant.compose(ROUND, count=100)
    spent = accountant.get_privacy_spent()
    assert spent.epsilon == pytest.approx(1.707, abs=5e-4)
    assert (spent.delta, spent.num_releases, spent.accounting_method) == (DELTA, 100, "pld")
    assert accountant.get_delta(spent.epsilon) == pytest.approx(DELTA, rel=1e-4)
    assert FlowerAccountant(POISSON).get_delta(1.0) == 0.0
    rdp = FlowerAccountant(POISSON, "rdp")
    rdp.compose(ROUND, count=100)
    assert rdp.get_epsilon(DELTA) == pytest.approx(1.986, abs=5e-4)
    full = FlowerAccountant(config(SamplingMethod.NO_AMPLIFICATION))
    full.compose(GaussianPrivacyEvent(1.2, 3383, 3383), count=100)
    # What Flower's accountant has to say of weighted rounds, whatever their cohort.
    theirs = RdpAccountant(config(SamplingMethod.NO_AMPLIFICATION))
    theirs.compose(ROUND, count=100)
    assert theirs.get_epsilon(DELTA) == pytest.approx(72.98, abs=0.01)
    assert full.get_epsilon(DELTA) < 72.98


def test_replace_one_is_charged_for_twice_the_norm_where_flower_is_not():
    event = GaussianPrivacyEvent(1.2, 100, 1000)
    ours = FlowerAccountant(config(SamplingMethod.WITHOUT_REPLACEMENT, 1000))
    ours.compose(event, count=100)
    theirs = RdpAccountant(config(SamplingMethod.WITHOUT_REPLACEMENT, 1000))
    theirs.compose(event, count=100)
    assert theirs.get_epsilon(DELTA) == pytest.approx(11.2, abs=0.05)
    assert ours.get_epsilon(DELTA) == pytest.approx(38.0, abs=0.05)
    expected = epsilon({GaussianRelease(1.2, FixedSize(100, 1000)): 100}, delta=DELTA)
    assert ours.get_epsilon(DELTA) == expected


def test_would_exceed_does_not_compose():
    accountant = FlowerAccountant(POISSON)
    accountant.compose(ROUND, count=10)
    assert not accountant.would_exceed(ROUND)
    assert accountant.would_exceed(ROUND, count=1000)
    limit = epsilon({GaussianRelease(1.2, Poisson(120 / 3383)): 11}, delta=DELTA)
    assert not accountant.would_exceed(ROUND, max_epsilon=limit)
    assert accountant.would_exceed(ROUND, max_epsilon=limit * (1 - 1e-9))
    assert accountant.num_releases == 10
    with pytest.raises(ValueError, match="max_epsilon is None"):
        FlowerAccountant(config(SamplingMethod.POISSON)).would_exceed(ROUND)


def test_state_survives_json_and_only_fits_its_own_configuration():
    accountant = FlowerAccountant(POISSON)
    accountant.compose(ROUND, count=7)
    accountant.compose(GaussianPrivacyEvent(2.0, 60, 3383))
    state = json.loads(json.dumps(accountant.state_dict()))
    again = FlowerAccountant(POISSON)
    again.load_state_dict(state)
    assert again.get_epsilon(DELTA) == accountant.get_epsilon(DELTA)
    with pytest.raises(ValueError, match="config of the state"):
        FlowerAccountant(config(SamplingMethod.POISSON)).load_state_dict(state)
    with pytest.raises(ValueError, match="backend of the state"):
        FlowerAccountant(POISSON, "rdp").load_state_dict(state)
    for broken in ({**state, "compositions": None}, {**state, "compositions": [{"count": 1}]}):
        with pytest.raises((TypeError, ValueError), match="of the state is"):
            again.load_state_dict(broken)
    assert again.num_releases == 8


def test_what_does_not_fit_is_refused():
    accountant = FlowerAccountant(POISSON)
    with pytest.raises(ValueError, match="population_size of the event is 10"):
        accountant.compose(GaussianPrivacyEvent(1.0, 1, 10))
    with pytest.raises(ValueError, match="count is 0"):
        accountant.compose(ROUND, count=0)
    with pytest.raises(ValueError, match="use 'rdp'"):
        FlowerAccountant(config(SamplingMethod.WITHOUT_REPLACEMENT), "pld")
    with pytest.raises(ValueError, match="epsilon is -1"):
        accountant.get_delta(-1.0)
