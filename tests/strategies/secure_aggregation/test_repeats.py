"""Two sums of one model over almost the same clients: their difference is those few who differ."""

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message

from privacy.mechanisms import SeededRandomness
from privacy.secure_aggregation import _client_history as client_history
from privacy.secure_aggregation._messages import Kind
from privacy.secure_aggregation.errors import RoundAbortedError
from strategies import (
    Checkpointing,
    ClientMemory,
    ContextMemory,
    FolderMemory,
    InProcessGrid,
    SecureAggregationMod,
)
from tests.strategies.federation import client_app, model
from tests.strategies.secure_aggregation.federation import (
    IDENTITIES,
    MALICIOUS,
    ByHand,
    Wire,
    asked,
    policy,
    request_to_train,
    secure,
    secure_app,
    strategy_of,
)

NODES, SIZE, VICTIM = 12, 9, 8
ALL = frozenset(range(1, NODES + 1))
generator = np.random.default_rng(3)
UPDATES = [generator.normal(0, 0.05, SIZE).astype(np.float32) for _ in range(NODES)]
CELLS = [np.trunc(update * 256 * (1 - 2.0**-20)).astype(int) for update in UPDATES]


def app(
    memory: Callable[[int], ClientMemory] = lambda place: ContextMemory(),
    trained: list[int] | None = None,
) -> Any:
    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        if trained is not None:
            trained.append(partition)
        return [UPDATES[partition]]

    def secagg_mod(message: Message, context: Context, call_next: Any) -> Message:
        place = int(context.node_config["partition-id"])
        own = SecureAggregationMod(
            policy(MALICIOUS), identity=IDENTITIES[place], memory=memory(place)
        )
        return own(message, context, call_next)

    return client_app(update, mods=[secagg_mod])


class Rounds:
    """A malicious server that plays round after round over the same clients."""

    def __init__(self, grid: InProcessGrid) -> None:
        self.grid = grid
        self.number = 0
        self.refusals: set[str] = set()

    def play(
        self,
        nodes: Collection[int] = ALL,
        *,
        vanish: Collection[int] = (),
        to_the_end: bool = True,
        run: bytes = bytes(16),
        **change: Any,
    ) -> Any:
        """The opened sum; None if clients refused so that it could not be opened.

        Of those in ``vanish`` the server pretends that no update came.
        """
        self.number += 1
        request = request_to_train(0, **change)
        attacked = ByHand(
            self.grid, nodes, MALICIOUS, announced=request, run=run, number=self.number
        )
        with suppress(RoundAbortedError):
            attacked.send(
                lambda node, content: request_to_train(node, content, **change), without=vanish
            )
            if to_the_end:
                opened = attacked.open()
                self.refusals |= attacked.refusals
                return opened
        self.refusals |= attacked.refusals
        return None


@pytest.fixture
def rounds() -> Rounds:
    return Rounds(InProcessGrid(app(), NODES))


