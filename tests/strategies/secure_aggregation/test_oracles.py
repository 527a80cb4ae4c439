"""A client's replies do not tell of its update: neither what they are, nor that they are missing.

The attacks read a client's largest entry from whether its update fits a ring that the server has
chosen too small. Each is played with the defence and without it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from privacy.secure_aggregation import _client_stages as _client_round
from privacy.secure_aggregation._messages import Kind
from privacy.secure_aggregation.errors import TooFewClientsError
from strategies import FolderMemory, InProcessGrid, SecureAggregationMod
from strategies.secure_aggregation import protocol_client
from strategies.secure_aggregation.messages import request_digest
from strategies.secure_aggregation.update_encoding import UpdateEncoding
from tests.strategies.federation import client_app
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    IDENTITIES,
    MALICIOUS,
    ByHand,
    mod,
    policy,
    request_to_train,
    said,
    secure_app,
)

NODES, SIZE, VICTIM = 12, 9, 1
BOTH = pytest.mark.parametrize("adversary", [CURIOUS, MALICIOUS], ids=lambda a: a.server.value)
generator = np.random.default_rng(5)
SECRET = [generator.normal(0, 0.1, SIZE).astype(np.float32) for _ in range(NODES)]


# Whatever the app does ----------------------------------------------------------------------------

Answer = Callable[[Message], Message]


def reply_of(arrays: Any, metrics: dict[str, Any] | None = None) -> Answer:
    def answer(message: Message) -> Message:
        records: dict[str, Any] = {"arrays": ArrayRecord(arrays)}
        if metrics is not None:
            records["metrics"] = MetricRecord(metrics)
        return Message(RecordDict(records), reply_to=message)

    return answer


def raising(error: BaseException) -> Answer:
    def answer(message: Message) -> Message:
        raise error

    return answer


def without_arrays(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def an_error(message: Message) -> Message:
    return Message(Error(1, "no budget is left"), reply_to=message)


def no_message(message: Message) -> Message:
    return None  # type: ignore[return-value]


def emptied(message: Message) -> Message:
    """The app may do with its message what it likes."""
    for name in list(message.content):
        del message.content[name]
    return Message(message.content, reply_to=message)


FAILURES: dict[str, Answer] = {
    "raises": raising(RuntimeError("one of this client's images is broken")),
    "has no memory left": raising(MemoryError()),
    "exits": raising(SystemExit(3)),
    "is cancelled": raising(asyncio.CancelledError()),
    "ends as a generator": raising(GeneratorExit()),
    "answers with an error": an_error,
    "answers nothing": no_message,
    "empties its message": emptied,
    "leaves the arrays out": without_arrays,
    "NaN": reply_of([np.full(SIZE, np.nan, np.float32)]),
    "infinite": reply_of([np.full(SIZE, np.inf, np.float32)]),
    "overflows": reply_of([np.full(SIZE, 3e38, np.float32)]),
    "another shape": reply_of([np.zeros((SIZE, 1), np.float32)]),
    "another length": reply_of([np.zeros(SIZE + 1, np.float32)]),
    "integers": reply_of([np.zeros(SIZE, np.int64)]),
    "objects": reply_of([np.zeros(SIZE, np.complex64)]),
    "one array more": reply_of([np.zeros(SIZE, np.float32), np.zeros(1, np.float32)]),
}
WEIGHTS: dict[str, dict[str, Any] | None] = {
    "says no weight": None,
    "weighs nothing": {"num-examples": 0},
    "weighs less": {"num-examples": -1.0},
    "weighs NaN": {"num-examples": float("nan")},
    "weighs several": {"num-examples": [1.0, 2.0]},
}


def app_of(answer: Answer, adversary: Any) -> ClientApp:
    """Clients that add one hundredth each, but for the victim, which does as ``answer`` says."""
    app = ClientApp(mods=[mod(adversary)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if int(context.node_config["partition-id"]) == VICTIM - 1:
            return answer(message)
        return reply_of([np.full(SIZE, 0.01, np.float32)], {"num-examples": 1.0})(message)

    return app


@BOTH
@pytest.mark.parametrize("how", ["replaces it", "empties it", "empties the record"])
def test_an_app_that_overwrites_its_state_stays_in_the_round(how: str, adversary: Any) -> None:
    """What the mod keeps in the context is there after the app, and so is what the app keeps."""
    app = ClientApp(mods=[mod(adversary)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if how == "replaces it":
            context.state = RecordDict()
        elif how == "empties it":
            context.state.clear()
        else:
            context.state["secure-aggregation"].clear()
        context.state["own"] = ConfigRecord({"rounds": 1})
        return reply_of([np.full(SIZE, 0.01, np.float32)], {"num-examples": 1.0})(message)

    grid = InProcessGrid(app, NODES)
    attacked = ByHand(grid, range(1, NODES + 1), adversary)
    attacked.send(request_to_train)
    assert attacked.open().tolist() == [NODES * 2] * SIZE
    assert not attacked.refusals
    assert all("own" in grid.context(node).state for node in range(1, NODES + 1))


def check_alike(answer: Answer, adversary: Any, **request: Any) -> None:
    """Nothing but the sum differs, in which the victim is not."""
    grid = InProcessGrid(app_of(answer, adversary), NODES)
    announced = request_to_train(0, **request)
    attacked = ByHand(grid, range(1, NODES + 1), adversary, announced=announced)
    replies = attacked.send(lambda node, content: request_to_train(node, content, **request))
    sent = [said(reply) for reply in replies]
    assert len(sent) == NODES
    assert {content[4] for content in sent} == {Kind.MASKED_UPDATE}
    assert len({len(content) for content in sent}) == 1
    assert len({tuple(reply.content) for reply in replies}) == 1
    assert attacked.open().tolist() == [(NODES - 1) * 2] * SIZE  # 0.01 is 2.56 cells of 1/256


@BOTH
@pytest.mark.parametrize("name", FAILURES)
def test_a_client_that_fails_answers_as_the_others_do(name: str, adversary: Any) -> None:
    check_alike(FAILURES[name], adversary)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_client_whose_weight_is_wrong_answers_as_the_others_do(name: str) -> None:
    moved = reply_of([np.full(SIZE, 0.5, np.float32)], WEIGHTS[name])
    check_alike(moved, CURIOUS, weight_cap=1.0)


# Reading an update off replies --------------------------------------------------------------------


def cells(partition: int, norm: float, radius: int) -> int:
    """The largest entry of an update on the lattice that the server asked for."""
    return int(np.abs(np.trunc(SECRET[partition] * radius / norm * (1 - 2.0**-20))).max())


def moved(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    return [SECRET[partition]]


def unfitting(vector: Any, terms: Any, clients: int) -> Any:
    """Refuse a vector that does not fit, in place of adding zeros."""
    if np.abs(vector).max() > clients * terms.bound:
        raise ValueError("the vector does not fit")
    return vector


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the defence out: terms need not fit the mechanism, and what does not fit is refused."""
    monkeypatch.setattr(UpdateEncoding, "check", lambda self, terms, policy, template: None)
    monkeypatch.setattr(_client_round, "_fitting", unfitting)


