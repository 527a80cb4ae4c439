"""Clients in rounds of several runs at once: none ends another's, and no model is opened twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secure_aggregation import SecureClient
from privacy.secure_aggregation._client_history import ClientHistory
from privacy.secure_aggregation._client_state import ClientStage
from privacy.secure_aggregation.errors import (
    BothSharesError,
    MalformedRequestError,
    RepeatedModelError,
    RepeatedRoundError,
    WrongRoundError,
)
from tests.privacy.secure_aggregation.federation import HONEST, MALICIOUS, Federation, draw_vectors

COUNT, SIZE = 12, 3
BOTH = pytest.mark.parametrize("adversary", [HONEST, MALICIOUS], ids=["curious", "malicious"])
MASKING, ENDORSING = 3, 4


def run_name(place):
    return bytes([place + 1] * 16)


class Play:
    """One run's round over the clients of a federation, stage by stage."""

    def __init__(self, federation, place, *, number=1, nodes=None):
        self.federation = federation
        self.vectors = draw_vectors(COUNT, SIZE, seed=place)
        self.nodes = range(COUNT) if nodes is None else nodes
        # Rounds of different models, but for the tests that say otherwise.
        self.model = bytes([place] * 32)
        self.server = federation.server(
            federation.terms(SIZE, run=run_name(place), number=number, bound=100)
        )
        self.messages = dict.fromkeys(self.nodes, self.server.invitation())

    def step(self):
        """Play one stage; whether there is another one."""
        for node, message in self.messages.items():
            client = self.federation.clients[node]
            vector = self.vectors[node] if client.needs_vector(message) else None
            self.server.receive(node, client.answer(message, vector, model=self.model))
        self.messages = self.server.advance()
        return bool(self.messages)

    def to(self, stage):
        for _ in range(stage):
            self.step()
        return self

    def finish(self):
        while self.messages:
            self.step()
        assert np.array_equal(self.server.open(), sum(self.vectors[node] for node in self.nodes))


def taken_up_again(federation):
    """All clients as after a restart."""
    for node, client in federation.clients.items():
        federation.clients[node] = SecureClient.from_bytes(
            client.to_bytes(), federation.policy, identity=client.identity
        )


@settings(deadline=None, max_examples=8)
@given(data=st.data())
@pytest.mark.parametrize("adversary", [HONEST, MALICIOUS], ids=["curious", "malicious"])
def test_rounds_of_several_runs_are_played_side_by_side(adversary, data):
    """In any order of their stages, also by clients that are put away in between."""
    federation = Federation(COUNT, adversary)
    plays = [Play(federation, place) for place in range(data.draw(st.integers(2, 3)))]
    under_way = list(plays)
    while under_way:
        place = data.draw(st.integers(0, len(under_way) - 1))
        if not under_way[place].step():
            under_way.pop(place)
        if data.draw(st.booleans()):
            taken_up_again(federation)
    for play in plays:
        assert play.server.offences == {}
        assert np.array_equal(play.server.open(), sum(play.vectors.values()))


@BOTH
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_what_one_run_does_wrong_ends_its_own_round_only(adversary, stage):
    """A refused message, an invitation that is declined, garbage: the other run's round goes on."""
    federation = Federation(COUNT, adversary)
    honest, other = Play(federation, 0).to(stage), Play(federation, 1).to(1)
    client = federation.clients[0]
    with pytest.raises(MalformedRequestError):
        client.answer(other.messages[0] + b"\0")
    with pytest.raises((WrongRoundError, MalformedRequestError)):
        client.answer(b"garbage")
    with pytest.raises(WrongRoundError):
        client.answer(other.messages[0])  # it has left that one
    with pytest.raises(RepeatedRoundError):
        client.answer(other.server.invitation())
    honest.finish()


