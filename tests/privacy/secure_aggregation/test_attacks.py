"""What a server may not do: each attack is refused by the client, by name."""

import dataclasses

import pytest

from privacy.secure_aggregation import (
    ClientPolicy,
    Identity,
    RoundPlan,
    RoundTerms,
    SecureClient,
    plan_round,
)
from privacy.secure_aggregation import _server_stages as server_stages
from privacy.secure_aggregation._client_history import ClientHistory
from privacy.secure_aggregation._client_state import ClientStage
from privacy.secure_aggregation._crypto import sign
from privacy.secure_aggregation._messages import (
    AdvertisedKeys,
    Kind,
    bound_to,
    decode,
    decode_set,
    encode,
    encode_set,
    kind_of,
    survivors_statement,
)
from privacy.secure_aggregation.errors import (
    BothSharesError,
    CohortTooSmallError,
    DifferentRequestsError,
    ForgedSignatureError,
    InconsistentRosterError,
    MalformedRequestError,
    RejectedMessageError,
    RepeatedModelError,
    RepeatedRoundError,
    SplitViewError,
    StaleMessageError,
    TamperedSharesError,
    ThresholdTooLowError,
    TooFewNeighboursError,
    UnacceptableTermsError,
    UnknownIdentityError,
    WeakKeyError,
    WrongRoundError,
    WrongStageError,
)
from tests.privacy.secure_aggregation.federation import (
    HONEST,
    MALICIOUS,
    RUN,
    Federation,
    draw_vectors,
    open_round,
)

BOTH = pytest.mark.parametrize("adversary", [HONEST, MALICIOUS], ids=lambda a: a.server.value)
COUNT, SIZE = 12, 9


def rewritten(message, change):
    """The message with its fields changed by a careful server."""
    kind = kind_of(message)
    fields = []
    place = 37
    while place < len(message):
        length = int.from_bytes(message[place : place + 8], "little")
        fields.append(message[place + 8 : place + 8 + length])
        place += 8 + length
    return encode(kind, bound_to(message), *change(*fields))


class Round:
    """A round played up to a stage, and what its client 0 would be sent next."""

    def __init__(self, adversary, stage):
        self.federation = Federation(COUNT, adversary)
        self.vectors = draw_vectors(COUNT, SIZE)
        self.server = self.federation.server(self.federation.terms(SIZE))
        self.messages = self.federation.play_to(self.server, self.vectors, stage)
        self.client = self.federation.clients[0]
        self.message = self.messages[0]

    def refuses(self, error, message, match=None):
        """It has left then, its secrets forgotten."""
        self.refuses_and_stays(error, message, match, ClientStage.WAITING)

    def refuses_and_stays(self, error, message, match=None, stage=None):
        before = self.client.stage if stage is None else stage
        with pytest.raises(error, match=match) as caught:
            self.client.answer(message, self.vectors[0])
        assert type(caught.value) is error
        assert self.client.stage is before


CHECKING, MASKING, ENDORSING = 2, 3, 4
OPENING = {HONEST: 4, MALICIOUS: 5}
MALICE = {HONEST: 0, MALICIOUS: 1}


# Both shares, replays, other rounds ---------------------------------------------------------------


@BOTH
def test_a_second_request_would_give_both_shares_and_is_refused(adversary):
    attacked = Round(adversary, OPENING[adversary])
    client = attacked.client
    client.answer(attacked.message)

    def without_one(survivors, *rest):
        size = COUNT if attacked.federation.adversary is MALICIOUS else 8 * len(survivors)
        members = sorted(
            place for place in range(8 * len(survivors)) if survivors[place >> 3] >> (place & 7) & 1
        )
        return encode_set(members[1:], size), *rest

    for again in (attacked.message, rewritten(attacked.message, without_one)):
        attacked.refuses(BothSharesError, again)
    # Nor after it was put away and taken up again.
    attacked.client = SecureClient.from_bytes(
        client.to_bytes(), attacked.federation.policy, identity=client.identity
    )
    attacked.refuses(BothSharesError, attacked.message)


