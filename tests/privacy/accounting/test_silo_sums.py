"""Sums over the persons of silos: sampled against the server too, and exact for each observer."""

import json
import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    Budget,
    DiscreteGaussianSum,
    FixedSize,
    Full,
    GaussianRelease,
    Ledger,
    Observer,
    Poisson,
    Repeated,
    SiloSum,
    against,
    against_server,
    attack_success,
    calibrate_noise_multiplier,
    epsilon,
    read_ledger,
    without_amplification,
)
from privacy.accounting.__main__ import main
from privacy.accounting.events import event_from_dict, event_to_dict
from privacy.mechanisms import SiloGaussian
from privacy.training import ClientLedger

STEPS, DELTA, DRAWN = 250, 1e-5, Poisson(0.02)


def step(z=0.8517, silos=50, colluders=1, sampling=DRAWN, dimension=3920):
    mechanism = SiloGaussian(silos, colluders)
    return mechanism.account(parameters=dimension, noise_multiplier=z, sampling=sampling)


def googles(z, rate=0.02, steps=STEPS):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    one = PoissonSampledDpEvent(rate, GaussianDpEvent(z))
    return accountant.compose(SelfComposedDpEvent(one, steps)).get_epsilon(DELTA)


@pytest.mark.parametrize(("silos", "colluders"), [(50, 1), (40, 5), (3, 1)])
@pytest.mark.parametrize("z", [0.8517, 1.4653])
def test_it_costs_what_a_curators_gaussian_of_the_same_noise_costs(silos, colluders, z):
    """Google's accountant at the multiplier that rounding leaves, for the fewest honest silos."""
    event = step(z, silos, colluders)
    rounded = 2**16 + math.ceil(math.sqrt(3920))
    assert event.sensitivity == rounded
    assert event.noise_multiplier == pytest.approx(z * 2**16 / rounded, rel=1e-12)
    assert epsilon({event: STEPS}, delta=DELTA) == pytest.approx(
        googles(event.noise_multiplier), rel=1e-3
    )


def test_every_observer_has_the_shares_that_it_does_not_know():
    event = step(silos=40, colluders=5)
    unknown = {
        Observer.OUTSIDE: 40,
        Observer.SERVER: 40,
        Observer.SILO: 39,
        Observer.SERVER_AND_SILOS: 35,
    }
    for observer, shares in unknown.items():
        seen = against(event, observer)
        assert isinstance(seen, SiloSum)
        assert seen.sampling == DRAWN
        z = math.sqrt(shares * event.variance) / event.sensitivity
        assert seen.noise_multiplier == pytest.approx(z, rel=1e-12)
        repeated = against(Repeated(event, STEPS), observer)
        assert repeated == Repeated(seen, STEPS)
        spent = epsilon([repeated], delta=DELTA)
        assert spent == epsilon({seen: STEPS}, delta=DELTA)
        assert spent == pytest.approx(googles(z), rel=1e-3)
    assert against(event, Observer.SERVER_AND_SILOS) == event


def test_sampling_is_secret_from_the_server_and_not_from_one_who_is_told():
    event = step()
    for one in (event, Repeated(event, 3)):
        assert against_server(one) == one
    drawn = without_amplification(event)
    assert epsilon({drawn: 9}, delta=DELTA) > 5 * epsilon({event: 9}, delta=DELTA)
    z = event.noise_multiplier / 3
    assert epsilon({drawn: 9}, delta=DELTA) == pytest.approx(
        epsilon([GaussianRelease(z, Full())], delta=DELTA), rel=1e-6
    )
    assert without_amplification(Repeated(event, 9)) == Repeated(drawn, 9)


def test_a_failure_of_secure_aggregation_is_charged_with_each_sum():
    event = step(z=9.0)
    plain = event.seen
    assert isinstance(plain, DiscreteGaussianSum)
    for steps in (1, 7):
        charged = [*[plain] * steps, AdditiveDelta(steps * 2.0**-40)]
        assert epsilon([event] * steps, delta=1e-9) == epsilon(charged, delta=1e-9)
    assert epsilon([event], delta=2.0**-41) == math.inf
    assert epsilon([plain], delta=2.0**-41) < math.inf


def test_noise_is_calibrated_for_the_fewest_honest_silos():
    budget = Budget(3.0, DELTA)
    few, many = SiloGaussian(40, 5), SiloGaussian(50, 1)
    z = {
        mechanism: calibrate_noise_multiplier(
            sampling=DRAWN,
            rounds=STEPS,
            budget=budget,
            release=lambda z, mechanism=mechanism: mechanism.account(
                parameters=3920, noise_multiplier=z, sampling=DRAWN
            ),
        )
        for mechanism in (few, many)
    }
    assert z[few] == pytest.approx(z[many], rel=2e-5)
    assert z[few] == pytest.approx(0.8526, abs=2e-4)
    assert few.share_variance(1.0) == pytest.approx(many.share_variance(1.0) * 49 / 35)
    for mechanism, noise in z.items():
        event = mechanism.account(parameters=3920, noise_multiplier=noise, sampling=DRAWN)
        assert 2.999 < epsilon({event: STEPS}, delta=DELTA) <= 3.0


