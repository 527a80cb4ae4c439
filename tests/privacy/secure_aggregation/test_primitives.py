"""Primitives against published vectors, and the arithmetic of shares, rings and plans."""

import itertools
from dataclasses import replace
from fractions import Fraction
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms import SystemRandomness
from privacy.secure_aggregation import Adversary, RoundPlan, ServerModel, plan_round
from privacy.secure_aggregation._crypto import agree, derive, sign, unseal, verify, verifying_key
from privacy.secure_aggregation._masking import (
    add_mask,
    add_packed,
    centred,
    element_type,
    pack,
    packed_size,
    ring_bits,
)
from privacy.secure_aggregation._shamir import (
    PRIME,
    combine,
    draw_polynomial,
    values,
    weights_at_zero,
)
from privacy.secure_aggregation.errors import (
    ForgedSignatureError,
    MalformedMessageError,
    ThresholdTooLowError,
    WeakKeyError,
)
from privacy.secure_aggregation.neighbours import Ring, _tail_log2

RANDOM = SystemRandomness()


# Published vectors --------------------------------------------------------------------------------


def test_x25519_rfc_7748_section_5_2():
    scalar = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"
    point = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
    product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert agree(bytes.fromhex(scalar), [bytes.fromhex(point)]) == [bytes.fromhex(product)]


def test_a_key_of_small_order_is_refused():
    with pytest.raises(WeakKeyError):
        agree(RANDOM.bytes(32), [bytes(32)])


def test_hkdf_rfc_5869_case_1():
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert derive(b"\x0b" * 22, info, salt).hex() == expected


def test_the_mask_stream_is_aes_128_ctr():
    """Blocks 0, 1 and 2 under the zero key: H, E(Y0) and C of the GCM specification, case 2."""
    blocks = (
        "66e94bd4ef8a2c3b884cfa59ca342b2e"
        "58e2fccefa7e3061367f1d57a4e7455a"
        "0388dace60b6a392f328c2b971b2fe78"
    )
    for kind in (np.uint32, np.uint64):
        target = np.zeros(48 // np.dtype(kind).itemsize, dtype=kind)
        add_mask(target, bytes(16))
        assert target.astype(target.dtype.newbyteorder("<")).tobytes().hex() == blocks


def test_aes_256_gcm_specification_case_14():
    sealed = bytes(12) + bytes.fromhex(
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )
    assert unseal(bytes(32), sealed, b"") == bytes(16)
    for bad in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), b"\1" + sealed[1:], b""):
        assert unseal(bytes(32), bad, b"") is None


def test_ed25519_rfc_8032_case_1():
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert verifying_key(secret) == public
    assert sign(secret, b"") == signature
    verify(public, signature, b"", "the vector")
    with pytest.raises(ForgedSignatureError, match="the vector"):
        verify(public, signature, b"other", "the vector")


def test_shamir_published_example():
    """1234 + 166x + 94x² modulo 1613: the worked example that encyclopedias print."""
    shares = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    for points in itertools.combinations(shares, 3):
        weights = weights_at_zero(points, prime=1613)
        assert sum(w * shares[x] for w, x in zip(weights, points, strict=True)) % 1613 == 1234


# Shares -------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not(data):
    holders = data.draw(st.integers(2, 30))
    threshold = data.draw(st.integers(2, holders))
    secret = data.draw(st.integers(0, PRIME - 1))
    polynomial = draw_polynomial(secret, threshold=threshold, randomness=RANDOM)
    shares = values(polynomial, holders)
    chosen = data.draw(st.permutations(range(1, holders + 1)))[:threshold]
    assert combine({point: shares[point - 1] for point in chosen}) == secret
    # One fewer determines another polynomial: equal with probability 2^-252.
    assert combine({point: shares[point - 1] for point in chosen[1:]}) != secret


