"""Distributed noise: enough of it from the honest, the same whoever was drawn, in a safe ring."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import (
    Adjacency,
    DiscreteGaussianSum,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    against_server,
    epsilon,
)
from privacy.mechanisms import (
    ClippingGeometry,
    DistributedGaussian,
    MaskedGaussian,
    SeededRandomness,
    SystemRandomness,
)
from privacy.mechanisms.errors import UpdateError
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    RoundTerms,
    SecureClient,
    SecureServer,
)

FALSE_ALARM = 1e-6


def encode(mechanism: Any, update: Any, z: float, seed: int, norm: float = 1.0) -> Any:
    return mechanism.encode(
        [update],
        [np.zeros_like(update)],
        ClippingGeometry((norm,), (0,)),
        weight=1.0,
        noise_multiplier=z,
        randomness=SeededRandomness(seed),
    )


def decode(mechanism: Any, total: Any, survivors: int, z: float, seed: int) -> Any:
    (array,) = mechanism.decode(
        total,
        [np.zeros(total.size)],
        ClippingGeometry((1.0,), (0,)),
        survivors=survivors,
        noise_multiplier=z,
        randomness=SeededRandomness(seed),
    )
    return array


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 5), st.integers(1, 40), st.integers(8, 20), st.data())
def test_without_noise_it_is_the_masked_gaussian(
    min_clients: int, more: int, size: int, bits: int, data: st.DataObject
) -> None:
    radius, survivors = 1 << bits, min_clients + more
    ours = DistributedGaussian(
        radius, min_clients=min_clients, colluders=1, max_clients=min_clients + 5
    )
    theirs = MaskedGaussian(radius)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    updates = rng.standard_normal((survivors, size)) * data.draw(st.floats(0.01, 10))
    one, other = (
        sum(encode(mechanism, update, 0.0, 1) for update in updates) for mechanism in (ours, theirs)
    )
    assert np.array_equal(one, other)
    assert np.array_equal(
        decode(ours, one, survivors, 0.0, 1), decode(theirs, other, survivors, 0.0, 1)
    )


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1e-3, 1e3),
    st.integers(0, 20).map(lambda e: 1 << e),
    st.integers(2, 500),
    st.integers(1, 499),
    st.integers(0, 500),
)
def test_honest_shares_are_never_too_small(
    z: float, radius: int, min_clients: int, colluders: int, more: int
) -> None:
    """As rationals: (min_clients − colluders)·σ² ≥ (z·R)²; and the event says what was added."""
    colluders = min(colluders, min_clients - 1)
    mechanism = DistributedGaussian(
        radius, min_clients=min_clients, colluders=colluders, max_clients=min_clients + more
    )
    variance = mechanism.share_variance(z)
    honest = min_clients - colluders
    assert honest * Fraction(variance) >= (Fraction(z) * radius) ** 2
    assert honest * variance <= (z * radius) ** 2 * (1 + 1e-12)
    if variance < 0.25:
        with pytest.raises(ValueError, match="finer lattice"):
            mechanism.account(parameters=7, noise_multiplier=z, sampling=Full())
        return
    event = mechanism.account(parameters=7, noise_multiplier=z, sampling=Poisson(0.1))
    assert event == DiscreteGaussianSum(
        variance, radius, 7, min_clients + more - colluders, honest, Poisson(0.1)
    )


def test_the_noise_of_the_honest_alone_is_z_times_the_norm() -> None:
    """What the server faces: chi-square on 30 of 40 clients' shares."""
    size, z, radius = 50_000, 0.8, 1 << 14
    mechanism = DistributedGaussian(radius, min_clients=40, colluders=10, max_clients=60)
    zero = np.zeros(size)
    total = sum(encode(mechanism, zero, z, seed) for seed in range(30)) / radius
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], size)
    assert low <= float(np.square(total).sum()) / z**2 <= high
    assert stats.kstest(total / z, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("survivors", [40, 41, 59, 60])
def test_what_is_released_has_as_much_noise_whoever_was_drawn(survivors: int) -> None:
    size, z, radius = 50_000, 0.8, 1 << 14
    mechanism = DistributedGaussian(radius, min_clients=40, colluders=10, max_clients=60)
    zero = np.zeros(size)
    total = sum(encode(mechanism, zero, z, seed) for seed in range(survivors))
    released = decode(mechanism, total, survivors, z, seed=1000)
    expected = z * math.sqrt(60 / 30)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], size)
    assert low <= float(np.square(released).sum()) / expected**2 <= high


def test_shares_of_two_clients_are_unrelated() -> None:
    mechanism = DistributedGaussian(1 << 14, min_clients=5, colluders=1, max_clients=9)
    zero = np.zeros(200_000)
    first, second = (
        mechanism.encode(
            [zero],
            [zero],
            ClippingGeometry((1.0,), (0,)),
            weight=1.0,
            noise_multiplier=1.0,
            randomness=SystemRandomness(),
        )
        for _ in range(2)
    )
    limit = -stats.norm.ppf(1e-12 / 2) / math.sqrt(len(zero))  # not seeded: a rarer false alarm
    assert abs(np.corrcoef(first, second)[0, 1]) < limit


