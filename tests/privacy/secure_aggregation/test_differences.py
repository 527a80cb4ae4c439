"""Two sums of one model, whatever a malicious server does between them: never of few clients.

It plays two rounds of two runs, of which each has some clients for itself. Of the others it asks
one part first for the vector of one round, and the rest for that of the other one, so that each
part would endorse another sum; and between the two it makes them forget what they can.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.secure_aggregation import RoundPlan, RoundTerms, SecureClient, SecureServer
from privacy.secure_aggregation import _server_stages as server_stages
from privacy.secure_aggregation import client as client_module
from privacy.secure_aggregation._client_history import ClientHistory
from privacy.secure_aggregation._messages import Kind, encode
from privacy.secure_aggregation.errors import (
    RefusedError,
    RoundAbortedError,
    ThresholdTooLowError,
    WrongRoundError,
)
from tests.privacy.secure_aggregation.federation import MALICIOUS, Federation, draw_vectors

CLIENTS, IN_ONE, SIZE, MODEL = 15, 3, 3, bytes([7] * 32)
CORRUPT = MALICIOUS.max_corrupt(CLIENTS)  # in both rounds; they remember nothing
HONEST_OF = [
    range(CORRUPT + IN_ONE * place, CORRUPT + IN_ONE * (place + 1)) for place in range(2)
]  # in one round only
SHARED = range(CORRUPT + 2 * IN_ONE, CLIENTS + IN_ONE)
HALF = len(SHARED) // 2
PROMISED = (CLIENTS - CORRUPT) // 2 + 1  # "more than (n − C)/2 honest ones"
STAGES, MASKING = 6, 3


def least_plan() -> RoundPlan:
    """What clients accept of a server that wants few to be enough."""
    for threshold in range(1, CLIENTS):
        plan = RoundPlan(CLIENTS, CLIENTS - 1, threshold, 2 * CLIENTS // 3, CLIENTS)
        with suppress(ThresholdTooLowError):
            plan.check(MALICIOUS)
            return plan
    raise AssertionError("there is a plan")


@pytest.fixture(scope="module", autouse=True)
def planned_by_the_adversary() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_stages, "plan_round", lambda *_, **__: least_plan())
        yield


@dataclass(frozen=True)
class Game:
    """What the server does.

    ``steps`` are the rounds whose next stage is played. Of those who are in both, ``firsts`` are
    the rounds that get their vector first; ``between`` is what comes before the other one asks.
    """

    steps: tuple[int, ...]
    firsts: tuple[int, ...]
    between: tuple[str, ...]


BETWEEN = ("spoilt", "evicted", "next round", "restarted")
AT_ONCE = (0, 1) * STAGES
SPLIT = tuple(int(place >= HALF) for place in range(len(SHARED)))
games = st.builds(
    Game,
    steps=st.permutations(AT_ONCE).map(tuple) | st.just(AT_ONCE),
    firsts=st.permutations(SPLIT).map(tuple) | st.tuples(*[st.integers(0, 1)] * len(SHARED)),
    between=st.lists(st.sampled_from(BETWEEN), max_size=2).map(tuple),
)


class Played:
    """A game, over a federation of its own."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.vectors = draw_vectors(CLIENTS + IN_ONE, SIZE, seed=3)  # training is deterministic
        self.federation = Federation(CLIENTS + IN_ONE, MALICIOUS)
        self.clients = self.federation.clients
        for node in range(CORRUPT):
            self.clients[node]._history.check_same_group = lambda *_: None
            self.clients[node]._check_side_by_side = lambda *_: None
        self.servers = [
            SecureServer(
                self.terms(bytes([place + 1] * 16)),
                adversary=MALICIOUS,
                max_dropout_fraction=0.0,
                cohort=CLIENTS,
                client_public_keys=self.federation.public_keys,
            )
            for place in range(2)
        ]
        self.messages = [
            dict.fromkeys([*range(CORRUPT), *HONEST_OF[place], *SHARED], server.invitation())
            for place, server in enumerate(self.servers)
        ]
        self.stage, self.over = [0, 0], [False, False]
        self.asked: list[set[int]] = [set(), set()]
        self.gave: list[set[int]] = [set(), set()]
        self.strangers = 0
        for place in [*game.steps, *AT_ONCE]:
            if not self.over[place]:
                self.step(place)

    def terms(self, run: bytes, number: int = 1) -> RoundTerms:
        return self.federation.terms(SIZE, run=run, number=number)

    def invite(self, node: int, run: bytes, number: int = 1) -> None:
        stranger = SecureServer(
            self.terms(run, number),
            adversary=MALICIOUS,
            max_dropout_fraction=0.0,
            cohort=CLIENTS,
            client_public_keys=self.federation.public_keys,
        )
        with suppress(RefusedError):
            self.clients[node].answer(stranger.invitation())

    def step(self, place: int) -> None:
        if self.stage[place] == MASKING and not self.asked[place]:
            for node in self.messages[place]:
                first = self.game.firsts[node - SHARED[0]] if node in SHARED else place
                if first == place or node in self.asked[first]:
                    self.ask(place, node)
            return  # the others are asked before its next stage
        for node in self.messages[place]:
            self.ask(place, node)
        try:
            self.messages[place] = self.servers[place].advance()
        except RoundAbortedError:
            self.messages[place] = {}
        self.stage[place] += 1
        self.over[place] = not self.messages[place]

    def ask(self, place: int, node: int) -> None:
        if self.stage[place] == MASKING:
            if node in self.asked[place]:
                return
            if node in self.asked[1 - place] and node in SHARED:
                for event in self.game.between:
                    self.disturb(1 - place, node, event)
            self.asked[place].add(node)
        message = self.messages[place][node]
        with suppress(RefusedError):
            answer = self.clients[node].answer(message, self.vectors[node], model=MODEL)
            self.servers[place].receive(node, answer)
            if self.stage[place] == MASKING:
                self.gave[place].add(node)

    def disturb(self, place: int, node: int, event: str) -> None:
        """Make a client forget what it can of the round that has its vector."""
        client = self.clients[node]
        if event == "spoilt" and node in self.messages[place]:
            session = self.messages[place][node][5:37]
            with suppress(RefusedError):
                client.answer(encode(Kind.SURVIVORS, session))
        elif event == "evicted":
            for _ in range(7):
                self.strangers += 1
                self.invite(node, self.strangers.to_bytes(16, "big"))
        elif event == "next round":
            self.invite(node, bytes([place + 1] * 16), number=2)
        elif event == "restarted":
            self.clients[node] = SecureClient.from_bytes(
                client.to_bytes(), self.federation.policy, identity=client.identity
            )

    def difference(self) -> set[int]:
        """The honest clients whose vectors the opened sums' difference consists of; none if one is
        not opened."""
        opened = []
        for server in self.servers:
            with suppress(RoundAbortedError, RuntimeError):
                total = server.open()
                survivors = set(server.survivors)
                assert np.array_equal(total, sum(self.vectors[node] for node in survivors))
                opened.append(survivors)
        return {n for n in opened[0] ^ opened[1] if n >= CORRUPT} if len(opened) == 2 else set()


