"""What clients may not do: a cheat costs its own place in the round, and is named."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms import SystemRandomness
from privacy.secure_aggregation import Adversary, ServerModel
from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation import _server_stages as server_stages
from privacy.secure_aggregation import _sharing as sharing
from privacy.secure_aggregation._masking import add_mask, add_packed, centred
from privacy.secure_aggregation._messages import (
    Kind,
    bound_to,
    box_statement,
    complaint_statement,
    decode,
    encode,
    encode_set,
    kind_of,
)
from privacy.secure_aggregation._shamir import encode_element
from privacy.secure_aggregation.errors import RefusedError, RejectedMessageError, RoundAbortedError
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


def fields_of(message):
    count = {Kind.SHARES: 4, Kind.COMPLAINTS: 2, Kind.OPENINGS: 2, Kind.DISPUTED_SHARES: 1}
    return decode(message, kind_of(message), [None] * count[kind_of(message)])


class Wire:
    """Plays rounds in which some clients cheat; the others' messages pass as they are.

    ``ways`` says how: (client, its honest answer) to what is sent instead, None for nothing.
    """

    def __init__(self, ways: dict):
        self.ways = ways
        self.rejected = {}

    def sent(self, node, client, answer):
        return self.ways[node](client, answer) if node in self.ways else answer

    def play(self, server, messages, clients, vectors):
        while messages:
            for node, message in messages.items():
                client = clients[node]
                vector = vectors[node] if client.needs_vector(message) else None
                try:
                    answer = self.sent(node, client, client.answer(message, vector))
                    if answer is not None:
                        server.receive(node, answer)
                except (RejectedMessageError, RefusedError) as error:
                    self.rejected[node] = error
            messages = server.advance()
        return server.open()


def test_no_honest_client_trains_and_then_finds_too_few_neighbours():
    """Cheats who accuse its neighbour, where dropouts have left it few, cannot make it leave.

    What such a neighbour has shown would still open its mask, so the sum could be opened without
    it. The round ends before anybody trains.
    """
    nodes = 100
    federation = Federation(nodes, Adversary(max_corrupt_fraction=0.05))
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.4)
    messages = federation.invite(server)
    for node, message in messages.items():
        server.receive(node, federation.clients[node].answer(message))
    messages = server.advance()
    ring, plan = server._round.ring, server._round.plan
    assert not plan.complete
    around = ring.neighbours(0)
    liar = around[0]
    other = next(i for i in ring.neighbours(liar) if i not in around and i != 0)
    away = set(around[1 : 1 + plan.neighbours - plan.threshold])
    accused = {liar: 0, other: liar}
    refusals = []

    def stage(messages, quiet):
        for node, message in messages.items():
            place, client = server._round.index[node], federation.clients[node]
            if place in away:
                continue
            try:
                vector = np.zeros(SIZE, int) if client.needs_vector(message) else None
                answer = client.answer(message, vector)
            except RefusedError as error:
                refusals.append(error)
                continue
            if kind_of(answer) is Kind.COMPLAINTS and place in accused:
                label = open_round(client).neighbours.index(accused[place])
                answer = encode(
                    Kind.COMPLAINTS,
                    bound_to(answer),
                    encode_set([label], plan.neighbours),
                    b"",
                )
            if place not in quiet:
                server.receive(node, answer)
        return server.advance()

    messages = stage(stage(messages, ()), ())
    assert kind_of(next(iter(messages.values()))) is Kind.DISPUTES
    with pytest.raises(RoundAbortedError, match="neighbours left"):
        stage(messages, {liar})
    assert not refusals


# Ways to cheat ------------------------------------------------------------------------------------


def garbage(places, then=lambda client, answer: None):
    """Boxes of noise for some neighbours; ``then`` is what it does with the dispute."""

    def way(client, answer):
        if kind_of(answer) is Kind.DISPUTED_SHARES:
            return then(client, answer)
        if kind_of(answer) is not Kind.SHARES:
            return answer
        return resealed(client, answer, lambda place, shares: None, places)

    return way


def other_shares(places):
    """Good boxes with shares of something else, signed and all."""

    def way(client, answer):
        if kind_of(answer) is Kind.DISPUTED_SHARES:
            return None
        if kind_of(answer) is not Kind.SHARES:
            return answer
        return resealed(client, answer, lambda place, shares: os.urandom(64), places)

    return way


def resealed(client, answer, change, places):
    """Its shares with other boxes for some neighbours, signed anew where boxes are signed."""
    attacked = open_round(client)
    told, seeds, private, boxes = fields_of(answer)
    proof_bytes = sharing.proof_size(attacked.plan.threshold)
    proof, signatures = told[:proof_bytes], bytearray(told[proof_bytes:])
    boxes = bytearray(boxes)
    evidence = sharing.check_proof(
        proof,
        [seeds[16 * i :][:16] for i in range(len(attacked.neighbours))],
        [private[16 * i :][:16] for i in range(len(attacked.neighbours))],
        mask_key=keys.public_key(attacked.mask_private),
        context=sharing.sharing_context(attacked.session, attacked.own),
    )
    for place in list(range(len(attacked.neighbours)))[places]:
        shares = change(place, attacked.dealt_shares[place])
        other = attacked.neighbours[place]
        key = keys.derive(
            attacked.channel_secrets[place],
            b"channel %d to %d" % (attacked.own, other),
            attacked.session,
        )
        box = (
            os.urandom(BOX) if shares is None else keys.seal(key, shares, attacked.session, RANDOM)
        )
        boxes[BOX * place :][:BOX] = b""
        boxes[BOX * place : BOX * (place + 1)] = box
        if signatures:
            statement = box_statement(
                attacked.session, attacked.own, other, box, evidence[place].to_bytes()
            )
            signatures[64 * place : 64 * (place + 1)] = keys.sign(
                client.identity.private, statement
            )
    return encode(
        Kind.SHARES, attacked.session, proof + bytes(signatures), seeds, private, bytes(boxes)
    )


def changed(kind, change):
    """Any change of the fields of one kind of message."""

    def way(client, answer):
        if kind_of(answer) is not kind:
            return answer
        return encode(kind, bound_to(answer), *change(*fields_of(answer)))

    return way


def another_key(client, answer):
    """Rightly shared, but a key that is not the one it announced."""
    if kind_of(answer) is not Kind.SHARES:
        return answer
    attacked = open_round(client)
    dealing = sharing.deal(
        os.urandom(32),
        5,
        threshold=attacked.plan.threshold,
        holders=attacked.plan.neighbours,
        context=sharing.sharing_context(attacked.session, attacked.own),
        randomness=RANDOM,
    )
    told, *_, boxes = fields_of(answer)
    proof = dealing.proof + told[len(dealing.proof) :]
    return encode(Kind.SHARES, attacked.session, proof, *map(b"".join, dealing.commitments), boxes)


def accuses(signed):
    """Complains of everybody, though all shares are right."""

    def way(client, answer):
        if kind_of(answer) is not Kind.COMPLAINTS:
            return answer
        attacked = open_round(client)
        members, signatures = range(len(attacked.neighbours)), b""
        if attacked.terms.malicious:
            signatures = b"".join(
                keys.sign(
                    client.identity.private,
                    complaint_statement(attacked.session, attacked.neighbours[label], attacked.own),
                )
                if signed
                else bytes(64)
                for label in members
            )
        return encode(
            Kind.COMPLAINTS,
            attacked.session,
            encode_set(members, len(attacked.neighbours)),
            signatures,
        )

    return way


def leaves_at(kind, way):
    """Cheats, and vanishes later on."""
    return lambda client, answer: None if kind_of(answer) is kind else way(client, answer)


ALL, ONE, SOME = slice(None), slice(1), slice(5)
HONEST_ANSWER = lambda client, answer: answer  # noqa: E731
WAYS = {
    "garbage to all": garbage(ALL),
    "garbage to one": garbage(ONE),
    "garbage to some": garbage(SOME),
    "garbage, then the right shares": garbage(SOME, HONEST_ANSWER),
    "garbage, then noise": garbage(
        SOME, changed(Kind.DISPUTED_SHARES, lambda shown: (os.urandom(len(shown)),))
    ),
    "garbage, then fewer": garbage(
        SOME, changed(Kind.DISPUTED_SHARES, lambda shown: (shown[64:],))
    ),
    "garbage, then it vanishes": leaves_at(Kind.COMPLAINTS, garbage(SOME)),
    "right shares, and it vanishes": leaves_at(Kind.MASKED_UPDATE, garbage(SOME, HONEST_ANSWER)),
    "shares of something else to one": other_shares(ONE),
    "shares of something else to all": other_shares(ALL),
    "another key": another_key,
    "noise for commitments": changed(
        Kind.SHARES, lambda told, s, p, b: (told, os.urandom(len(s)), os.urandom(len(p)), b)
    ),
    "one commitment wrong": changed(
        Kind.SHARES, lambda told, s, p, b: (told, os.urandom(16) + s[16:], p, b)
    ),
    "noise for a proof": changed(
        Kind.SHARES, lambda told, s, p, b: (told[:64] + os.urandom(len(told) - 64), s, p, b)
    ),
    "another seed's response": changed(
        Kind.SHARES, lambda told, s, p, b: (told[:64] + bytes(32) + told[96:], s, p, b)
    ),
    "false complaints": accuses(True),
    "false complaints, unsigned": accuses(False),
    "wrong openings": changed(
        Kind.OPENINGS, lambda members, opened: (members, os.urandom(len(opened)))
    ),
    "no openings": changed(Kind.OPENINGS, lambda members, opened: (bytes(len(members)), b"")),
    "openings of fewer": changed(
        Kind.OPENINGS, lambda members, opened: (members[:1] + bytes(len(members) - 1), b"")
    ),
}


@BOTH
@pytest.mark.parametrize("name", WAYS)
def test_a_cheat_costs_only_its_own_place(adversary, name):
    federation = Federation(COUNT, adversary, min_clients=12)
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    wire = Wire({0: WAYS[name]})
    opened = wire.play(server, federation.invite(server), federation.clients, vectors)
    assert set(range(1, COUNT)) <= set(server.survivors)
    assert np.array_equal(opened, sum(vectors[node] for node in server.survivors))
    assert set(wire.rejected) <= {0}
    if name != "garbage, then it vanishes":  # which looks like any other that vanishes
        assert 0 in {*server.offences, *wire.rejected}
    # In a quarrel the server cannot tell who lies, and names both.
    quarrels = {"garbage, then the right shares", "right shares, and it vanishes"}
    quarrels |= {"false complaints", "false complaints, unsigned"}
    for node, offences in server.offences.items():
        assert node == 0 or name in quarrels
        assert node == 0 or all(
            f"one of nodes {node} and 0 lies" in what or (f"one of nodes 0 and {node} lies" in what)
            for what in offences
        )


@BOTH
@pytest.mark.parametrize("name", ["garbage to all", "shares of something else to all"])
def test_without_complaints_one_cheat_ends_the_round(adversary, name):
    """The control: honest clients that keep to themselves what they hold of the cheat."""
    federation = Federation(COUNT, adversary, min_clients=12)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    quiet = changed(Kind.COMPLAINTS, lambda members, signed: (bytes(len(members)), b""))
    wire = Wire({0: WAYS[name]} | dict.fromkeys(range(1, COUNT), quiet))
    messages = federation.invite(server)
    with pytest.raises(RoundAbortedError, match="neighbours of node 0"):
        wire.play(server, messages, federation.clients, draw_vectors(COUNT, SIZE))


def test_without_checks_one_cheat_that_vanishes_spoils_the_sum(monkeypatch):
    """The control: clients that keep any shares, and a server that uses any."""
    federation = Federation(COUNT)
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    monkeypatch.setattr(sharing.Evidence, "fits", lambda *args: True)
    wire = Wire({0: leaves_at(Kind.MASKED_UPDATE, other_shares(ALL))})
    opened = wire.play(server, federation.invite(server), federation.clients, vectors)
    assert set(server.survivors) == set(range(1, COUNT))
    assert not np.array_equal(opened, sum(vectors[node] for node in range(1, COUNT)))


@BOTH
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_many_cheats_at_once_cost_only_their_places(adversary, data):
    """Each in a way of its own, and together fewer than may drop out."""
    cheats = data.draw(
        st.dictionaries(st.integers(0, COUNT - 1), st.sampled_from(sorted(WAYS)), max_size=2)
    )
    federation = Federation(COUNT, adversary)
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.2)
    wire = Wire({node: WAYS[name] for node, name in cheats.items()})
    opened = wire.play(server, federation.invite(server), federation.clients, vectors)
    assert set(range(COUNT)) - set(cheats) <= set(server.survivors)
    assert np.array_equal(opened, sum(vectors[node] for node in server.survivors))
    assert set(wire.rejected) <= set(cheats)


# Two of them and a curious server -----------------------------------------------------------------


class RingCutters(Wire):
    """Two colluders that clear k/2 places beside each of them, with all that the server knows.

    The places between the two gaps hold few honest clients. If those in the gaps are out of the
    round, no pairwise mask leads out of there but to colluders, who know theirs; and the seeds of
    the survivors' own masks are opened anyway.
    """

    def __init__(self, federation, server, way, leaving):
        super().__init__({})
        self.federation, self.server, self.way = federation, server, way
        self.leaving = leaving
        self.colluders = set(range(federation.adversary.max_corrupt(len(federation.clients))))
        self.masked, self.private, self.gaps = {}, {}, {}

    def choose(self):
        """Which two colluders enclose the fewest, but more than a threshold."""
        ring, plan = self.server._round.ring, self.server._round.plan
        half, n = plan.neighbours // 2, plan.clients
        index = self.server._round.index
        at = {node: int(ring._place_of[index[node]]) for node in self.colluders}
        _, first, second = min(
            (between, a, b)
            for a in self.colluders
            for b in self.colluders - {a}
            if (between := (at[b] - at[a]) % n - 1 - 2 * half) > plan.threshold
        )

        def places(start, count):
            return [int(ring._at[(start + step) % n]) for step in range(count)]

        self.gaps = {
            first: places(at[first] + 1, half),
            second: places(at[second] - half, half),
        }
        between = (at[second] - at[first]) % n - 1 - 2 * half
        self.inside = places(at[first] + half + 1, between)

    def sent(self, node, client, answer):
        if kind_of(answer) is Kind.ADVERTISEMENT:
            return answer
        if not self.gaps:
            self.choose()
        if node in self.colluders and open_round(client) is not None:
            self.private[self.server._round.index[node]] = open_round(client).mask_private
        if kind_of(answer) is Kind.MASKED_UPDATE:
            self.masked[self.server._round.index[node]] = decode(
                answer, Kind.MASKED_UPDATE, [None, 0]
            )[0]
        if node in self.gaps:
            return self.way(self, node, client, answer)
        if self.leaving and node not in self.colluders:
            complains = kind_of(answer) is Kind.COMPLAINTS and any(fields_of(answer)[0])
            if complains or kind_of(answer) is Kind.DISPUTED_SHARES:
                return None
        return answer

    def partial_sum(self, secrets):
        """The sum of the honest clients inside, less the masks that are known; and who they are."""
        server, bits = self.server, self.server._round.bits
        node_of = [client.node for client in server._round.clients]
        survivors, taking_part = set(server._round.survivors), set(server._round.participants)
        inside = [o for o in self.inside if o in survivors and node_of[o] not in self.colluders]
        known = self.private | {o: s for o, s in secrets.items() if o not in survivors}
        total = np.zeros(SIZE, np.uint32)
        for owner in inside:
            add_packed(total, self.masked[owner], bits)
            seed = encode_element(secrets[owner])
            add_mask(total, keys.self_mask_key(seed, server._round.session), subtract=True)
            for other in server._round.ring.neighbours(owner):
                if other not in taking_part or other in inside or other not in known:
                    continue
                public = [server._round.clients[owner].advertised.mask_key]
                mine = known[other]
                (agreed,) = (
                    keys.agree(mine, public)
                    if isinstance(mine, bytes)
                    else sharing.agree_with(mine, public)
                )
                key = keys.pair_mask_key(agreed, owner, other, server._round.session)
                add_mask(total, key, subtract=not owner > other)
        return centred(total, bits), [node_of[owner] for owner in inside]


def spoil_boxes(cutters, node, client, answer):
    """Garbage to everybody in the gap; a dispute is not answered."""
    if kind_of(answer) is Kind.SHARES:
        gap, around = cutters.gaps[node], open_round(client).neighbours
        told, seeds, private, boxes = fields_of(answer)
        parts = [
            os.urandom(BOX) if other in gap else boxes[BOX * place :][:BOX]
            for place, other in enumerate(around)
        ]
        return encode(Kind.SHARES, bound_to(answer), told, seeds, private, b"".join(parts))
    return None if kind_of(answer) is Kind.DISPUTED_SHARES else answer


def accuse(cutters, node, client, answer):
    """Complain of everybody in the gap."""
    if kind_of(answer) is not Kind.COMPLAINTS:
        return answer
    gap, around = cutters.gaps[node], open_round(client).neighbours
    labels = [label for label, other in enumerate(around) if other in gap]
    return encode(Kind.COMPLAINTS, bound_to(answer), encode_set(labels, len(around)), b"")


def cut_the_ring(way, leaving):
    """Play the attack; ``leaving`` takes the defence out: who is concerned leaves."""
    federation = Federation(
        250, Adversary(ServerModel.HONEST_BUT_CURIOUS, max_corrupt_fraction=0.1), min_clients=175
    )
    vectors = draw_vectors(250, SIZE, seed=3)
    server = federation.server(federation.terms(SIZE), max_dropout_fraction=0.3)
    cutters = RingCutters(federation, server, way, leaving)
    messages = federation.invite(server)
    secrets = {}
    combined = server_stages.reconstruct

    def watched(state, client, *, survived):
        secret = combined(state, client, survived=survived)
        secrets[state.index[client.node]] = secret
        return secret

    with pytest.MonkeyPatch.context() as curious:  # a curious server keeps what it computes
        curious.setattr(server_stages, "reconstruct", watched)
        opened = cutters.play(server, messages, federation.clients, vectors)
    assert np.array_equal(opened, sum(vectors[node] for node in server.survivors))
    part, inside = cutters.partial_sum(secrets)
    read_off = np.array_equal(part, sum(vectors[node] for node in inside))
    return read_off, len(inside), server, cutters


@pytest.mark.parametrize("way", [spoil_boxes, accuse])
def test_two_colluders_cannot_cut_the_ring(way):
    """A curious server that follows the protocol, and colluders that know the ring."""
    read_off, inside, server, cutters = cut_the_ring(way, leaving=False)
    assert not read_off
    assert 3 < inside < 175
    honest = set(range(250)) - cutters.colluders
    assert honest <= set(server.survivors)
    assert set(cutters.gaps) <= set(server.offences)


@pytest.mark.parametrize("way", [spoil_boxes, accuse])
def test_they_could_if_those_concerned_left(way):
    """The control: the same attack, where a spoilt box or a complaint ends a client's round."""
    read_off, inside, server, _ = cut_the_ring(way, leaving=True)
    assert read_off
    assert 3 < inside < 175 <= len(server.survivors)