ONE_SHOT = {"clipping_norms": [1.0], "mechanism_settings": [80]}
LARGE = {part + 1 for part in range(NODES) if cells(part, 1.0, 80) > NODES}


def who_answers_with_an_error(app: ClientApp) -> set[int]:
    """One round with a bound of 1, honest otherwise, and the same for all."""
    grid = InProcessGrid(app, NODES)
    attacked = ByHand(grid, range(1, NODES + 1), bound=1, announced=request_to_train(0, **ONE_SHOT))
    with suppress(TooFewClientsError):
        attacked.send(lambda node, content: request_to_train(node, content, **ONE_SHOT))
    return {reply.metadata.src_node_id for reply in attacked.replies if reply.has_error()}


def test_without_the_defence_a_small_bound_tells_whose_entries_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attack works where the defence is taken out."""
    unchecked(monkeypatch)
    assert 0 < len(LARGE) < NODES
    refused = who_answers_with_an_error(secure_app(moved))
    assert refused == LARGE


def test_a_small_bound_tells_nothing() -> None:
    """All refuse it, whatever they hold, and nobody has trained."""
    trained = []

    def watched(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        trained.append(partition)
        return moved(partition, number, arrays)

    refused = who_answers_with_an_error(secure_app(watched))
    assert refused == set(range(1, NODES + 1))
    assert not trained


class Probing:
    """A malicious server that sends one client the same deliveries under smaller and smaller norms.

    Its ring holds 12 cells an entry. With a lattice of 2²⁰ cells the norm at which the update no
    longer fits gives the largest entry away.
    """

    RADIUS = 1 << 20

    def __init__(self, folder: Path, *, rolled_back: bool) -> None:
        self._folder, self._rolled_back = folder, rolled_back
        self.trained = 0
        self.reasons: list[str] = []
        grid = InProcessGrid(client_app(self._update, mods=[self._secagg_mod]), NODES)
        first = self._request(VICTIM, b"", 1.0)
        self._round = ByHand(grid, range(1, NODES + 1), MALICIOUS, bound=1, announced=first)
        self._kept = (folder / "0" / "secure-aggregation.state").read_bytes()

    def _update(self, partition: int, number: int, arrays: list[Any]) -> list[Any]:
        self.trained += 1
        return [SECRET[partition]]

    def _secagg_mod(self, message: Message, context: Context, call_next: Any) -> Message:
        place = int(context.node_config["partition-id"])
        own = SecureAggregationMod(
            policy(MALICIOUS),
            identity=IDENTITIES[place],
            memory=FolderMemory(self._folder / str(place)),
        )
        return own(message, context, call_next)

    def _request(self, node: int, content: bytes, norm: float) -> Message:
        return request_to_train(
            node, content, clipping_norms=[norm], mechanism_settings=[self.RADIUS]
        )

    def fits(self, norm: float) -> bool:
        """Whether the victim answers with a vector."""
        if self._rolled_back:
            (self._folder / "0" / "secure-aggregation.state").write_bytes(self._kept)
        message = self._request(VICTIM, self._round.requests[VICTIM], norm)
        (reply,) = self._round.grid.send_and_receive([message])
        if reply.has_error():
            self.reasons.append(reply.error.reason.partition(":")[0])
        return not reply.has_error()


def test_without_the_defence_probes_read_the_largest_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack works where the defence is taken out, the stage that is left for good included."""
    unchecked(monkeypatch)
    monkeypatch.setattr(protocol_client, "request_digest", announced_anyway)
    probing = Probing(tmp_path, rolled_back=True)
    low, high = 1e-6, 1.0 * Probing.RADIUS  # of the norm at which the update just fits
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if probing.fits(middle) else (middle, high)
    largest = (NODES + 1) * high / Probing.RADIUS
    assert largest == pytest.approx(float(np.abs(SECRET[0]).max()), rel=0.01)
    assert probing.trained > 10
    assert set(probing.reasons) == {"the client could not do its part"}


