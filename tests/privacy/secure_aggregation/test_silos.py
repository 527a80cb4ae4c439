"""Few silos: sums are opened with as many as were said, whoever is absent, and to nobody else."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import Poisson
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.secure_aggregation import (
    Adversary,
    FewSilos,
    RoundPlan,
    SecureServer,
    ServerModel,
    plan_round,
)
from privacy.secure_aggregation.errors import RoundAbortedError, UnacceptableTermsError
from tests.privacy.secure_aggregation.federation import Federation, draw_vectors

BOTH = pytest.mark.parametrize("server", list(ServerModel), ids=lambda model: model.value)
MASKING = 3


def federation(silos: FewSilos) -> Federation:
    return Federation(silos.silos, silos.adversary, min_clients=silos.min_silos)


def server_of(silos: FewSilos, made: Federation, size: int) -> SecureServer:
    return made.server(made.terms(size), max_dropout_fraction=None)


@pytest.mark.parametrize(
    ("count", "colluders", "min_silos", "threshold"),
    [(3, 1, 3, 2), (4, 1, 4, 3), (5, 1, 4, 3), (10, 1, 8, 6), (10, 3, 8, 7), (50, 1, 40, 26)],
)
def test_sensible_defaults_for_few(
    count: int, colluders: int, min_silos: int, threshold: int
) -> None:
    silos = FewSilos(count, colluders)
    plan = silos.plan()
    assert plan.complete
    assert silos.min_silos == plan.min_survivors == min_silos
    assert plan.threshold == threshold  # the majority of all, where those left are so many
    assert plan.max_corrupt(silos.adversary) == colluders
    plan.check(silos.adversary)
    SiloGaussian(silos.min_silos, silos.colluders)


def test_the_usual_defaults_refuse_what_few_silos_need() -> None:
    """Two of ten are away from the start: a share of those who came may not vanish any more."""
    usual = {"adversary": Adversary(max_corrupt_fraction=0.1), "min_clients": 8, "cohort": 10}
    with pytest.raises(ValueError, match="draw more clients"):
        plan_round(8, max_dropout_fraction=0.2, **usual)  # type: ignore[arg-type]
    assert plan_round(8, max_dropout_fraction=None, **usual).min_survivors == 8  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_sum_is_opened_whoever_is_absent_and_whenever(count: int) -> None:
    silos = FewSilos(count)
    vectors = draw_vectors(count, 65)
    stages = range(5)
    for absent in itertools.islice(
        itertools.combinations(range(count), silos.silos - silos.min_silos), 2
    ):
        for leaves in itertools.product(stages, repeat=len(absent)):
            gone = dict(zip(absent, leaves, strict=True))
            made = federation(silos)
            total = made.play(
                server_of(silos, made, 65),
                vectors,
                lambda stage, node, gone=gone: stage < gone.get(node, 99),
            )
            masked = [node for node in vectors if gone.get(node, 99) > MASKING]
            assert np.array_equal(total, sum(vectors[node] for node in masked))


@BOTH
@pytest.mark.parametrize("count", [4, 5, 10])
def test_one_fewer_opens_nothing(server: ServerModel, count: int) -> None:
    silos = FewSilos(count, server=server)
    too_many = silos.silos - silos.min_silos + 1
    for stage in range(4):
        made = federation(silos)
        gone = dict.fromkeys(range(too_many), stage)
        with pytest.raises(RoundAbortedError):
            made.play(
                server_of(silos, made, 8),
                draw_vectors(count, 8),
                lambda at, node, gone=gone: at < gone.get(node, 99),
            )
        if stage < MASKING:
            assert made.trained == 0


def test_a_silo_refuses_a_plan_for_fewer_or_against_fewer_colluders() -> None:
    insisting = FewSilos(10, 2, absent=1)
    made = federation(insisting)
    made.min_clients = 8  # what the server asks
    weaker = FewSilos(10, 1, absent=2)
    server = SecureServer(
        made.terms(4), adversary=weaker.adversary, max_dropout_fraction=None, cohort=10
    )
    with pytest.raises(UnacceptableTermsError):
        made.play(server, draw_vectors(10, 4))


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(3, 80),
    data=st.data(),
    server=st.sampled_from(ServerModel),
)
def test_what_is_made_withstands_the_adversary_and_opens_with_the_fewest(
    count: int, data: st.DataObject, server: ServerModel
) -> None:
    colluders = data.draw(st.integers(1, max(1, (count - 1) // 2)))
    absent = data.draw(st.none() | st.integers(0, count))
    try:
        silos = FewSilos(count, colluders, absent, server)
    except ValueError as error:
        refusal = str(error)
        if absent is None:  # half collude, or so few withstand no such server
            assert 2 * colluders >= count or (server is ServerModel.MALICIOUS and count < 9)
        else:
            assert any(words in refusal for words in ("absent is", "assume fewer"))
        return
    corrupt = silos.adversary.max_corrupt(count)
    assert corrupt == colluders
    for present in range(silos.min_silos, count + 1):
        plan: RoundPlan = plan_round(
            present,
            adversary=silos.adversary,
            max_dropout_fraction=None,
            min_clients=silos.min_silos,
            cohort=count,
        )
        plan.check(silos.adversary)
        assert plan.complete
        assert plan.threshold > colluders
        assert plan.min_survivors > plan.threshold  # a survivor has so many neighbours
        assert plan.min_survivors - colluders >= 2
        assert plan.min_survivors >= silos.min_silos
        if server is ServerModel.HONEST_BUT_CURIOUS:
            assert plan.min_survivors == silos.min_silos


def test_noise_in_shares_is_opened_with_the_sum() -> None:
    """Three silos' noisy sums, through the protocol: the ring holds them, and nothing is lost."""
    silos, mechanism, z, size = FewSilos(3), SiloGaussian(3, 1), 1.0, 50
    made = federation(silos)
    bound = mechanism.bound(parameters=size, noise_multiplier=z, persons=300, sampling=Poisson(0.1))
    shares = {}
    for silo in range(3):
        shares[silo] = np.full(size, 5 * mechanism.radius, dtype=np.int64)
        mechanism.add_share(shares[silo], noise_multiplier=z, randomness=SeededRandomness(silo))
    server = made.server(made.terms(size, bound=bound), max_dropout_fraction=None)
    total = made.play(server, shares)
    assert np.array_equal(total, sum(shares.values()))
    noise = total - 15 * mechanism.radius
    spread = float(noise.std() / mechanism.radius)
    assert 0.5 * math.sqrt(1.5) < spread < 2 * math.sqrt(1.5)