def test_without_the_defence_two_sums_give_one_update(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack works where the defence is taken out, exactly."""
    monkeypatch.setattr(
        client_history.ClientHistory, "check_same_group", lambda self, model, group: None
    )
    difference = rounds.play() - rounds.play(ALL - {VICTIM})
    assert difference.tolist() == CELLS[VICTIM - 1].tolist()


AGAIN: dict[str, dict[str, Any]] = {
    "without the victim": {"nodes": ALL - {VICTIM}},
    "whose update is lost": {"vanish": {VICTIM}},
    "in another run": {"nodes": ALL - {VICTIM}, "run": bytes(range(16))},
    "with another config": {"nodes": ALL - {VICTIM}, "config": {"server-round": 2}},
    "with another cap": {"nodes": ALL - {VICTIM}, "weight_cap": 1.0},
    "with another norm": {"nodes": ALL - {VICTIM}, "clipping_norms": [2.0]},
    "in another dtype": {"nodes": ALL - {VICTIM}, "arrays": model((SIZE,), dtype=np.float64)},
    "under another name": {
        "nodes": ALL - {VICTIM},
        "arrays": ArrayRecord({"w": model((SIZE,))["0"]}),
    },
    "with zeros of another sign": {
        "nodes": ALL - {VICTIM},
        "arrays": ArrayRecord([np.full(SIZE, -0.0, np.float32)]),
    },
}


@pytest.mark.parametrize("again", AGAIN)
def test_a_second_sum_of_the_same_model_is_refused(again: str) -> None:
    """Before anybody trains, where the participants are others; else before anything is opened."""
    trained: list[int] = []
    rounds = Rounds(InProcessGrid(app(trained=trained), NODES))
    assert rounds.play() is not None
    assert rounds.play(**AGAIN[again]) is None
    assert rounds.refusals == {"RepeatedModelError"}
    assert len(trained) == (2 * NODES - 1 if "vanish" in AGAIN[again] else NODES)


def test_nor_is_the_one_that_the_victim_is_added_to(rounds: Rounds) -> None:
    """The others protect it: it has seen the model once only."""
    assert rounds.play(ALL - {VICTIM}) is not None
    assert rounds.play() is None
    assert rounds.refusals == {"RepeatedModelError"}


def test_nor_one_that_was_endorsed_and_never_seen_to_open(rounds: Rounds) -> None:
    """A client cannot see whether a sum that it has endorsed was opened."""
    rounds.grid = Wire(app(), NODES, cut=lambda m: asked(m) is Kind.OPENING_REQUEST)
    assert rounds.play() is None
    rounds.refusals.clear()
    assert rounds.play(ALL - {VICTIM}) is None
    assert rounds.refusals == {"RepeatedModelError"}


def test_it_is_refused_by_a_client_that_was_started_again(tmp_path: Path) -> None:
    memory = lambda place: FolderMemory(tmp_path / str(place))  # noqa: E731
    assert Rounds(InProcessGrid(app(memory), NODES)).play() is not None
    again = Rounds(InProcessGrid(app(memory), NODES))
    assert again.play(ALL - {VICTIM}, run=bytes(range(16))) is None
    assert again.refusals == {"RepeatedModelError"}


def test_the_same_clients_may_open_the_same_model_again(rounds: Rounds) -> None:
    """The difference of the two sums is nothing."""
    assert rounds.play().tolist() == rounds.play(run=bytes(range(16))).tolist()
    assert rounds.play(ALL - {VICTIM}, arrays=ArrayRecord([np.full(SIZE, 0.5)])) is not None
    assert not rounds.refusals


def test_a_round_that_was_not_endorsed_leaves_no_trace(rounds: Rounds) -> None:
    """Nothing of it can be opened, however many updates were sent: others may take its place."""
    assert rounds.play(to_the_end=False) is None
    assert rounds.play(ALL - {VICTIM}) is not None
    assert not rounds.refusals


@pytest.mark.parametrize("bound", ["_MOST_MODELS", "_MOST_RUNS"])
def test_what_a_client_remembers_is_bounded_and_never_forgotten(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its memory is full it takes part no more, whatever a server has pushed into it."""
    monkeypatch.setattr(client_history, bound, 3)
    wire = Wire(app(), NODES)
    rounds = Rounds(wire)

    def play(value: int, nodes: Collection[int] = ALL) -> Any:
        arrays = ArrayRecord([np.full(SIZE, value + 1.0)])
        return rounds.play(nodes, arrays=arrays, run=bytes([value] * 16))

    assert all(play(value) is not None for value in range(3))
    full = len(wire.context(1).state["secure-aggregation"]["state"])
    for value in range(3, 6):
        wire.replies.clear()
        with pytest.raises(RoundAbortedError):
            play(value)
        assert {r.error.reason.partition(":")[0] for r in wire.replies} == {"MemoryFullError"}
    second = None
    with suppress(RoundAbortedError):
        second = play(0, ALL - {VICTIM})
    assert second is None  # of the first model above all
    assert len(wire.context(VICTIM).state["secure-aggregation"]["state"]) <= full


# The server that follows the protocol -------------------------------------------------------------


class Lost(Wire):
    """A network that in round 1 loses half of the shares that open the sum, and later one node."""

    def __init__(self) -> None:
        super().__init__(
            secure_app(lambda partition, *_: [UPDATES[partition]], MALICIOUS),
            NODES,
            cut=self._loses,
        )
        self.invited = 0

    def _loses(self, message: Message) -> bool:
        self.invited += asked(message) is Kind.INVITATION
        node = message.metadata.dst_node_id
        if self.invited <= NODES:
            return asked(message) is Kind.OPENING_REQUEST and node <= NODES // 2
        return node == VICTIM


def test_a_run_goes_on_after_a_round_that_was_endorsed_and_lost(tmp_path: Path) -> None:
    """The lost round steps the model by noise, so that no client has seen the next one before."""
    wire, started = Lost(), model((SIZE,))
    strategy = strategy_of(
        tmp_path,
        NODES,
        SIZE,
        secure(MALICIOUS, min_clients=6),
        noise_multiplier=1.0,
        randomness=SeededRandomness(4),
    )
    kept = []
    result = strategy.start(
        wire, started, num_rounds=3, evaluate_fn=lambda number, arrays: kept.append(arrays)
    )
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (1,)
    assert len({arrays["0"].data for arrays in kept}) == 4
    assert not any(r.has_error() and "SameModel" in r.error.reason for r in wire.replies)


def test_without_noise_a_lost_round_cannot_be_played_by_others(tmp_path: Path) -> None:
    """Nothing moves the model then; its clients refuse it, by name."""
    wire = Lost()
    strategy = strategy_of(tmp_path, NODES, SIZE, secure(MALICIOUS, min_clients=6))
    result = strategy.start(wire, model((SIZE,)), num_rounds=2)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (1, 2)
    names = {r.error.reason.partition(":")[0] for r in wire.replies if r.has_error()}
    assert names == {"RepeatedModelError"}


@pytest.mark.parametrize(("gone", "aborted"), [(set(), ()), ({VICTIM}, (2,))], ids=str)
def test_a_resumed_run_goes_on_where_its_last_sum_was_opened(
    gone: set[int], aborted: tuple[int, ...], tmp_path: Path
) -> None:
    """The server died between the sum and its checkpoint, so that round 2 is played again.

    All of its clients may take part again together. Where one is missing the others decline the
    model, until the noise of the round that is lost so has moved it.
    """
    checkpoint, before = tmp_path / "checkpoint", tmp_path / "before"
    wire = Wire(secure_app(lambda partition, *_: [UPDATES[partition]], MALICIOUS), NODES)

    def keep(number: int, arrays: ArrayRecord) -> None:
        if number == 1:
            before.write_bytes(checkpoint.read_bytes())

    settings = {"noise_multiplier": 1.0}
    setting = secure(MALICIOUS, min_clients=6)
    first = strategy_of(
        tmp_path, NODES, SIZE, setting, checkpointing=Checkpointing(checkpoint), **settings
    )
    first.start(wire, model((SIZE,)), num_rounds=2, evaluate_fn=keep)
    wire.offline |= gone
    wire.replies.clear()
    again = strategy_of(
        tmp_path, NODES, SIZE, setting, checkpointing=Checkpointing(resume=before), **settings
    )
    result = again.start(wire, model((SIZE,)), num_rounds=4)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == aborted
    assert result.privacy.stopped is None
    assert set(result.privacy.epsilon_by_round) >= {2, 3, 4}  # with all but the second one opened
    declined = {r.error.reason.partition(":")[0] for r in wire.replies if r.has_error()}
    assert declined == ({"RepeatedModelError"} if gone else set())
