"""Shares are of what they should be, are shown to nobody but cheats, and keys are one's own."""

import dataclasses
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms import SystemRandomness
from privacy.secure_aggregation import SecureClient, SecureServer
from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation import _sharing as sharing
from privacy.secure_aggregation._client_state import ClientStage
from privacy.secure_aggregation._messages import (
    AdvertisedKeys,
    Kind,
    bound_to,
    complaint_statement,
    decode,
    decode_set,
    encode,
    encode_set,
)
from privacy.secure_aggregation._shamir import (
    PRIME,
    combine,
    decode_element,
    draw_elements,
    encode_element,
    values,
)
from privacy.secure_aggregation.errors import (
    ForgedSignatureError,
    MalformedMessageError,
    RejectedMessageError,
    StaleMessageError,
    TooFewNeighboursError,
)
from tests.privacy.secure_aggregation.federation import (
    HONEST,
    MALICIOUS,
    Federation,
    draw_vectors,
    open_round,
)

BOTH = pytest.mark.parametrize("adversary", [HONEST, MALICIOUS], ids=lambda a: a.server.value)
COUNT, SIZE, BOX = 18, 5, 92
RANDOM = SystemRandomness()


# A malicious server that would have shares shown --------------------------------------------------


def up_to_disputes():
    """Every client's answer to its deliveries is still to come; one whose sender cheats."""
    federation = Federation(COUNT, MALICIOUS)
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    return federation, server, federation.play_to(server, vectors, 2)


def disputes(client, labels, signatures):
    size = len(open_round(client).neighbours)
    return encode(Kind.DISPUTES, open_round(client).session, encode_set(labels, size), signatures)


def test_a_box_that_the_server_spoils_is_not_complained_of_under_a_signature():
    """The complaint would have an honest sender show its shares for an honest client."""
    federation, _, messages = up_to_disputes()
    client = federation.clients[0]
    sharers, boxes, evidence = decode(messages[0], Kind.DELIVERIES, [None] * 3)
    for spoilt in (
        (os.urandom(BOX) + boxes[BOX:], evidence),
        (boxes, os.urandom(96) + evidence[96:]),
        (boxes[BOX : 2 * BOX] + boxes[BOX:], evidence[192:384] + evidence[192:]),
    ):
        again = SecureClient.from_bytes(
            client.to_bytes(), federation.policy, identity=client.identity
        )
        answer = again.answer(encode(Kind.DELIVERIES, bound_to(messages[0]), sharers, *spoilt))
        members, signatures = decode(answer, Kind.COMPLAINTS, [None, 64])
        assert decode_set(members, len(open_round(client).neighbours)) == {0}
        assert signatures == bytes(64)
        assert again.stage is ClientStage.MASKING


def test_shares_are_shown_only_to_who_signed_a_complaint():
    federation, _, messages = up_to_disputes()
    client = federation.clients[0]
    client.answer(messages[0])
    attacked, state = open_round(client), client.to_bytes()
    by_index = {open_round(c).own: c.identity.private for c in federation.clients.values()}
    accuser = attacked.neighbours[0]
    right = complaint_statement(attacked.session, attacked.own, accuser)

    def taken_up():
        return SecureClient.from_bytes(state, federation.policy, identity=client.identity)

    for forged in (
        bytes(64),
        keys.sign(by_index[attacked.neighbours[1]], right),
        keys.sign(by_index[accuser], complaint_statement(attacked.session, accuser, attacked.own)),
        keys.sign(by_index[accuser], complaint_statement(bytes(32), attacked.own, accuser)),
        b"",
    ):
        with pytest.raises(ForgedSignatureError):
            taken_up().answer(disputes(client, [0], forged))
    one = taken_up()
    signature = keys.sign(by_index[accuser], right)
    (shown,) = decode(one.answer(disputes(client, [0], signature)), Kind.DISPUTED_SHARES, [64])
    assert shown == attacked.dealt_shares[0]
    with pytest.raises(StaleMessageError):  # once
        one.answer(disputes(client, [0], signature))
    assert one.stage is ClientStage.MASKING


@BOTH
def test_fewer_shares_than_the_secret_has_are_shown(adversary):
    federation = Federation(COUNT, adversary)
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    federation.play_to(server, vectors, 3)
    client = federation.clients[0]
    with pytest.raises(TooFewNeighboursError, match="dispute"):
        client.answer(disputes(client, range(open_round(client).plan.threshold), b""))
    assert client.stage is ClientStage.WAITING


# What is shared -----------------------------------------------------------------------------------


def dealt(threshold=4, holders=9, context=b"here"):
    root, seed = os.urandom(32), draw_elements(RANDOM, 1)[0]
    dealing = sharing.deal(
        root, seed, threshold=threshold, holders=holders, context=context, randomness=RANDOM
    )
    return root, seed, dealing


def mask_key(root):
    return keys.public_key(sharing.mask_private(root))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_what_is_shared_is_checked_and_comes_together_again(data):
    holders = data.draw(st.integers(2, 20))
    threshold = data.draw(st.integers(1, holders))
    root, seed, dealing = dealt(threshold, holders)
    evidence = sharing.check_proof(
        dealing.proof, *dealing.commitments, mask_key=mask_key(root), context=b"here"
    )
    assert evidence == dealing.evidence
    assert [sharing.Evidence.from_bytes(e.to_bytes()) for e in evidence] == evidence
    assert all(e.fit(shares) for e, shares in zip(evidence, dealing.shares, strict=True))
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    seeds = {place + 1: decode_element(dealing.shares[place][:32]) for place in chosen}
    privates = {place + 1: decode_element(dealing.shares[place][32:]) for place in chosen}
    assert combine(seeds) == seed
    other = os.urandom(32)
    agreed = sharing.agree_with(combine(privates), [keys.public_key(other)])
    assert agreed == keys.agree(other, [mask_key(root)])