@BOTH
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_replayed_stage_is_refused(adversary, stage):
    attacked = Round(adversary, stage)
    attacked.client.answer(attacked.message, attacked.vectors[0])
    attacked.refuses_and_stays(StaleMessageError, attacked.message)


def test_replayed_survivors_are_refused():
    attacked = Round(MALICIOUS, ENDORSING)
    attacked.client.answer(attacked.message)
    attacked.refuses_and_stays(StaleMessageError, attacked.message)


@BOTH
def test_a_skipped_stage_is_refused(adversary):
    attacked = Round(adversary, 2)
    skipped = encode(Kind.OPENING_REQUEST, bound_to(attacked.message), b"", b"", b"")
    attacked.refuses(WrongStageError, skipped)


@BOTH
def test_a_client_takes_part_once(adversary):
    attacked = Round(adversary, 0)
    attacked.client.answer(attacked.message)
    attacked.refuses_and_stays(RepeatedRoundError, attacked.message)
    federation = attacked.federation
    attacked.refuses_and_stays(
        RepeatedRoundError, federation.server(federation.terms(SIZE + 1, number=1)).invitation()
    )
    later = federation.server(federation.terms(SIZE, number=5)).invitation()
    attacked.client.answer(later)
    earlier = federation.server(federation.terms(SIZE, number=4)).invitation()
    attacked.refuses_and_stays(RepeatedRoundError, earlier)
    weak = RoundTerms(bytes(16), 9, SIZE, 100, 3, (HONEST, MALICIOUS)[adversary is HONEST].server)
    declined = encode(Kind.INVITATION, weak.digest, weak.to_bytes())
    attacked.refuses_and_stays(UnacceptableTermsError, declined)


@BOTH
@pytest.mark.parametrize("stage", range(6))
def test_what_comes_late_does_not_end_the_round(adversary, stage):
    """Whatever was sent in the round before comes again, at every stage of the next one."""
    if stage > OPENING[adversary]:
        return
    one = Round(adversary, 0)
    federation, late = one.federation, [one.message]
    messages = federation.exchange(one.server, one.messages, one.vectors)
    while messages:
        late.append(messages[0])
        messages = federation.exchange(one.server, messages, one.vectors)
    server = federation.server(federation.terms(SIZE, number=2))
    messages = federation.play_to(server, one.vectors, stage)
    for message in late:
        with pytest.raises((WrongRoundError, WrongStageError, RepeatedRoundError)):
            one.client.answer(message, one.vectors[0])
    while messages:
        messages = federation.exchange(server, messages, one.vectors)
    assert (server.open() == sum(one.vectors.values())).all()


@BOTH
def test_a_reply_to_an_earlier_round_does_not_cost_the_reply_to_this_one(adversary):
    attacked = Round(adversary, MASKING)
    late = attacked.client.answer(attacked.message, attacked.vectors[0])
    server = attacked.federation.server(attacked.federation.terms(SIZE, number=2))
    messages = attacked.federation.play_to(server, attacked.vectors, MASKING)
    with pytest.raises(RejectedMessageError, match="another round"):
        server.receive(0, late)
    while messages:
        messages = attacked.federation.exchange(server, messages, attacked.vectors)
    assert (server.open() == sum(attacked.vectors.values())).all()


@BOTH
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_rounds_are_not_mixed(adversary, stage):
    one = Round(adversary, stage)
    terms = one.federation.terms(SIZE, number=2)
    other = one.federation.play_to(one.federation.server(terms), one.vectors, stage)
    first = one.message
    with pytest.raises((WrongRoundError, WrongStageError)) as caught:
        one.client.answer(first, one.vectors[0])  # it is in round 2 now
    assert type(caught.value) is WrongRoundError
    assert one.client.stage is not ClientStage.WAITING
    assert kind_of(other[0]) is kind_of(first)


def test_an_invitation_to_other_terms_than_it_is_bound_to_is_refused():
    attacked = Round(HONEST, 0)
    other = RoundTerms(RUN, 1, SIZE, 7, 3)
    attacked.refuses(
        WrongRoundError,
        encode(Kind.INVITATION, other.digest, *decode(attacked.message, Kind.INVITATION, [None])),
    )