def announced_anyway(message: Message) -> bytes:
    """Tell no request from the announced one."""
    return request_digest(
        request_to_train(0, clipping_norms=[1.0], mechanism_settings=[Probing.RADIUS])
    )


@pytest.mark.parametrize("norm", [1.0, 0.01, 1e6])
def test_probes_are_refused_before_anybody_trains(norm: float, tmp_path: Path) -> None:
    """The first because the terms do not fit, or it was not announced; then the stage is over."""
    probing = Probing(tmp_path, rolled_back=False)
    assert not any(probing.fits(probe) for probe in (norm, 1.0, norm, 1e6))
    first = "UnacceptableTermsError" if norm == 1.0 else "DifferentRequestsError"
    assert probing.reasons == [first, "WrongStageError", "WrongStageError", "WrongStageError"]
    assert probing.trained == 0


# One training a round -----------------------------------------------------------------------------


@pytest.mark.parametrize("died", [False, True])
def test_one_round_is_trained_once(died: bool, tmp_path: Path) -> None:
    """Also where the client's process ends while it trains: the stage was left on disk before."""
    trained = []

    def secagg_mod(message: Message, context: Context, call_next: Any) -> Message:
        place = int(context.node_config["partition-id"])
        own = SecureAggregationMod(policy(), memory=FolderMemory(tmp_path / str(place)))
        return own(message, context, call_next)

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        trained.append(partition)
        if died:
            raise KeyboardInterrupt
        return [SECRET[partition]]

    grid = InProcessGrid(client_app(update, mods=[secagg_mod]), NODES)
    attacked = ByHand(grid, range(1, NODES + 1))
    request = request_to_train(VICTIM, attacked.requests[VICTIM])
    if died:
        with pytest.raises(KeyboardInterrupt):
            grid.send_and_receive([request])
        grid._contexts.clear()
    else:
        (reply,) = grid.send_and_receive([request])
        assert said(reply)[4] == Kind.MASKED_UPDATE
    for _ in range(2):
        (again,) = grid.send_and_receive([request_to_train(VICTIM, attacked.requests[VICTIM])])
        assert again.error.reason.startswith("StaleMessageError:")
    assert trained == [VICTIM - 1]