def test_sums_of_too_few_or_too_many_are_not_released() -> None:
    mechanism = DistributedGaussian(1 << 10, min_clients=40, colluders=10, max_clients=60)
    for survivors in (39, 61):
        with pytest.raises(ValueError, match=f"survivors is {survivors}"):
            decode(mechanism, np.zeros(3, np.int64), survivors, 1.0, 1)
    with pytest.raises(ValueError, match="opened sum must be 3 int64"):
        mechanism.decode(
            np.zeros(4, np.int64),
            [np.zeros(3)],
            ClippingGeometry((1.0,), (0,)),
            survivors=50,
            noise_multiplier=1.0,
            randomness=SystemRandomness(),
        )


def test_the_update_is_bounded_before_the_noise() -> None:
    mechanism = DistributedGaussian(1 << 10, min_clients=5, colluders=1, max_clients=9)
    with pytest.raises(UpdateError):
        encode(mechanism, np.array([0.0, math.nan]), 1.0, 1)
    # The same seed draws the same share: what is left is the update, within the radius.
    update = np.full(100, 5.0)
    moved = encode(mechanism, update, 1.0, 7) - encode(mechanism, np.zeros(100), 1.0, 7)
    assert 1000 < math.sqrt(sum(int(x) ** 2 for x in moved)) <= 1 << 10


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.1, 20),
    st.integers(6, 20).map(lambda e: 1 << e),
    st.integers(2, 200),
    st.integers(0, 800),
    st.integers(1, 10**8),
)
def test_the_ring_overflows_with_probability_2_to_the_minus_100(
    z: float, radius: int, min_clients: int, more: int, parameters: int
) -> None:
    """n·bound ≥ n·R + a with 2d·exp(−a²/2nσ²) ≤ 2⁻¹⁰⁰, for every n that can be opened."""
    mechanism = DistributedGaussian(
        radius, min_clients=min_clients, colluders=1, max_clients=min_clients + more
    )
    bound = mechanism.bound(parameters=parameters, noise_multiplier=z)
    for clients in (min_clients, min_clients + more // 2, min_clients + more):
        room = clients * (bound - radius)
        exponent = room**2 / (2 * clients * mechanism.share_variance(z))
        assert math.log(2 * parameters) - exponent <= -100 * math.log(2)


def test_the_tail_bound_is_above_the_tail() -> None:
    """A thousand sums of five shares of 1,000 clients' worth of room: none is outside."""
    mechanism = DistributedGaussian(1, min_clients=5, colluders=1, max_clients=5)
    z = 50.0
    bound = mechanism.bound(parameters=200_000, noise_multiplier=z)
    shares = sum(encode(mechanism, np.zeros(200_000), z, seed) for seed in range(5))
    sigma = math.sqrt(5 * mechanism.share_variance(z))
    room = 5 * (bound - 1)
    assert np.abs(shares).max() < room
    assert room < 14 * sigma  # and not wastefully far out


def test_through_the_protocol_the_sum_is_exact() -> None:
    """Clients whose noise takes them past their own bound; opened, and compared in integers."""
    size, clients, z = 300, 24, 8.0
    mechanism = DistributedGaussian(16, min_clients=20, colluders=1, max_clients=30)
    bound = mechanism.bound(parameters=size, noise_multiplier=z)
    adversary = Adversary(max_corrupt_fraction=0.1)
    terms = RoundTerms(run=bytes(16), number=1, size=size, bound=bound, min_clients=20)
    server = SecureServer(terms, adversary=adversary, max_dropout_fraction=0.1, cohort=clients)
    rng = np.random.default_rng(5)
    vectors = {
        node: encode(mechanism, rng.standard_normal(size), z, node) for node in range(clients)
    }
    assert max(np.abs(vector).max() for vector in vectors.values()) > bound
    members = {
        node: SecureClient(ClientPolicy(min_clients=20, adversary=adversary))
        for node in range(clients)
    }
    messages = dict.fromkeys(members, server.invitation())
    while messages:
        for node, message in messages.items():
            server.receive(node, members[node].answer(message, vectors[node]))
        messages = server.advance()
    assert np.array_equal(server.open(), sum(vectors.values()))


def test_the_two_figures() -> None:
    """Sized for 55 honest of 60; 1,000 clients at q = 0.1: the server's ε is the plan's."""
    mechanism = DistributedGaussian(1 << 16, min_clients=60, colluders=5, max_clients=160)
    event = mechanism.account(parameters=1_000_000, noise_multiplier=0.937, sampling=Poisson(0.1))
    server = epsilon({against_server(event): 100}, delta=1e-5, adjacency=Adjacency.ZERO_OUT_ONE)
    assert server == pytest.approx(101.7, abs=0.1)
    seen = epsilon({event: 100}, delta=1e-5)
    assert seen == pytest.approx(
        epsilon({GaussianRelease(0.937 * math.sqrt(155 / 55), Poisson(0.1)): 100}, delta=1e-5),
        rel=1e-6,
    )
    assert seen < 8


def test_impossible_settings_are_refused() -> None:
    good = {"radius": 1 << 10, "min_clients": 40, "colluders": 10, "max_clients": 60}
    for change, match in (
        ({"radius": 0}, "radius is 0"),
        ({"colluders": 0}, "knows its own share"),
        ({"colluders": 40}, "min_clients is 40"),
        ({"max_clients": 39}, "not above max_clients"),
    ):
        with pytest.raises(ValueError, match=match):
            DistributedGaussian(**{**good, **change})
    mechanism = DistributedGaussian(**good)
    with pytest.raises(ValueError, match="fixed size"):
        mechanism.account(parameters=3, noise_multiplier=1.0, sampling=FixedSize(1, 2))
    for z in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_multiplier is"):
            mechanism.share_variance(z)