def test_it_composes_with_other_events():
    event = step()
    own = GaussianRelease(2.0, Poisson(0.1))
    both = epsilon([Repeated(event, STEPS), Repeated(own, 100)], delta=DELTA)
    assert both > epsilon([Repeated(event, STEPS)], delta=DELTA)
    as_gaussian = GaussianRelease(event.noise_multiplier, DRAWN)
    assert both == pytest.approx(epsilon({as_gaussian: STEPS, own: 100}, delta=DELTA), rel=1e-4)
    assert 0.01 < attack_success([event], delta=DELTA, false_alarm_rate=0.01) < 0.02
    with pytest.raises(ValueError, match="accounted under replace-one"):
        epsilon([event], delta=DELTA, adjacency=Adjacency.REPLACE_ONE)


def test_the_command_line_derives_each_observers_epsilon_from_the_file(capsys, tmp_path):
    event = step(silos=40, colluders=5)
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="persons of the study") as ledger:
        ledger.append(Repeated(event, STEPS - 1), run="a", round=1)
        ledger.append(event, run="a", round=STEPS)
        assert event_from_dict(event_to_dict(event)) == event
        spent = ledger.epsilon_by_observer(DELTA)
    assert read_ledger(path).events == (Repeated(event, STEPS - 1), event)
    assert main(["ledger", str(path), "--delta", "1e-5"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["epsilon_by_observer"] == {
        observer.value: epsilon({against(event, observer): STEPS}, delta=DELTA)
        for observer in Observer
    }
    assert answer["epsilon_by_observer"] == {o.value: e for o, e in spent.items()}
    assert answer["epsilon_by_observer"]["server-and-silos"] == answer["epsilon"]["pld"]
    assert answer["epsilon_against_server"] == answer["epsilon"]["pld"]


def test_no_observers_where_no_silos_added_up(capsys, tmp_path):
    with Ledger.open(tmp_path / "ledger.jsonl", population="p") as ledger:
        ledger.append(GaussianRelease(1.0, DRAWN), run="a", round=1)
    assert main(["ledger", str(tmp_path / "ledger.jsonl"), "--delta", "1e-5"]) == 0
    assert "epsilon_by_observer" not in json.loads(capsys.readouterr().out)


def test_the_noise_of_a_data_sets_holder_counts_against_everybody(tmp_path):
    path = tmp_path / "ward.jsonl"
    ward = ClientLedger(dataset="ward-7/2025", path=path)
    own = Repeated(GaussianRelease(2.0, Poisson(0.1)), 100)
    ward.charge(own, Repeated(step(), STEPS))
    by_observer = read_ledger(path).epsilon_by_observer(DELTA)
    assert all(math.isfinite(spent) for spent in by_observer.values())
    assert by_observer[Observer.SERVER_AND_SILOS] == ward.epsilon(delta=DELTA)
    against_the_server = read_ledger(path).epsilon_against_server(DELTA)
    assert against_the_server == pytest.approx(ward.epsilon(delta=DELTA))
    # A server's ledger: it added that noise itself, and masked sums of clients are charged.
    with Ledger.open(tmp_path / "server.jsonl", population="p, 100 clients") as ledger:
        ledger.append(own, run="client training", round=1)
        ledger.append(step(), run="a", round=2)
        by_observer = ledger.epsilon_by_observer(DELTA)
    assert by_observer[Observer.SERVER] == math.inf
    assert by_observer[Observer.OUTSIDE] < math.inf


def test_a_masked_sum_of_clients_beside_it_is_charged_against_the_server(tmp_path):
    masked = DiscreteGaussianSum(2.0**34, 2**16, 10, 8, 4, Full())
    with Ledger.open(tmp_path / "server.jsonl", population="p") as ledger:
        ledger.append(masked, run="a", round=1)
        ledger.append(step(z=9.0), run="a", round=2)
        by_observer = ledger.epsilon_by_observer(2.0**-39)
    # Half of it for each; nothing is left against the server.
    assert by_observer[Observer.SERVER] == math.inf
    assert by_observer[Observer.OUTSIDE] < math.inf


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"variance": 0.2}, "at least 1/4"),
        ({"sensitivity": 0}, "sensitivity is 0"),
        ({"dimension": 0}, "dimension is 0"),
        ({"silos": 1, "colluders": 0}, "silos is 1"),
        ({"colluders": 50}, "colluders is 50 and silos 50"),
        ({"colluders": -1}, "colluders is -1"),
    ],
)
def test_impossible_events_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        event_from_dict({**event_to_dict(step()), **change})


def test_a_cohort_of_fixed_size_is_refused():
    with pytest.raises(ValueError, match="use Poisson"):
        step(sampling=FixedSize(1, 2))
    with pytest.raises(TypeError, match="Poisson"):
        SiloSum(4.0, 1, 1, 3, 1, FixedSize(1, 2))  # type: ignore[arg-type]