@BOTH
def test_garbage_is_refused(adversary):
    for change in (
        lambda message: message[:-1],
        lambda message: message + b"\0",
        lambda message: message[:4] + bytes([Kind.OPENINGS]) + message[5:],
    ):
        attacked = Round(adversary, 1)
        attacked.refuses(MalformedRequestError, change(attacked.message))


@BOTH
def test_garbage_that_belongs_to_no_round_is_refused_and_ends_none(adversary):
    for change in (
        lambda message: b"",
        lambda message: message[:36],
        lambda message: b"BSA\x01" + message[4:],
        lambda message: message[:4] + b"\xff" + message[5:],
    ):
        attacked = Round(adversary, 1)
        attacked.refuses_and_stays(MalformedRequestError, change(attacked.message))


# Cohorts and thresholds ---------------------------------------------------------------------------


@BOTH
def test_a_shrunk_cohort_is_refused(adversary):
    federation = Federation(COUNT, adversary, min_clients=10)
    client = federation.clients[0]
    small = RoundTerms(RUN, 1, SIZE, 100, 9, adversary.server)
    with pytest.raises(CohortTooSmallError, match="at least 10"):
        client.answer(federation.server(small).invitation())

    # The terms are right, the plan is not.
    attacked = Round(adversary, 1)
    attacked.federation.min_clients = 10
    terms = attacked.federation.terms(SIZE, number=2)
    server = attacked.federation.server(terms, max_dropout_fraction=0.1)
    messages = attacked.federation.play_to(server, attacked.vectors, 1)

    def shrink(plan, listed):
        planned = RoundPlan.from_bytes(plan)
        return dataclasses.replace(planned, min_survivors=9).to_bytes(), listed

    attacked.refuses(CohortTooSmallError, rewritten(messages[0], shrink))


@BOTH
def test_a_plan_larger_than_those_it_lists_is_refused(adversary):
    """Before its conditions are computed: their work grows with the plan."""
    attacked = Round(adversary, 1)

    def grow(plan, listed):
        huge = RoundPlan(2**20, 4096, 4000, 2**20 - 1, 2**20)
        return huge.to_bytes(), listed

    attacked.refuses(InconsistentRosterError, rewritten(attacked.message, grow), match="bytes list")


@BOTH
def test_a_lowered_threshold_is_refused(adversary):
    attacked = Round(adversary, 1)

    def lower(plan, listed):
        planned = RoundPlan.from_bytes(plan)
        return dataclasses.replace(planned, threshold=1).to_bytes(), listed

    attacked.refuses(ThresholdTooLowError, rewritten(attacked.message, lower))


def test_a_round_for_another_server_is_refused():
    for mine, theirs in ((MALICIOUS, HONEST), (HONEST, MALICIOUS)):
        attacked = Round(mine, 0)
        terms = RoundTerms(RUN, 1, SIZE, 100, 3, theirs.server)
        attacked.refuses(
            UnacceptableTermsError, encode(Kind.INVITATION, terms.digest, terms.to_bytes())
        )


@BOTH
def test_a_bound_for_which_no_ring_is_large_enough_is_refused_before_anybody_trains(
    adversary, monkeypatch
):
    """The terms alone do not show it: how many clients there are comes with the plan."""
    bound = 2**58
    with monkeypatch.context() as lying:
        lying.setattr(server_stages, "ring_bits", lambda clients, bound: 62)
        federation = Federation(COUNT, adversary)
        server = federation.server(federation.terms(SIZE, bound=bound))
        messages = federation.play_to(server, draw_vectors(COUNT, SIZE), 1)
    for node, message in messages.items():
        with pytest.raises(UnacceptableTermsError, match="fits no ring"):
            federation.clients[node].answer(message)
        assert federation.clients[node].stage is ClientStage.WAITING


@BOTH
def test_too_few_participants_are_refused(adversary):
    attacked = Round(adversary, MASKING)
    neighbours = open_round(attacked.client).neighbours
    few = encode_set([0, 1], len(neighbours))
    if adversary is MALICIOUS:
        few = encode_set([open_round(attacked.client).own, *neighbours[:2]], COUNT)
    attacked.refuses(TooFewNeighboursError, rewritten(attacked.message, lambda members: (few,)))


