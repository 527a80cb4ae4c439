"""Events: validation, JSON round trips, joint releases, adjacency."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    Budget,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    Repeated,
    epsilon,
    joint_noise_multiplier,
)
from privacy.accounting.events import event_from_dict, event_to_dict

samplings = st.one_of(
    st.floats(1e-100, 1).map(Poisson),
    st.just(Full()),
    st.integers(1, 10**9).flatmap(
        lambda n: st.integers(1, n).map(lambda m: FixedSize(m, n)),
    ),
)
releases = st.builds(GaussianRelease, st.just(0.0) | st.floats(1e-100, 1e100), samplings)
events = st.one_of(
    releases,
    st.builds(AdditiveDelta, st.floats(0, 1)),
    st.builds(Repeated, releases, st.integers(1, 10**9)),
)


@given(events)
def test_json_keeps_every_bit(event):
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0.0),
        lambda: Poisson(1.1),
        lambda: Poisson(math.nan),
        lambda: Poisson(5e-324),
        lambda: Poisson(1e-101),
        lambda: FixedSize(0, 5),
        lambda: FixedSize(6, 5),
        lambda: GaussianRelease(-1.0, Full()),
        lambda: GaussianRelease(math.inf, Full()),
        lambda: GaussianRelease(math.nan, Full()),
        lambda: GaussianRelease(1e-300, Full()),
        lambda: GaussianRelease(1e300, Full()),
        lambda: AdditiveDelta(-1e-9),
        lambda: AdditiveDelta(math.nan),
        lambda: Budget(0.0, 1e-5),
        lambda: Budget(-math.inf, 1e-5),
        lambda: Budget(math.nan, 1e-5),
        lambda: Budget(1.0, 1e-320),
        lambda: Budget(1.0, 0.0),
        lambda: Budget(1.0, 1.0),
        lambda: epsilon([], delta=0.0),
        lambda: epsilon([], delta=math.nan),
        lambda: epsilon({GaussianRelease(1.0, Full()): -1}, delta=1e-5),
        lambda: epsilon([GaussianRelease(1.0, Full())], delta=1e-5, accountant="gdp"),
        lambda: joint_noise_multiplier(),
        lambda: joint_noise_multiplier(1.0, -2.0),
        lambda: Repeated(GaussianRelease(1.0, Full()), 0),
        lambda: event_from_dict({"kind": "laplace"}),
        lambda: event_from_dict({"kind": "additive-delta"}),
        lambda: event_from_dict({"kind": "additive-delta", "delta": 0.1, "more": 1}),
    ],
)
def test_nonsense_is_refused_with_a_sentence(make):
    with pytest.raises(ValueError, match=r"\w+ .+"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianRelease("1.0", Full()),
        lambda: GaussianRelease(True, Full()),
        lambda: GaussianRelease(1.0, 0.1),
        lambda: FixedSize(2.5, 5),
        lambda: Repeated(GaussianRelease(1.0, Full()), 2.5),
        lambda: epsilon([(1.0, 0.1)], delta=1e-5),
        lambda: Repeated(AdditiveDelta(0.1), 2),
        lambda: event_from_dict({"kind": "gaussian", "noise_multiplier": 1.0, "sampling": "full"}),
    ],
)
def test_wrong_types_are_refused(make):
    with pytest.raises(TypeError, match=r"\w+ .+"):
        make()


def test_cohort_rules_keep_to_their_adjacency():
    fixed = GaussianRelease(1.0, FixedSize(10, 100))
    poisson = GaussianRelease(1.0, Poisson(0.1))
    with pytest.raises(ValueError, match="use replace-one, or Poisson"):
        epsilon([fixed], delta=1e-5, adjacency=Adjacency.ADD_OR_REMOVE_ONE)
    with pytest.raises(ValueError, match="use add-or-remove-one"):
        epsilon([poisson], delta=1e-5, adjacency=Adjacency.REPLACE_ONE)
    with pytest.raises(ValueError, match="Poisson cohort is not accounted"):
        epsilon([poisson, fixed], delta=1e-5)
    with pytest.raises(ValueError, match="use 'rdp'"):
        epsilon([fixed], delta=1e-5, accountant="pld")


def test_a_repeated_release_costs_what_its_repetitions_cost():
    steps = Repeated(GaussianRelease(1.0, Poisson(0.1)), 5)
    assert epsilon([steps, steps], delta=1e-5) == epsilon({steps.release: 10}, delta=1e-5)
    assert epsilon({steps: 3}, delta=1e-5) == epsilon({steps.release: 15}, delta=1e-5)
    fixed = Repeated(GaussianRelease(1.0, FixedSize(10, 100)), 5)
    with pytest.raises(ValueError, match="use replace-one, or Poisson"):
        epsilon([fixed], delta=1e-5, adjacency=Adjacency.ADD_OR_REMOVE_ONE)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_joint_multiplier_is_the_sum_of_precisions_rounded_down(multipliers):
    joint = joint_noise_multiplier(*multipliers)
    exact = sum(z**-2 for z in multipliers) ** -0.5
    assert joint == pytest.approx(exact, rel=1e-12)
    assert joint <= min(multipliers)


def test_joint_multiplier_undoes_andrew_et_al():
    # z_Δ = (z⁻² − (2σ_b)⁻²)^−½ for the model beside a count of ±½ bits with deviation σ_b.
    z, deviation = 1.2, 6.0
    model = (z**-2 - (2 * deviation) ** -2) ** -0.5
    assert joint_noise_multiplier(model, 2 * deviation) == pytest.approx(z, rel=1e-12)
    assert joint_noise_multiplier(1.0, 0.0) == 0.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("delta", [2.3e-308, 1e-5])
def test_whatever_is_not_refused_is_accounted(delta: float, accountant: Any) -> None:
    """At the ends of what doubles hold, and where the curve is steepest: no number too many."""
    for noise in (1e-100, 1e-3, 0.1, 1e100):
        for sampling in (Poisson(1e-100), Poisson(1e-20), Poisson(1e-12), Poisson(1.0), Full()):
            release = GaussianRelease(noise, sampling)
            assert epsilon({release: 1}, delta=delta, accountant=accountant) >= 0
    assert epsilon([AdditiveDelta(delta * (1 - 2**-52))], delta=delta) in (0.0, math.inf)


def test_a_delta_that_cannot_be_accounted_is_refused_by_name() -> None:
    for delta in (5e-324, 1e-320, 1e-310):
        with pytest.raises(ValueError, match=r"delta is .*2.3e-308"):
            epsilon([GaussianRelease(1.0, Poisson(0.1))], delta=delta)


@pytest.mark.parametrize("huge", [10**400, -(10**400)], ids=["", "negative"])
def test_integers_beyond_all_doubles_are_refused_by_name(huge: int) -> None:
    for name, made in {
        "rate": lambda: Poisson(huge),
        "cohort": lambda: FixedSize(huge, 3),
        "population": lambda: FixedSize(3, huge),
        "noise_multiplier": lambda: GaussianRelease(huge, Full()),
        "delta": lambda: AdditiveDelta(huge),
        "epsilon": lambda: Budget(huge, 1e-5),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} is "):
            made()