def test_a_proof_is_of_this_key_these_commitments_and_this_round():
    root, _, dealing = dealt()
    seeds, privates = dealing.commitments
    mine = {"mask_key": mask_key(root), "context": b"here"}
    for proof, first, second, bound in (
        (dealing.proof, seeds, privates, {"context": b"there"}),
        (dealing.proof, seeds, privates, {"mask_key": mask_key(os.urandom(32))}),
        (dealing.proof, privates, seeds, {}),
        (dealing.proof, seeds[1:] + seeds[:1], privates, {}),
        (dealing.proof[:32] + os.urandom(32) + dealing.proof[64:], seeds, privates, {}),
        (os.urandom(32) + dealing.proof[32:], seeds, privates, {}),
        (dealing.proof[:-32] + b"\xff" * 32, seeds, privates, {}),
        (dealt()[2].proof, seeds, privates, {}),
    ):
        with pytest.raises((ForgedSignatureError, MalformedMessageError)):
            sharing.check_proof(proof, first, second, **(mine | bound))


def test_shares_of_no_polynomial_do_not_all_fit():
    """A cheat picks the responses last; they agree with as many holders as they have coefficients.

    Values of a polynomial of higher degree, committed to as they should be.
    """
    threshold, holders = 4, 12
    root, _, wider = dealt(threshold=holders, holders=holders)
    proof = wider.proof
    responses = [decode_element(proof[32 * i :][:32]) for i in range(2, 2 + 2 * holders)]
    shorter = []
    for half in (responses[:holders], responses[holders:]):
        points = range(1, threshold + 1)
        shorter += through({0: half[0]} | dict(zip(points, values(half, 3), strict=False)))
    short = proof[:64] + b"".join(map(encode_element, shorter))
    evidence = sharing.check_proof(
        short, *wider.commitments, mask_key=mask_key(root), context=b"here"
    )
    fitting = [e.fit(shares) for e, shares in zip(evidence, wider.shares, strict=True)]
    assert fitting == [True] * (threshold - 1) + [False] * (holders - threshold + 1)


def through(points):
    """The coefficients of the polynomial through some points."""
    coefficients = [0] * len(points)
    for own, value in points.items():
        basis, divisor = [1], 1
        for other in points:
            if other != own:
                shifted = [0, *basis]
                basis = [(a - other * b) % PRIME for a, b in zip(shifted, [*basis, 0], strict=True)]
                divisor = divisor * (own - other) % PRIME
        weight = value * pow(divisor, -1, PRIME)
        coefficients = [(c + weight * b) % PRIME for c, b in zip(coefficients, basis, strict=True)]
    return coefficients


@pytest.mark.parametrize("private", [1, 7, 8, 2**200 + 3, PRIME - 8, PRIME // 2])
def test_a_key_that_x25519_would_not_take_can_be_agreed_with_all_the_same(private):
    """A cheat may have taken any number, and drop out."""
    other, third = (os.urandom(32) for _ in range(2))
    publics = [keys.public_key(other), keys.public_key(third)]
    agreed = sharing.agree_with(private, publics)
    # X25519 commutes: agreeing with what one has agreed with is the same in either order.
    assert keys.agree(third, agreed[:1]) == keys.agree(other, agreed[1:])
    assert agreed == sharing.agree_with(PRIME - private, publics)
    together = sharing.agree_with(
        private * decode_element(sharing.mask_private(b"x" * 32)), publics
    )
    assert together == keys.agree(sharing.mask_private(b"x" * 32), agreed)


# Keys ---------------------------------------------------------------------------------------------


@BOTH
def test_nobody_takes_another_ones_key(adversary):
    """Else the other one, were it a neighbour, would refuse the roster and be out."""
    federation = Federation(COUNT, adversary)
    server = federation.server(federation.terms(SIZE))
    announced = {n: c.answer(server.invitation()) for n, c in federation.clients.items()}
    server.receive(0, announced[0])
    first = decode(announced[0], Kind.ADVERTISEMENT, [None])[0]
    second = AdvertisedKeys.from_bytes(decode(announced[1], Kind.ADVERTISEMENT, [None])[0])
    identity = federation.clients[1].identity
    for mask, channel in (
        (first[32:64], second.channel_key),
        (second.mask_key, first[64:96]),
        (first[64:96], second.channel_key),
        (second.mask_key, bytes(32)),
        (second.mask_key, channel_in_another_form(second.channel_key)),
        (channel_in_another_form(first[32:64]), second.channel_key),
    ):
        statement = AdvertisedKeys.statement_of(second.asked, mask, channel)
        forged = dataclasses.replace(
            second,
            mask_key=mask,
            channel_key=channel,
            signature=keys.sign(identity.private, statement),
        )
        with pytest.raises(RejectedMessageError, match="key"):
            server.receive(1, encode(Kind.ADVERTISEMENT, bound_to(announced[1]), forged.to_bytes()))
    server.receive(1, announced[1])


def channel_in_another_form(key):
    """The bit that X25519 ignores."""
    return key[:31] + bytes([key[31] | 128])


def test_no_more_announce_themselves_than_were_drawn():
    federation = Federation(4)
    server = SecureServer(
        federation.terms(SIZE), adversary=HONEST, max_dropout_fraction=0.0, cohort=3
    )
    for node in range(3):
        server.receive(node, federation.clients[node].answer(server.invitation()))
    with pytest.raises(RejectedMessageError, match="as many as were drawn"):
        server.receive(3, federation.clients[3].answer(server.invitation()))