def test_too_few_survivors_are_refused():
    attacked = Round(HONEST, OPENING[HONEST])
    size = len(open_round(attacked.client).neighbours)
    attacked.refuses(
        TooFewNeighboursError,
        rewritten(attacked.message, lambda *_: (encode_set([0], size), b"", b"")),
    )
    attacked = Round(MALICIOUS, ENDORSING)
    few = encode_set([open_round(attacked.client).own], COUNT)
    attacked.refuses(CohortTooSmallError, rewritten(attacked.message, lambda *_: (few, b"")))


# Split views --------------------------------------------------------------------------------------


def without(content, *indices):
    return encode_set(decode_set(content, COUNT) - set(indices), COUNT)


def test_two_groups_cannot_be_shown_different_survivors():
    """Each group endorses the survivors that it was shown; neither reaches the quorum."""
    attacked = Round(MALICIOUS, ENDORSING)
    state = {node: open_round(client) for node, client in attacked.federation.clients.items()}
    half = {node for node in attacked.messages if state[node].own < COUNT // 2}
    sets, endorsements = {}, {}
    for node, message in attacked.messages.items():
        victim = 0 if node not in half else COUNT - 1

        def hide(survivors, signatures, victim=victim, own=state[node]):
            present = [i for i in own.neighbours if i in decode_set(survivors, COUNT)]
            kept = [place for place, index in enumerate(present) if index != victim]
            return without(survivors, victim), b"".join(
                signatures[64 * place :][:64] for place in kept
            )

        answer = attacked.federation.clients[node].answer(rewritten(message, hide))
        sets[node] = state[node].survivors
        endorsements[node] = decode(answer, Kind.ENDORSEMENT, [64])[0]
    assert len(set(sets.values())) == 2
    for node in attacked.messages:
        # The server passes on all that it has for this group, and the other group's as well.
        for group in (half, set(attacked.messages) - half):
            chosen = sorted(group, key=lambda other: state[other].own)
            request = encode(
                Kind.OPENING_REQUEST,
                state[node].session,
                sets[node],
                encode_set([state[other].own for other in chosen], COUNT),
                b"".join(endorsements[other] for other in chosen),
            )
            with pytest.raises(SplitViewError, match=r"needed|not of the survivors") as caught:
                SecureClient.from_bytes(
                    attacked.federation.clients[node].to_bytes(),
                    attacked.federation.policy,
                    identity=attacked.federation.clients[node].identity,
                ).answer(request)
            assert type(caught.value) is SplitViewError


def test_endorsements_of_other_survivors_do_not_count():
    attacked = Round(MALICIOUS, OPENING[MALICIOUS])
    state = open_round(attacked.client)
    other = survivors_statement(state.session, state.participants, without(state.survivors, 3))
    by_index = {open_round(c).own: c for c in attacked.federation.clients.values()}
    forged = b"".join(sign(by_index[i].identity.private, other) for i in range(COUNT))
    attacked.refuses(
        ForgedSignatureError, rewritten(attacked.message, lambda s, e, _: (s, e, forged))
    )


def test_survivors_cannot_change_between_endorsing_and_opening():
    """Even if everybody else endorses the other survivors."""
    attacked = Round(MALICIOUS, OPENING[MALICIOUS])
    state = open_round(attacked.client)
    gone = state.neighbours[0]
    other = without(state.survivors, gone)
    statement = survivors_statement(state.session, state.participants, other)
    private = {open_round(c).own: c.identity.private for c in attacked.federation.clients.values()}
    signatures = b"".join(sign(private[i], statement) for i in range(COUNT) if i != gone)
    request = rewritten(attacked.message, lambda *_: (other, other, signatures))
    attacked.refuses(SplitViewError, request, match="endorsed")


def test_a_neighbour_that_saw_other_participants_is_noticed():
    """Else a server could remove edges of the graph, and so open a part of the sum."""
    attacked = Round(MALICIOUS, MASKING)
    victim = open_round(attacked.client).own
    target = next(c for c in attacked.federation.clients.values() if c is not attacked.client)
    node = next(n for n, c in attacked.federation.clients.items() if c is target)

    fewer = rewritten(attacked.messages[node], lambda members: (without(members, victim),))
    masked = target.answer(fewer, attacked.vectors[node])
    with pytest.raises(RejectedMessageError):  # an honest server cannot get here
        attacked.server.receive(node, masked)
    _, other_view = decode(masked, Kind.MASKED_UPDATE, [None, 64])
    for honest, message in attacked.messages.items():
        if honest != node:
            answer = attacked.federation.clients[honest].answer(message, attacked.vectors[honest])
            attacked.server.receive(honest, answer)
    survivors = attacked.server.advance()[0]
    neighbours, index = open_round(attacked.client).neighbours, open_round(target).own
    assert index in neighbours

    def smuggle(members, signatures):
        present = decode_set(members, COUNT) | {index}
        given = iter(signatures[start : start + 64] for start in range(0, len(signatures), 64))
        around = [other for other in neighbours if other in present]
        every = [other_view if other == index else next(given) for other in around]
        return encode_set(present, COUNT), b"".join(every)

    attacked.refuses(SplitViewError, rewritten(survivors, smuggle), match="other participants")


def test_survivors_that_do_not_take_part_are_refused():
    attacked = Round(HONEST, MASKING)
    size = len(open_round(attacked.client).neighbours)
    fewer = encode_set(range(1, size), size)
    attacked.client.answer(
        rewritten(attacked.message, lambda members: (fewer,)), attacked.vectors[0]
    )
    session = open_round(attacked.client).session
    request = encode(Kind.OPENING_REQUEST, session, encode_set(range(size), size), b"", b"")
    attacked.refuses(SplitViewError, request)


def test_a_client_is_not_left_out_of_the_survivors_it_endorses():
    attacked = Round(MALICIOUS, ENDORSING)
    own = open_round(attacked.client).own
    attacked.refuses(
        SplitViewError, rewritten(attacked.message, lambda s, rest: (without(s, own), rest))
    )


# Shares and identities ----------------------------------------------------------------------------


@BOTH
def test_missing_ciphertexts_are_refused(adversary):
    for fewer in (
        lambda sharers, boxes, evidence: (sharers, boxes[92:], evidence),
        lambda sharers, boxes, evidence: (sharers, boxes, evidence[128 + 64 * MALICE[adversary] :]),
    ):
        attacked = Round(adversary, CHECKING)
        attacked.refuses(TamperedSharesError, rewritten(attacked.message, fewer))


def entries(listed):
    return [listed[start : start + 192] for start in range(0, len(listed), 192)]


def own_keys(listed, own):
    """Replace another client's keys by the server's, under the old signature."""
    every = entries(listed)
    place = next(i for i, entry in enumerate(every) if entry[:32] != own)
    every[place] = every[place][:32] + bytes(range(64)) + every[place][96:]
    return b"".join(every)


def stranger(listed, own):
    """Put an identity that nobody pinned, with valid signatures, in the place of another."""
    identity = Identity.draw()
    mask, channel, asked = listed[32:64], listed[64:96], listed[96:128]
    signature = sign(identity.private, AdvertisedKeys.statement_of(asked, mask, channel))
    mine, *others = sorted(entries(listed), key=lambda entry: entry[:32] != own)
    return b"".join(
        sorted([identity.public + mask + channel + asked + signature, mine, *others[1:]])
    )


def twice(listed, own):
    """List somebody twice."""
    every = entries(listed)
    return b"".join([every[0], *every[:-1]])


def left_out(listed, own):
    """List everybody but the client itself."""
    return b"".join(entry for entry in entries(listed) if entry[:32] != own)


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (own_keys, ForgedSignatureError),
        (stranger, UnknownIdentityError),
        (twice, InconsistentRosterError),
        (left_out, InconsistentRosterError),
    ],
)
def test_a_forged_roster_is_refused(forge, error):
    attacked = Round(MALICIOUS, 1)
    own = attacked.client.identity.public
    attacked.refuses(
        error, rewritten(attacked.message, lambda plan, listed: (plan, forge(listed, own)))
    )