def test_one_share_below_the_threshold_is_uniform():
    """Of a fixed secret: each of 16 parts of the field, 4000 draws, false alarm 1e-6."""
    drawn = [values(draw_polynomial(7, threshold=2, randomness=RANDOM), 2)[0] for _ in range(4000)]
    counts = np.bincount([share * 16 // PRIME for share in drawn], minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 57.7  # the 1 - 1e-6 quantile of chi-square, 15


@pytest.mark.parametrize("points", [(), (0, 1), (2, 2), (-1, 3)])
def test_impossible_points_are_refused(points):
    with pytest.raises(ValueError, match="positive and distinct"):
        weights_at_zero(points)


# Rings --------------------------------------------------------------------------------------------


@given(st.integers(1, 62), st.integers(1, 700), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packing_is_exact(bits, size, seed):
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 2**63, size, dtype=np.uint64)
    elements = (drawn & np.uint64(2**bits - 1)).astype(element_type(bits))
    noisy = (drawn if bits > 32 else drawn & np.uint64(2**32 - 1)).astype(element_type(bits))
    packed = pack(noisy, bits)  # what lies above the ring is cut off
    assert len(packed) == packed_size(size, bits) <= (size + 63) * bits / 8 + 8
    back = np.zeros(size, dtype=element_type(bits))
    add_packed(back, packed, bits)
    assert np.array_equal(back, elements)
    with pytest.raises(ValueError, match="bytes for"):
        add_packed(back, packed[:-1], bits)


@given(st.integers(3, 5000), st.integers(1, 2**40))
def test_the_ring_is_the_smallest_that_cannot_overflow(clients, bound):
    bits, largest = ring_bits(clients, bound), clients * bound
    assert 2**bits >= 2 * largest + 1 > 2 ** (bits - 1)
    extremes = np.array([largest, -largest, 0])
    assert np.array_equal(centred(extremes.astype(element_type(bits)), bits), extremes)


def test_a_hundred_clients_take_three_quarters_of_a_float():
    assert packed_size(10**6, ring_bits(100, 2**16)) <= 0.8 * 4 * 10**6


# Masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 65535, 65536, 65537, 200_003])
@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_masks_cancel_and_do_not_repeat(size, kind):
    target, key = np.zeros(size, dtype=kind), RANDOM.bytes(16)
    add_mask(target, key)
    if size > 100:
        assert len(np.unique(target)) > 0.99 * size
    whole = target.copy()
    add_mask(target, key, subtract=True)
    assert not target.any()
    longer = np.zeros(size + 1, dtype=kind)
    add_mask(longer, key)
    assert np.array_equal(longer[:size], whole)


# Graphs and plans ---------------------------------------------------------------------------------


def hangs_together(ring, kept):
    reached, edge = set(), [min(kept)]
    while edge:
        client = edge.pop()
        if client not in reached:
            reached.add(client)
            edge += [other for other in ring.neighbours(client) if other in kept]
    return reached == kept


@given(st.integers(2, 12), st.integers(0, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_ring_falls_apart_only_at_two_gaps_of_half_k(half, extra, random):
    """The lemma behind condition 2, and that behind the malicious threshold."""
    neighbours = 2 * half
    clients = neighbours + 3 + extra
    plan = RoundPlan(clients, neighbours, 1, 3, clients)
    ring = Ring(plan, random.randbytes(32))
    kept = set(random.sample(range(clients), random.randint(2, clients)))
    places = [int(client) in kept for client in ring._at]
    gaps = sum(
        not any(places[(start + step) % clients] for step in range(half))
        and places[(start - 1) % clients]
        for start in range(clients)
    )
    assert hangs_together(ring, kept) or gaps >= 2
    alive = [sum(other in kept for other in ring.neighbours(client)) for client in kept]
    if min(alive) > half:
        assert hangs_together(ring, kept)


@given(st.integers(3, 24), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_neighbours_are_mutual_and_labelled(clients, random):
    for neighbours in {clients - 1, *range(2, clients - 1, 2)}:
        ring = Ring(RoundPlan(clients, neighbours, 1, 3, clients), random.randbytes(32))
        for client in range(clients):
            around = ring.neighbours(client)
            assert len({*around, client}) == neighbours + 1
            for label, other in enumerate(around):
                assert client in ring.neighbours(other)
                assert ring.label(client, other) == label


@given(st.integers(1, 60), st.data())
def test_hypergeometric_tails_are_exact(population, data):
    marked = data.draw(st.integers(0, population))
    draws = data.draw(st.integers(0, population))
    tail = _tail_log2(population, marked, draws)
    for i in range(draws + 2):
        ways = sum(
            comb(marked, j) * comb(population - marked, draws - j) for j in range(i, draws + 1)
        )
        if ways:
            exact = log2(Fraction(ways, comb(population, draws)))
            assert tail[i] == pytest.approx(exact, abs=1e-9)
        else:
            assert tail[i] == -np.inf


@pytest.mark.parametrize("model", ServerModel)
@pytest.mark.parametrize("clients", [10, 57, 100, 500, 1000])
@pytest.mark.parametrize("max_dropout_fraction", [0.0, 0.05, 0.3])
def test_plans_hold_what_they_promise(model, clients, max_dropout_fraction):
    adversary = Adversary(model, 0.1)
    plan = plan_round(clients, adversary=adversary, max_dropout_fraction=max_dropout_fraction)
    plan.check(adversary)
    n, k, t, corrupt = clients, plan.neighbours, plan.threshold, adversary.max_corrupt(clients)
    kept = clients - int(max_dropout_fraction * clients)
    assert 3 <= plan.min_survivors <= kept

    def tail(marked, least):
        return Fraction(
            sum(comb(marked, j) * comb(n - 1 - marked, k - j) for j in range(least, k + 1)),
            comb(n - 1, k),
        )

    if plan.complete:
        assert t > corrupt
        assert model is ServerModel.HONEST_BUT_CURIOUS or 2 * t > n + corrupt
        return
    assert n * (1 - tail(kept - 1, t)) <= Fraction(1, 2**20) or tail(kept - 1, t) == 1
    if model is ServerModel.MALICIOUS:
        assert n * tail(corrupt, t - k // 2) <= Fraction(1, 2**104)
        assert 2 * plan.min_survivors > n + corrupt
    else:
        gap = Fraction(comb(n - k // 2, max(0, corrupt + n - kept - k // 2)), 1) / comb(
            n, corrupt + n - kept
        )
        gap = gap if corrupt + n - kept >= k // 2 else 0
        assert n * (tail(corrupt, t) + gap) <= Fraction(1, 2**40)


def test_corrupt_clients_are_counted_from_those_who_were_drawn():
    """Of 100 that were drawn 60 announce keys, and all ten corrupt ones are among them."""
    adversary = Adversary(max_corrupt_fraction=0.1)
    corrupt, n = adversary.max_corrupt(100), 60

    def fails(plan):
        """The probability of conditions 1 and 2, exactly."""
        k, t = plan.neighbours, plan.threshold
        many = Fraction(
            sum(comb(corrupt, j) * comb(n - 1 - corrupt, k - j) for j in range(t, k + 1)),
            comb(n - 1, k),
        )
        empty = corrupt + n - plan.min_survivors
        gap = Fraction(comb(n - k // 2, empty - k // 2), comb(n, empty)) if empty >= k // 2 else 0
        return n * (many + gap)

    counted = plan_round(n, adversary=adversary, max_dropout_fraction=0.1, cohort=100)
    naive = plan_round(n, adversary=adversary, max_dropout_fraction=0.1)
    assert not counted.complete
    assert not naive.complete
    assert fails(counted) <= Fraction(1, 2**40) < 2**-36 < fails(naive)
    counted.check(adversary)
    naive.check(adversary)
    with pytest.raises(ThresholdTooLowError, match="of the 100 drawn"):
        replace(naive, cohort=100).check(adversary)


@pytest.mark.parametrize(
    "numbers",
    [
        (2**32 - 1, 2**32 - 2, 5, 3, 2**32 - 1),
        (10**9, 10**9 - 1, 5, 3, 10**9),
        (2**20, 2**20 - 2, 2**19, 3, 2**20),
        (30, 10, 5, 10, 2**32 - 1),
        (30, 10, 5, 10, 29),
        (30, 4098, 5, 10, 30),
    ],
)
def test_a_plan_of_any_size_is_refused_before_anything_is_made_of_it(numbers):
    encoded = b"".join(number.to_bytes(4, "little") for number in numbers)
    with pytest.raises(MalformedMessageError, match="not the plan"):
        RoundPlan.from_bytes(encoded)


def test_weaker_plans_are_refused():
    honest, malicious = (Adversary(model, 0.1) for model in ServerModel)
    good = plan_round(500, adversary=malicious, max_dropout_fraction=0.05)
    for weak in (
        replace(good, threshold=good.threshold - 60),
        replace(good, min_survivors=275),  # two sets could be endorsed
        replace(good, cohort=700),  # of so many more are corrupt
        plan_round(500, adversary=honest, max_dropout_fraction=0.05),
    ):
        with pytest.raises(ThresholdTooLowError):
            weak.check(malicious)
    for weak in (RoundPlan(500, 36, 8, 475, 500), RoundPlan(500, 36, 24, 300, 500)):
        with pytest.raises(ThresholdTooLowError):
            weak.check(honest)


def test_neighbours_grow_with_the_logarithm_of_the_cohort():
    counts = [
        plan_round(
            n, adversary=Adversary(max_corrupt_fraction=0.05), max_dropout_fraction=0.05
        ).neighbours
        for n in (10**3, 10**4, 10**5)
    ]
    assert counts[-1] < 1.5 * counts[0]


def test_hopeless_cohorts_are_refused():
    with pytest.raises(ValueError, match="draw more clients"):
        plan_round(10, adversary=Adversary(ServerModel.MALICIOUS, 0.2), max_dropout_fraction=0.3)