@BOTH
def test_a_later_round_of_a_run_ends_its_earlier_one(adversary):
    federation = Federation(COUNT, adversary)
    first = Play(federation, 0).to(MASKING)
    late = first.messages[0]
    Play(federation, 0, number=2).to(1)
    with pytest.raises(WrongRoundError):
        federation.clients[0].answer(late, first.vectors[0])


@BOTH
def test_shares_are_opened_once_in_each_run(adversary):
    """Also where another run's were opened since, and after a restart."""
    federation = Federation(COUNT, adversary)
    plays = [Play(federation, place) for place in range(2)]
    opening = []
    for play in plays:
        while play.messages:
            last = play.messages
            play.step()
        opening.append(last[0])
    taken_up_again(federation)
    for message in opening:
        with pytest.raises(BothSharesError):
            federation.clients[0].answer(message)


@BOTH
def test_the_rounds_that_a_client_is_in_are_bounded(adversary, caplog):
    """The one that it has not heard of for longest gives way, and its owner's log says so."""
    federation = Federation(COUNT, adversary)
    client = federation.clients[0]
    kept = Play(federation, 0).to(1)
    given_way = Play(federation, 1).to(1)
    kept.step()  # heard of since
    sizes = []
    for place in range(2, 40):
        invitation = Play(federation, place).server.invitation()
        for one in federation.clients.values():
            one.answer(invitation)
        if place == 7:
            kept.step()
        sizes.append(len(client.to_bytes()))
        if place == 8:
            assert "leaves the round" in caplog.text
            with pytest.raises(WrongRoundError):
                client.answer(given_way.messages[0])
            kept.finish()
    assert sizes[-1] - sizes[-2] < 100  # what it remembers of the run, and no round more


# One model ----------------------------------------------------------------------------------------


def test_without_the_defence_two_rounds_at_once_give_one_vector(monkeypatch):
    """Of two sums of one model over clients that differ by one."""
    monkeypatch.setattr(ClientHistory, "check_same_group", lambda *_: None)
    monkeypatch.setattr(SecureClient, "_check_side_by_side", lambda *_: None)
    federation = Federation(COUNT, MALICIOUS)
    one, other = (
        Play(federation, place, nodes=nodes)
        for place, nodes in ((0, range(COUNT)), (1, range(1, COUNT)))
    )
    other.model, other.vectors = one.model, one.vectors  # training is deterministic
    while one.messages or other.messages:
        for play in (one, other):
            if play.messages:
                play.step()
    assert np.array_equal(one.server.open() - other.server.open(), one.vectors[0])


@pytest.mark.parametrize("stage", [MASKING + 1, ENDORSING + 1], ids=["masked", "endorsed"])
def test_a_model_is_summed_over_one_set_of_clients_also_in_rounds_at_once(stage):
    federation = Federation(COUNT, MALICIOUS)
    one = Play(federation, 0).to(stage)
    other = Play(federation, 1, nodes=range(1, COUNT)).to(MASKING)
    with pytest.raises(RepeatedModelError):
        federation.clients[1].answer(other.messages[1], other.vectors[1], model=one.model)
    one.finish()


def test_a_model_may_be_summed_twice_at_once_over_the_same_clients():
    federation = Federation(COUNT, MALICIOUS)
    plays = [Play(federation, place).to(MASKING) for place in range(2)]
    plays[1].model = plays[0].model
    for play in plays:
        play.step()
    for play in plays:
        play.finish()


def test_a_client_says_what_is_next_in_the_round_that_it_heard_of_last():
    federation = Federation(COUNT)
    client = federation.clients[0]
    assert client.stage is ClientStage.WAITING
    one, other = Play(federation, 0).to(1), Play(federation, 1).to(1)
    one.step()
    assert client.stage is ClientStage.CHECKING
    assert client.terms_of(one.messages[0]).run == run_name(0)
    assert client.terms_of(other.messages[0]).run == run_name(1)
    client.leave(one.messages[0])
    assert client.stage is ClientStage.SHARING
    with pytest.raises(WrongRoundError):
        client.terms_of(one.messages[0])