def test_keys_of_an_earlier_round_are_refused():
    """The signature of an announcement is bound to the terms of its round."""
    for forge, error in (
        (lambda old, asked: old, DifferentRequestsError),
        (lambda old, asked: old[:96] + asked + old[128:], ForgedSignatureError),
    ):
        attacked = Round(MALICIOUS, 1)
        _, old = decode(attacked.message, Kind.ROSTER, [None, None])
        server = attacked.federation.server(attacked.federation.terms(SIZE, number=2))
        message = attacked.federation.play_to(server, attacked.vectors, 1)[0]

        def replace(plan, listed, forge=forge, old=old):
            asked = listed[96:128]
            return plan, b"".join(forge(entry, asked) for entry in entries(old))

        attacked.refuses(error, rewritten(message, replace))


@pytest.mark.parametrize("differ", ["request", "bound", "configuration"])
def test_clients_that_were_asked_differently_share_no_roster(differ):
    """Each signs what it was asked: a roster of both is refused by name, before any vector."""
    federation = Federation(COUNT, MALICIOUS)
    usual = federation.terms(SIZE)
    other = {
        "request": dataclasses.replace(usual, request=bytes(range(32))),
        "bound": dataclasses.replace(usual, bound=1),
        "configuration": usual,
    }[differ]
    if differ == "configuration":
        federation.clients[0] = SecureClient(
            federation.policy, identity=federation.clients[0].identity, configuration=b"else"
        )
    asked = {node: usual if node else other for node in federation.clients}
    announced = {}
    for node, terms in asked.items():
        answer = federation.clients[node].answer(federation.server(terms).invitation())
        announced[node] = decode(answer, Kind.ADVERTISEMENT, [AdvertisedKeys.SIZE])[0]
    listed = b"".join(sorted(announced.values()))
    plan = plan_round(COUNT, adversary=MALICIOUS, max_dropout_fraction=0.3).to_bytes()
    for node, terms in asked.items():
        with pytest.raises(DifferentRequestsError, match="asked for something else"):
            federation.clients[node].answer(encode(Kind.ROSTER, terms.digest, plan, listed))