def test_who_may_collude_is_said_in_words() -> None:
    assert str(FewSilos(10)) == (
        "a step opens the sum of at least 8 silos; 2 of the 10 may be absent from it; no silo's "
        "own part shows to the server (honest-but-curious) together with another silo"
    )
    assert "none of the 3 may be absent" in str(FewSilos(3))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"silos": 2}, ValueError, "silos is 2"),
        ({"silos": 4, "colluders": 2}, ValueError, "no protocol withstands half"),
        ({"silos": 3, "colluders": 0}, ValueError, "a silo knows its own part"),
        ({"silos": 3, "absent": 1}, ValueError, "at most 0 of 3"),
        ({"silos": 10, "colluders": 4, "absent": 5}, ValueError, "at most 4 of 10"),
        ({"silos": 4, "absent": 1, "server": ServerModel.MALICIOUS}, ValueError, "at most 0 of 4"),
        ({"silos": 3, "server": ServerModel.MALICIOUS}, ValueError, "malicious"),
        ({"silos": 3, "server": "malicious"}, TypeError, "server"),
        ({"silos": 5, "absent": 1.5}, TypeError, "absent"),
    ],
)
def test_too_few_for_so_many_are_refused(given: dict, error: type, match: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(error, match=match):
        FewSilos(**given)
