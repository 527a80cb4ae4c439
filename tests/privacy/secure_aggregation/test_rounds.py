"""The opened sum is the plain sum, exactly; and below the threshold nothing is opened."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms import SeededRandomness
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
    ServerStage,
    plan_round,
)
from privacy.secure_aggregation._client_state import ClientStage
from privacy.secure_aggregation.errors import (
    MalformedMessageError,
    RejectedMessageError,
    RoundAbortedError,
    StaleMessageError,
    TooFewClientsError,
)
from tests.privacy.secure_aggregation.federation import (
    HONEST,
    MALICIOUS,
    RUN,
    Federation,
    draw_vectors,
)

STAGES = {HONEST: 5, MALICIOUS: 6}
MASKING = 3
BOTH = pytest.mark.parametrize("adversary", [HONEST, MALICIOUS], ids=lambda a: a.server.value)


@BOTH
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_sum_is_exact_whoever_drops_out_whenever(adversary, data):
    count = data.draw(st.integers(10, 22), label="clients")
    size = data.draw(st.sampled_from([1, 2, 63, 64, 65, 1000]), label="size")
    bound = data.draw(st.sampled_from([1, 100, 2**20, 2**40]), label="bound")
    leaves = data.draw(
        st.dictionaries(st.integers(0, count - 1), st.integers(0, STAGES[adversary] - 1)),
        label="stage at which a client vanishes",
    )
    seed = data.draw(st.integers(0, 99))
    check_that_the_sum_is_exact_or_the_round_over(adversary, count, size, bound, leaves, seed)


@BOTH
@pytest.mark.parametrize(
    ("count", "leaves"),
    [
        (17, {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}),  # one more than planned for, before training
        (17, {0: 0, 1: 2, 2: 2, 3: 2, 4: 2, 5: 2}),
        (17, {0: 0, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3}),  # only now it is too late
        (17, {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
    ],
)
def test_a_round_that_cannot_be_opened_ends_before_anybody_trains(adversary, count, leaves):
    check_that_the_sum_is_exact_or_the_round_over(adversary, count, 1, 1, leaves, 0)


def check_that_the_sum_is_exact_or_the_round_over(adversary, count, size, bound, leaves, seed):
    """Either the exact sum, or the server ended the round, and as soon as it could know.

    No client refuses anything (that would raise here): where too few are left, the server sees it.
    """
    federation = Federation(count, adversary)
    vectors = draw_vectors(count, size, bound, seed=seed)
    server = federation.server(federation.terms(size, bound=bound))

    def left(stage):
        return sum(leaves.get(node, 9) > stage for node in range(count))

    try:
        plan = plan_round(left(0), adversary=adversary, max_dropout_fraction=0.3, cohort=count)
    except ValueError:
        must_open, may_open = False, False
    else:
        gone = left(0) - left(STAGES[adversary])
        must_open = left(STAGES[adversary]) >= plan.min_survivors and (
            plan.complete or gone <= plan.neighbours - plan.threshold
        )
        may_open = left(MASKING) >= plan.min_survivors
    try:
        opened = federation.play(
            server, vectors, lambda stage, node: leaves.get(node, stage + 1) > stage
        )
    except TooFewClientsError:
        assert not must_open
        assert server.stage is ServerStage.OVER
        with pytest.raises(RuntimeError):
            server.open()
        if left(MASKING - 1) == left(STAGES[adversary]):  # nobody left later
            assert federation.trained == 0
        return
    assert may_open
    survivors = [node for node in range(count) if leaves.get(node, 9) > MASKING]
    assert sorted(server.survivors) == survivors
    assert opened.dtype == np.int64
    assert np.array_equal(opened, sum(vectors[node] for node in survivors))


@BOTH
def test_extreme_entries_do_not_overflow(adversary):
    federation = Federation(12, adversary)
    for number, sign in enumerate((1, -1), start=1):
        vectors = {node: np.full(5, sign * 2**20) for node in range(12)}
        server = federation.server(federation.terms(5, bound=2**20, number=number))
        assert federation.play(server, vectors).tolist() == [sign * 12 * 2**20] * 5


@BOTH
@pytest.mark.parametrize("stage", range(5))
def test_below_the_minimum_nothing_is_opened_at_any_stage(adversary, stage):
    federation = Federation(12, adversary, min_clients=10)
    vectors = draw_vectors(12, 8)
    server = federation.server(federation.terms(8), max_dropout_fraction=0.1)
    with pytest.raises(TooFewClientsError):
        federation.play(server, vectors, lambda now, node: now < stage or node > 5)
    for finish in (server.open, server.advance):
        with pytest.raises(RuntimeError):
            finish()


def test_what_the_server_holds_of_a_client_looks_uniform():
    """A masked zero, 8 bits of 40,000 entries: chi-square, false alarm 1e-6."""
    federation = Federation(10)
    size = 40_000
    vectors = {node: np.zeros(size, np.int64) for node in range(10)}
    server = federation.server(federation.terms(size, bound=12))  # a ring of 8 bits
    messages = federation.play_to(server, vectors, MASKING)
    masked = federation.clients[0].answer(messages[0], vectors[0])
    packed = np.frombuffer(masked[-8 - size : -8], np.uint8)
    counts = np.bincount(packed, minlength=256)
    assert len(packed) == size
    assert ((counts - size / 256) ** 2 / (size / 256)).sum() < 376  # 1 - 1e-6, 255 degrees


@BOTH
def test_clients_are_put_away_between_messages(adversary):
    federation = Federation(10, adversary)
    vectors = draw_vectors(10, 20)

    def put_away():
        for node, client in federation.clients.items():
            federation.clients[node] = SecureClient.from_bytes(
                client.to_bytes(), federation.policy, identity=client.identity
            )

    server = federation.server(federation.terms(20))
    messages = federation.invite(server)
    while messages:
        put_away()
        messages = federation.exchange(server, messages, vectors)
    assert np.array_equal(server.open(), sum(vectors.values()))
    state = federation.clients[0].to_bytes()
    for bad in (state[:-1], state + b"\0", b"", b"XSA\x01" + state[4:]):
        with pytest.raises(MalformedMessageError):
            SecureClient.from_bytes(bad, federation.policy, identity=Identity.draw())


@BOTH
def test_one_malformed_client_costs_only_itself(adversary):
    federation = Federation(12, adversary)
    vectors = draw_vectors(12, 20)
    server = federation.server(federation.terms(20))
    messages = federation.play_to(server, vectors, MASKING)
    good = federation.clients[3].answer(messages[3], vectors[3])
    for bad in (b"", good[:-3], good + b"\0", good[:4] + b"\5" + good[5:], bytes(len(good))):
        with pytest.raises(RejectedMessageError):
            server.receive(3, bad)
    with pytest.raises(RejectedMessageError):
        server.receive(3, good)  # one try each
    with pytest.raises(RejectedMessageError):
        server.receive(99, good)
    del messages[3]
    while messages:
        messages = federation.exchange(server, messages, vectors)
    assert np.array_equal(server.open(), sum(vectors[n] for n in range(12) if n != 3))


@BOTH
def test_wrong_openings_are_found_and_left_out(adversary):
    federation = Federation(12, adversary)
    vectors = draw_vectors(12, 20)
    server = federation.server(federation.terms(20))
    messages = federation.play_to(server, vectors, STAGES[adversary] - 1)
    for node, message in messages.items():
        opened = federation.clients[node].answer(message)
        server.receive(node, opened if node else opened[:-40] + bytes(40))
    assert np.array_equal(server.open(), sum(vectors.values()))


@BOTH
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(5, np.int64),
        np.zeros((2, 2), np.int64),
        np.full(4, 0.5),
        np.array([0, 0, 0, 1001]),
        np.array([0, -1001, 0, 0]),
        np.array([0, np.iinfo(np.int64).min, 0, 0]),
        np.array([0, np.iinfo(np.uint64).max, 0, 0], np.uint64),
    ],
    ids=["long", "shape", "float", "above", "below", "smallest", "unsigned"],
)
def test_a_vector_that_breaks_the_terms_counts_as_zeros(adversary, bad):
    """To answer otherwise, or not at all, would tell the server of it."""
    federation = Federation(10, adversary)
    vectors = draw_vectors(10, 4)
    server = federation.server(federation.terms(4, bound=100))
    messages = federation.play_to(server, vectors, MASKING)
    others = sum(vectors[node] for node in range(1, 10))
    sent = {}
    for node, message in messages.items():
        sent[node] = federation.clients[node].answer(message, vectors[node] if node else bad)
        server.receive(node, sent[node])
    assert len({(len(answer), answer[:37]) for answer in sent.values()}) == 1
    messages = server.advance()
    while messages:
        messages = federation.exchange(server, messages, vectors)
    assert np.array_equal(server.open(), others)


@BOTH
def test_a_vector_that_is_made_late_is_made_once(adversary):
    """The stage is over before the vector is made, also for a client that is put away then."""
    federation = Federation(10, adversary)
    vectors = draw_vectors(10, 4)
    server = federation.server(federation.terms(4))
    messages = federation.play_to(server, vectors, MASKING)
    client = federation.clients[0]
    with pytest.raises(ValueError, match="vector is missing"):
        client.answer(messages[0])
    client.prepare(messages[0])
    assert client.stage is ClientStage.TRAINING
    assert not client.needs_vector(messages[0])
    again = SecureClient.from_bytes(client.to_bytes(), federation.policy, identity=client.identity)
    with pytest.raises(StaleMessageError):
        again.prepare(messages[0])
    assert again.stage is ClientStage.TRAINING
    server.receive(0, client.masked(messages[0], vectors[0]))
    for node in range(1, 10):
        server.receive(node, federation.clients[node].answer(messages[node], vectors[node]))
    messages = server.advance()
    while messages:
        messages = federation.exchange(server, messages, vectors)
    assert np.array_equal(server.open(), sum(vectors.values()))


@BOTH
def test_a_vector_that_comes_late_is_not_sent_in_the_next_round(adversary):
    """Its masks would be those of another round, and it would be added twice."""
    federation = Federation(10, adversary)
    vectors = draw_vectors(10, 4)
    client = federation.clients[0]
    late = federation.play_to(federation.server(federation.terms(4)), vectors, MASKING)[0]
    client.prepare(late)
    server = federation.server(federation.terms(4, number=2))
    messages = federation.play_to(server, vectors, MASKING)
    client.prepare(messages[0])
    with pytest.raises(StaleMessageError, match="left the round"):
        client.masked(late, vectors[0])
    assert client.stage is ClientStage.TRAINING
    server.receive(0, client.masked(messages[0], vectors[0]))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_corrupt_fraction"):
        Adversary(max_corrupt_fraction=0.5)
    with pytest.raises(ValueError, match="min_clients"):
        ClientPolicy(min_clients=2)
    with pytest.raises(ValueError, match="client_public_keys"):
        ClientPolicy(min_clients=3, adversary=MALICIOUS)
    for wrong in ({"run": b"x"}, {"number": 0}, {"size": 0}, {"bound": 0}, {"min_clients": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RoundTerms(**{"run": RUN, "number": 1, "size": 1, "bound": 1, "min_clients": 3} | wrong)
    terms = RoundTerms(RUN, 1, 1, 1, 3, ServerModel.MALICIOUS)
    with pytest.raises(ValueError, match="agree"):
        SecureServer(terms, adversary=HONEST, max_dropout_fraction=0.1, cohort=3)
    for wrong in ({"max_dropout_fraction": 1.0}, {"max_dropout_fraction": -0.1}, {"cohort": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SecureServer(
                terms, **{"adversary": MALICIOUS, "max_dropout_fraction": 0.1, "cohort": 3} | wrong
            )
    assert RoundTerms.from_bytes(terms.to_bytes()) == terms
    assert "private" not in repr(Identity.draw(SeededRandomness(1)))


def test_an_aborted_round_does_not_stop_the_next():
    federation = Federation(12)
    vectors = draw_vectors(12, 6)
    with pytest.raises(RoundAbortedError):
        federation.play(
            federation.server(federation.terms(6, number=1)), vectors, lambda s, node: s < 2
        )
    server = federation.server(federation.terms(6, number=2))
    assert np.array_equal(federation.play(server, vectors), sum(vectors.values()))