def test_an_honest_server_leaves_out_who_was_configured_otherwise():
    """Else one such client would end every round that it is in."""
    federation = Federation(COUNT, MALICIOUS)
    federation.clients[0] = SecureClient(
        federation.policy, identity=federation.clients[0].identity, configuration=b"else"
    )
    vectors = draw_vectors(COUNT, SIZE)
    server = federation.server(federation.terms(SIZE))
    opened = federation.play(server, vectors)
    assert opened.tolist() == sum(vectors[node] for node in range(1, COUNT)).tolist()
    assert server.offences == {0: ["was configured otherwise than most"]}


def play_twice(model, other):
    """Two rounds whose clients differ by one; the difference of their sums."""
    federation = Federation(COUNT, MALICIOUS)
    vectors = draw_vectors(COUNT, SIZE)
    opened = []
    for number, nodes in ((1, range(COUNT)), (2, range(1, COUNT))):
        server = federation.server(federation.terms(SIZE, number=number), max_dropout_fraction=0.0)
        messages = dict.fromkeys(nodes, server.invitation())
        while messages:
            for node, message in messages.items():
                said = other if number == 2 else model
                answer = federation.clients[node].answer(message, vectors[node], **said)
                server.receive(node, answer)
            messages = server.advance()
        opened.append(server.open())
    return opened[0] - opened[1] - vectors[0]


def test_two_sums_that_differ_by_one_client_are_refused(monkeypatch):
    """Also to who does not say what its vectors are of: all of them count as alike."""
    for said in ({}, {"model": bytes(range(32))}):
        with pytest.raises(RepeatedModelError):
            play_twice(said, said)
    play_twice({}, {"model": bytes(range(32))})
    monkeypatch.setattr(ClientHistory, "check_same_group", lambda *_: None)
    assert not play_twice({}, {}).any()  # without the defence it is that client's vector, exactly


@BOTH
def test_what_was_not_announced_makes_no_vector(adversary):
    attacked = Round(adversary, MASKING)
    with pytest.raises(DifferentRequestsError):
        attacked.client.answer(attacked.message, attacked.vectors[0], request=bytes(range(32)))
    assert attacked.client.stage is ClientStage.WAITING