FORGETTING = pytest.mark.parametrize(
    "between", [(event, "restarted") for event in ("spoilt", "evicted", "next round")], ids=str
)
# The second round has begun before the vector is given to the first, and is heard of afterwards.
FIRST_THEN_SECOND = (0, 0, 0, 1, 1, 0, 1, 1)
ATTACK = Game(AT_ONCE, SPLIT, ("spoilt",))
LATER = Game((0,) * 4 + (1,) * 4 + (0, 1) * STAGES, SPLIT, ())


def without(monkeypatch: pytest.MonkeyPatch, defence: str) -> None:
    monkeypatch.setattr(SecureClient, defence, lambda *_: None)


def test_the_attack_succeeds_on_clients_who_forget_what_they_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "_note_given")
    difference = Played(ATTACK).difference()
    assert difference == {*HONEST_OF[0], *HONEST_OF[1]}
    assert len(difference) < PROMISED


def test_and_where_the_second_round_begins_later_on_those_who_forget_what_they_endorsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ClientHistory, "check_same_group", lambda *_: None)
    without(monkeypatch, "_check_side_by_side")
    assert 0 < len(Played(LATER).difference()) < PROMISED


@FORGETTING
def test_who_gave_a_vector_gives_none_to_a_round_over_others_that_waited(
    between: tuple[str, ...],
) -> None:
    """Whatever has become of the round that has it, and after a restart."""
    played = Played(Game(FIRST_THEN_SECOND, (0,) * len(SHARED), between))
    assert played.gave[0] >= {*SHARED}
    assert not played.gave[1] & {*SHARED}


@FORGETTING
def test_it_would_where_it_did_not_tell_the_one_that_waits(
    between: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "_note_given")
    played = Played(Game(FIRST_THEN_SECOND, (0,) * len(SHARED), between))
    assert played.gave[1] >= {*SHARED}


def test_a_round_that_began_after_its_predecessor_was_left_gets_the_vector() -> None:
    """Nothing is remembered of what was given and not endorsed; the endorsement decides."""
    played = Played(Game((0,) * 4 + (1,) * 4, (0,) * len(SHARED), ("spoilt",)))
    assert played.gave[1] >= {*SHARED}


def test_what_a_waiting_round_keeps_of_other_rounds_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client leaves it then, and its owner's log says so."""
    monkeypatch.setattr(client_module, "_MOST_GIVEN", 2)
    federation = Federation(CLIENTS, MALICIOUS)
    vectors = draw_vectors(CLIENTS, SIZE)

    def begun(place: int, stages: int) -> dict[int, bytes]:
        server = federation.server(federation.terms(SIZE, run=bytes([place] * 16)))
        return federation.play_to(server, vectors, stages)

    waiting = begun(0, MASKING)
    client = federation.clients[0]
    for place in range(1, 4):
        assert "has waited" not in caplog.text
        asking = begun(place, MASKING)
        client.answer(asking[0], vectors[0], model=bytes([place] * 32))
    assert "has waited" in caplog.text
    with pytest.raises(WrongRoundError):
        client.answer(waiting[0], vectors[0], model=MODEL)


@settings(deadline=None, max_examples=20)
@example(ATTACK)
@example(LATER)
@example(Game(AT_ONCE, SPLIT, ("spoilt", "restarted")))
@example(Game(AT_ONCE, SPLIT, ("next round",)))
@example(Game(LATER.steps, SPLIT, ("spoilt",)))
@given(games)
def test_two_sums_of_a_model_never_differ_by_few_clients(game: Game) -> None:
    difference = Played(game).difference()
    assert not difference or len(difference) >= PROMISED