def test_different_rosters_share_no_key():
    """Clients that were shown different rosters hold nothing of each other."""
    attacked = Round(MALICIOUS, 1)
    answers = {}
    for node, message in attacked.messages.items():
        client = attacked.federation.clients[node]
        if node == 1:  # another plan, just as strong
            message = rewritten(
                message,
                lambda plan, listed: (
                    dataclasses.replace(RoundPlan.from_bytes(plan), min_survivors=10).to_bytes(),
                    listed,
                ),
            )
        answers[node] = client.answer(message)
    assert bound_to(answers[1]) != bound_to(answers[0])
    rebound = answers[1][:5] + bound_to(answers[0]) + answers[1][37:]
    with pytest.raises(RejectedMessageError):  # its proof is bound to the roster that it saw
        attacked.server.receive(1, rebound)
    other = attacked.federation.clients[1]
    index = open_round(other).own
    for node in set(answers) - {1}:
        attacked.server.receive(node, answers[node])
    messages = attacked.server.advance()
    _, _, k_boxes = 0, 0, open_round(other).plan.neighbours
    boxes = rebound[-92 * k_boxes :]
    for node in set(answers) - {1}:
        client = attacked.federation.clients[node]
        label = open_round(client).neighbours.index(index)

        def smuggle(sharers, sealed, evidence, label=label, node=node):
            """What a malicious server would relay: the box, under any evidence."""
            mine = open_round(other).neighbours.index(
                open_round(attacked.federation.clients[node]).own
            )
            box = boxes[92 * mine :][:92]
            return (
                encode_set(decode_set(sharers, COUNT) | {index}, COUNT),
                sealed[: 92 * label] + box + sealed[92 * label :],
                evidence[: 192 * label] + bytes(192) + evidence[192 * label :],
            )

        client.answer(rewritten(messages[node], smuggle))
        assert label not in open_round(client).held_shares
        assert len(open_round(client).held_shares) == COUNT - 2


@pytest.mark.parametrize("place", [8, 40], ids=["mask key", "channel key"])
@pytest.mark.parametrize(
    "weak",
    [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"), b"\xff" * 32],
    ids=["0", "1", "-1", "another form"],
)
def test_a_neighbour_with_a_weak_key_is_refused_before_anybody_trains(place, weak):
    attacked = Round(HONEST, 1)
    attacked.refuses(
        WeakKeyError,
        rewritten(
            attacked.message,
            lambda plan, listed: (plan, listed[:place] + weak + listed[place + 32 :]),
        ),
    )


def test_invitations_do_not_make_a_client_forget_which_rounds_it_was_in():
    client = SecureClient(ClientPolicy(min_clients=3))

    def invitation(run):
        terms = RoundTerms(run.to_bytes(16, "big"), 1, SIZE, 100, 3)
        return encode(Kind.INVITATION, terms.digest, terms.to_bytes())

    for run in range(2000):
        client.answer(invitation(run))
    for run in (0, 1, 1999):
        with pytest.raises(RepeatedRoundError):
            client.answer(invitation(run))


def test_a_neighbourhood_of_oneself_is_refused():
    attacked = Round(HONEST, 1)
    attacked.refuses(
        InconsistentRosterError,
        rewritten(
            attacked.message, lambda plan, listed: (plan, listed[:4] + listed[:4] + listed[8:])
        ),
    )


def test_the_server_takes_no_strangers_or_doubles():
    federation = Federation(COUNT, MALICIOUS)
    server = federation.server(federation.terms(SIZE))
    stranger = SecureClient(federation.policy, identity=Identity.draw())
    with pytest.raises(RejectedMessageError, match="unknown identity"):
        server.receive(99, stranger.answer(server.invitation()))
    announcement = federation.clients[0].answer(server.invitation())
    server.receive(0, announcement)
    for node, reason in ((0, "twice"), (1, "identity of another")):
        with pytest.raises(RejectedMessageError, match=reason):
            server.receive(node, announcement)
    other = federation.clients[1].answer(server.invitation())
    forged = other[:-1] + bytes([other[-1] ^ 1])
    with pytest.raises(RejectedMessageError, match="not signed"):
        server.receive(1, forged)
