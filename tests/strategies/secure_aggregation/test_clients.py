"""The mod as a client's own defence: what it answers, refuses, keeps and forgets."""

import contextlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import read_ledger
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
)
from privacy.secure_aggregation._messages import Kind
from privacy.secure_aggregation.errors import RoundAbortedError, UnreadableStateError
from strategies import (
    ClientMemory,
    ContextMemory,
    FolderMemory,
    InProcessGrid,
    SecureAggregationMod,
)
from strategies.errors import NoUsableReplyError
from tests.strategies.federation import client_app, model
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    IDENTITIES,
    KEY,
    MALICIOUS,
    PINNED,
    ByHand,
    Wire,
    asked,
    policy,
    protocol_message,
    request_to_train,
    said,
    secure,
    secure_app,
    strategy_of,
)

NODES = 12
SIZE = 9


def drift(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    return [np.full_like(a, 0.01 * (partition + 1)) for a in arrays]


def run(wire: InProcessGrid, folder: Path, setting: Any = None, **settings: Any) -> Any:
    strategy = strategy_of(folder, NODES, SIZE, setting or secure(), **settings)
    return strategy.start(wire, model((SIZE,)), num_rounds=1)


def refusals(wire: Wire) -> set[str]:
    return {reply.error.reason for reply in wire.replies if reply.has_error()}


@pytest.mark.parametrize(
    ("theirs", "own", "name"),
    [
        (secure(min_clients=5), policy(min_clients=6), "CohortTooSmallError"),
        (secure(), policy(MALICIOUS), "UnacceptableTermsError"),
        (secure(MALICIOUS), policy(), "UnacceptableTermsError"),
        (
            secure(max_dropout_fraction=0.0),
            policy(Adversary(ServerModel.HONEST_BUT_CURIOUS, max_corrupt_fraction=0.45)),
            "ThresholdTooLowError",
        ),
        (
            secure(MALICIOUS),
            ClientPolicy(min_clients=3, adversary=MALICIOUS, client_public_keys=PINNED[1:]),
            "UnknownIdentityError",
        ),
    ],
    ids=[
        "min_clients",
        "server too weak",
        "server too strong",
        "max_corrupt_fraction",
        "client_public_keys",
    ],
)
def test_terms_below_its_own_policy_are_refused_by_name(
    theirs: Any,
    own: ClientPolicy,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the server's messages say, and before anybody trains; the console says so."""
    trained = []

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        trained.append(partition)
        return arrays

    def secagg_mod(message: Message, context: Context, call_next: Any) -> Message:
        identity = IDENTITIES[int(context.node_config["partition-id"])]
        inner = SecureAggregationMod(own, identity=identity, memory=ContextMemory())
        return inner(message, context, call_next)

    wire = Wire(client_app(update, mods=[secagg_mod]), NODES)
    aborted: tuple[int, ...] = ()
    with contextlib.suppress(NoUsableReplyError):
        aborted = run(wire, tmp_path, theirs).privacy.secure_aggregation.aborted_rounds
    joined = {asked(message) for message in wire.requests} != {Kind.INVITATION}
    assert aborted == ((1,) if joined else ())  # else it ends before it is paid
    (ledger,) = tmp_path.rglob("*.jsonl")
    assert {record.round for record in read_ledger(ledger).records} == set(aborted)
    assert {reason.partition(":")[0] for reason in refusals(wire)} == {name}
    assert not trained
    assert any("refuses the round as its own policy" in line for line in caplog.messages)


def plain_request(kind: str, grid: InProcessGrid) -> Message:
    content = RecordDict({"arrays": model((SIZE,)), "config": ConfigRecord({"server-round": 1})})
    message = Message(content, message_type=kind, dst_node_id=1)
    grid.push_messages([message])
    return message


@pytest.mark.parametrize("kind", ["train", "evaluate", "train.other"])
def test_nothing_is_sent_outside_the_protocol(kind: str) -> None:
    """A server that simply switches secure aggregation off gets no update and no metrics."""
    app = secure_app(drift)

    @app.train("other")
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, NODES)
    plain_request(kind, grid)
    (reply,) = grid.pull_messages(["1"])
    assert reply.has_error()
    assert reply.error.reason.startswith("UnprotectedRequestError: the server asks to")


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"message": text_or_number})
        for text_or_number in ("text", 5, 0.5, True, [b"a"], [], ["a"], b"", b"x" * 100)
    ]
    + [ConfigRecord(), MetricRecord({"message": 1.0}), model((SIZE,))],
    ids=str,
)
def test_what_is_no_message_of_the_protocol_is_refused_by_name(
    record: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of any kind: it is the server's fault, and no failure of the client's with a traceback."""
    grid = Wire(secure_app(drift), 1)
    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    message = Message(RecordDict({KEY: record}), message_type="train", dst_node_id=1)
    (reply,) = grid.send_and_receive([message])
    assert reply.error.reason.startswith("MalformedRequestError: ")
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("value", ["text", 5, [b"a"], None], ids=str)
def test_a_reply_that_is_no_message_of_the_protocol_is_logged_as_that(
    value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def alter(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id != 1:
            return reply
        kept = {} if value is None else {"message": value}
        return Message(RecordDict({KEY: ConfigRecord(kept)}), reply_to=message)

    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    run(Wire(secure_app(drift), NODES, alter=alter), tmp_path)
    (told,) = {line for line in caplog.messages if "dropped a reply" in line}
    assert "it is no message of the secure-aggregation protocol" in told


def test_queries_are_the_apps_own() -> None:
    app = secure_app(drift)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"told": MetricRecord({"answer": 42})}), reply_to=message)

    grid = InProcessGrid(app, NODES)
    plain_request("query", grid)
    (reply,) = grid.pull_messages(["1"])
    assert reply.content["told"]["answer"] == 42


def test_the_app_sees_the_message_as_without_the_mod(tmp_path: Path) -> None:
    """And is called once a round; what it keeps in its context stays there."""
    seen: list[tuple[int, list[str], dict[str, Any], bytes]] = []

    def watching(mods: list[Any]) -> ClientApp:
        app = ClientApp(mods=mods)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            arrays, config = message.content["arrays"], dict(message.content["config"])
            seen.append((context.node_id, sorted(message.content), config, arrays["0"].data))
            context.state["mine"] = MetricRecord({"calls": 1})
            return Message(message.content, reply_to=message)

        return app

    masked = InProcessGrid(watching([SecureAggregationMod(policy())]), NODES)
    run(masked, tmp_path / "masked")
    plain = strategy_of(tmp_path / "plain", NODES, SIZE, None)
    plain.start(InProcessGrid(watching([]), NODES), model((SIZE,)), num_rounds=1)
    assert len(seen) == 2 * NODES
    by_node = [sorted(part, key=lambda call: call[0]) for part in (seen[:NODES], seen[NODES:])]
    assert by_node[0] == by_node[1]
    assert masked.context(1).state.metric_records["mine"]["calls"] == 1


@pytest.mark.parametrize("adversary", [CURIOUS, MALICIOUS], ids=["curious", "malicious"])
def test_runs_at_once_on_the_same_nodes_lose_nothing(adversary: Adversary, tmp_path: Path) -> None:
    """Two servers, each with its own run; every node keeps one memory, on its disk."""

    def secagg_mod(message: Message, context: Context, call_next: Any) -> Message:
        place = int(context.node_config["partition-id"])
        memory = FolderMemory(tmp_path / str(place))
        own = SecureAggregationMod(policy(adversary), identity=IDENTITIES[place], memory=memory)
        return own(message, context, call_next)

    def request(node: int, protocol: bytes = b"") -> Message:
        return request_to_train(node, protocol, arrays=ArrayRecord([np.ones(SIZE, np.float32)]))

    app, nodes = client_app(drift, mods=[secagg_mod]), range(1, NODES + 1)
    one = ByHand(InProcessGrid(app, NODES), nodes, adversary, run=b"1" * 16)
    grid = InProcessGrid(app, NODES)
    other = ByHand(grid, nodes, adversary, run=b"2" * 16, announced=request(0))
    one.send(request_to_train)
    other.send(request)
    assert one.open().any()
    assert other.open().any()
    assert not one.refusals | other.refusals


def to_the_opening(memory: Callable[[int], ClientMemory]) -> tuple[InProcessGrid, dict[int, Any]]:
    """A round by hand, up to the requests to open shares: node to message."""

    def secagg_mod(message: Message, context: Context, call_next: Any) -> Message:
        place = int(context.node_config["partition-id"])
        return SecureAggregationMod(policy(), memory=memory(place))(message, context, call_next)

    grid = InProcessGrid(client_app(drift, mods=[secagg_mod]), NODES)
    attacked = ByHand(grid, range(1, NODES + 1))
    attacked.send(request_to_train)
    return grid, attacked.requests


@pytest.mark.parametrize("kept", ["context", "folder"])
def test_shares_are_opened_once(kept: str, tmp_path: Path) -> None:
    """A client takes its memory up anew for every message, as after a restart."""

    def memory(place: int) -> ClientMemory:
        return ContextMemory() if kept == "context" else FolderMemory(tmp_path / str(place))

    grid, requests = to_the_opening(memory)
    if kept == "folder":
        grid._contexts.clear()  # it does not need what Flower remembers
    (first,) = grid.send_and_receive([protocol_message(1, requests[1])])
    (second,) = grid.send_and_receive([protocol_message(1, requests[1])])
    assert said(first)[4] == Kind.OPENINGS
    assert second.error.reason.startswith("BothSharesError:")


def test_two_requests_at_once_are_not_both_answered(tmp_path: Path) -> None:
    """Flower may run one node's messages side by side; the folder's lock puts them in a row.

    With ``ContextMemory`` each would see the state as it was before the other.
    """
    grid, requests = to_the_opening(lambda place: FolderMemory(tmp_path / str(place)))
    mod = SecureAggregationMod(policy(), memory=FolderMemory(tmp_path / "0"))
    start, replies = Barrier(2), []

    def one_process() -> None:
        message = protocol_message(1, requests[1])
        grid.push_messages([message])
        context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
        start.wait()
        replies.append(mod(message, context, client_app(drift)))

    threads = [Thread(target=one_process) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [reply for reply in replies if reply.has_error()]
    assert len(replies) == 2
    assert len(refused) == 1
    assert refused[0].error.reason.startswith("BothSharesError:")


def test_the_state_is_on_disk_before_the_answer(tmp_path: Path) -> None:
    """An answer whose state cannot be kept is not given."""
    grid, requests = to_the_opening(lambda place: FolderMemory(tmp_path / str(place)))
    state = tmp_path / "0" / "secure-aggregation.state"
    assert state.stat().st_mode & 0o077 == 0
    before = state.read_bytes()
    state.unlink()
    (state / "in the way").mkdir(parents=True)  # a folder cannot be replaced by a file
    (reply,) = grid.send_and_receive([protocol_message(1, requests[1])])
    assert reply.has_error()
    assert reply.error.reason == "the client could not do its part"
    (state / "in the way").rmdir()
    state.rmdir()
    state.write_bytes(before)
    (reply,) = grid.send_and_receive([protocol_message(1, requests[1])])
    assert said(reply)[4] == Kind.OPENINGS


def refuse_to_read(
    grid: InProcessGrid, requests: dict[int, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Node 1 answers that it cannot read its memory, and says why in its own log."""
    log = logging.getLogger("flwr")
    log.addHandler(caplog.handler)
    (reply,) = grid.send_and_receive([protocol_message(1, requests[1])])
    assert reply.error.reason == "the client cannot read what it remembers of earlier rounds"


@pytest.mark.parametrize(
    "kept", ["another version's", "cut short", "without a state", "empty", "damaged", "one bit"]
)
def test_a_state_that_cannot_be_read_is_named_to_its_owner(
    kept: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner learns which file, and what to do, without a traceback; the server does not."""
    app = lambda place: FolderMemory(tmp_path / str(place))  # noqa: E731
    grid, requests = to_the_opening(app)
    path = tmp_path / "0" / "secure-aggregation.state"
    good = path.read_bytes()
    bad = {
        "another version's": good[:35] + bytes([good[35] - 1]) + good[36:],
        "cut short": good[:20],
        "without a state": good[:64],
        "empty": b"",
        "one bit": good[:-1] + bytes([good[-1] ^ 1]),
        "damaged": good[:-7],
    }[kept]
    path.write_bytes(bad)
    refuse_to_read(grid, requests, caplog)
    (told,) = {record.getMessage() for record in caplog.records}
    assert str(path) in told
    assert "move the file away" in told
    assert not any(record.exc_info for record in caplog.records)
    assert path.read_bytes() == bad
    path.unlink()
    server = SecureServer(
        RoundTerms(bytes(range(16)), 1, SIZE, 256, 3),
        adversary=CURIOUS,
        max_dropout_fraction=0.3,
        cohort=NODES,
    )
    (reply,) = grid.send_and_receive([protocol_message(1, server.invitation())])
    assert said(reply)[4] == Kind.ADVERTISEMENT


@given(data=st.data())
def test_no_byte_of_the_memory_is_taken_if_it_was_changed(data: Any) -> None:
    """Of the file, identity included, and of the state wherever it is kept."""
    with tempfile.TemporaryDirectory() as folder:
        memory, context = FolderMemory(Path(folder)), Context(1, 1, {}, RecordDict(), {})
        client = SecureClient(policy(), identity=IDENTITIES[0])
        terms = RoundTerms(bytes(16), 1, SIZE, 256, 3)
        server = SecureServer(terms, adversary=CURIOUS, max_dropout_fraction=0.3, cohort=NODES)
        client.answer(server.invitation())
        state = client.to_bytes()
        with memory.locked(context) as remembered:
            remembered.identity, remembered.state = IDENTITIES[0].private, state
        (path,) = Path(folder).glob("*.state")

        def damaged(good: bytes) -> bytes:
            at = data.draw(st.integers(0, len(good) - 1))
            if data.draw(st.booleans()):
                return good[:at]
            return good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]

        path.write_bytes(damaged(path.read_bytes()))
        with pytest.raises(UnreadableStateError), memory.locked(context):
            pass
        with pytest.raises(UnreadableStateError):
            SecureClient.from_bytes(damaged(state), policy(), identity=IDENTITIES[0])
        assert SecureClient.from_bytes(state, policy(), identity=IDENTITIES[0]).to_bytes() == state


@pytest.mark.parametrize(
    "written",
    [
        MetricRecord({"state": 1}),
        ConfigRecord(),
        ConfigRecord({"identity": bytes(32)}),
        ConfigRecord({"identity": bytes(32), "state": "text"}),
        ConfigRecord({"identity": bytes(32), "state": b""}),
    ],
    ids=["another record", "nothing", "no state", "text", "an empty state"],
)
def test_a_context_that_the_app_wrote_over_is_named(
    written: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that began anew would have forgotten what it let be opened."""
    grid, requests = to_the_opening(lambda place: ContextMemory())
    grid.context(1).state["secure-aggregation"] = written
    refuse_to_read(grid, requests, caplog)
    (told,) = {r.getMessage() for r in caplog.records if r.levelno == logging.ERROR}
    assert "written over" in told or "damaged" in told or "written by another version" in told


def test_a_client_that_lost_its_state_is_out_of_the_round_only(tmp_path: Path) -> None:
    """As after a restart of its SuperNode with ``ContextMemory``."""

    class Forgetful(Wire):
        def _work(self, message: Message) -> Message:
            if message.metadata.dst_node_id == 4 and asked(message) is Kind.PARTICIPANTS:
                self._contexts.pop(4)
            return super()._work(message)

    wire = Forgetful(secure_app(drift), NODES)
    result = run(wire, tmp_path / "masked")
    grid = InProcessGrid(client_app(drift), NODES)
    grid.offline = {4}
    plain = strategy_of(tmp_path / "plain", NODES, SIZE, None)
    theirs = plain.start(grid, model((SIZE,)), num_rounds=1)
    assert result.arrays["0"].data == theirs.arrays["0"].data
    (reason,) = refusals(wire)
    assert reason.startswith("WrongStageError:")


@pytest.mark.parametrize(
    "stage", [Kind.NEIGHBOURHOOD, Kind.DELIVERIES, Kind.PARTICIPANTS, Kind.OPENING_REQUEST]
)
def test_a_stage_that_the_server_replays_is_refused(stage: Kind, tmp_path: Path) -> None:
    """By every client; what comes twice does not end the round."""

    class Replaying(Wire):
        def _work(self, message: Message) -> Message:
            reply = super()._work(message)
            if asked(message) is stage:
                super()._work(message)
            return reply

    wire = Replaying(secure_app(drift), NODES)
    result = run(wire, tmp_path)
    assert result.privacy.secure_aggregation.aborted_rounds == ()
    reasons = refusals(wire)
    name = "BothSharesError" if stage is Kind.OPENING_REQUEST else "StaleMessageError"
    assert any(reason.startswith(f"{name}:") for reason in reasons)
    assert len([reply for reply in wire.replies if reply.has_error()]) >= NODES


@pytest.mark.parametrize(
    "change",
    [
        {"clipping_norms": [float("nan")]},
        {"clipping_norms": [1.0, 1.0], "clipping_groups": [0, 5]},
        {"clipping_norms": None},
        {"mechanism": "os.system"},
        {"mechanism_settings": [1 << 30]},
        {"mechanism_settings": [0]},
        {"mechanism_settings": []},
        {"noise_multiplier": "none"},
        {"weight_cap": -1.0},
        {"weight_cap": "all"},
        {"weighted_by": 3},
        {"arrays": model((9,), dtype=np.int64)},
        {"arrays": ArrayRecord([np.full(9, np.nan)])},
        {"arrays": ArrayRecord([np.zeros(9, complex)])},
    ],
    ids=str,
)
def test_nonsense_that_was_announced_is_refused_by_name(change: dict[str, Any]) -> None:
    """How to bound an update is read as strictly as the protocol, and before anybody trains."""
    assert refused_by_all(change) == {"MalformedRequestError"}


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism_settings": [257]},
        {"mechanism_settings": [1 << 20]},
        {"arrays": model((8,))},
        {"arrays": model((9,), (0,))},
        {"clipping_norms": [1.0], "clipping_groups": [0, 0]},
        {
            "mechanism": "distributed-discrete-gaussian",
            "mechanism_settings": [200, 6, 2, 12],
            "noise_multiplier": 0.0,
        },
        {
            "mechanism": "distributed-discrete-gaussian",
            "mechanism_settings": [256, 3, 1, 12],
            "noise_multiplier": 0.5,
        },
    ],
    ids=str,
)
def test_a_round_that_some_update_does_not_fit_is_refused_before_anybody_trains(
    change: dict[str, Any],
) -> None:
    """By all, whatever they hold: who trained and then found no room would tell of its update."""
    assert refused_by_all(change) == {"UnacceptableTermsError"}


def refused_by_all(change: dict[str, Any]) -> set[str]:
    """The names under which all clients refuse a request that was announced to all alike."""
    trained = []

    def some_large(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        trained.append(partition)
        return [np.eye(1, SIZE, dtype=np.float32)[0] * (partition % 2)]

    grid = InProcessGrid(secure_app(some_large), NODES)
    attacked = ByHand(grid, range(1, NODES + 1), announced=request_to_train(0, **change))
    with pytest.raises(RoundAbortedError):
        attacked.send(lambda node, content: request_to_train(node, content, **change))
    assert not trained
    reasons = [reply.error.reason for reply in attacked.replies if reply.has_error()]
    assert len(reasons) == NODES
    assert len(set(reasons)) == 1
    return attacked.refusals


def test_against_a_malicious_server_memory_has_no_default() -> None:
    with pytest.raises(ValueError, match="memory is not set"):
        SecureAggregationMod(policy(MALICIOUS))
    SecureAggregationMod(policy(MALICIOUS), memory=ContextMemory())


def test_the_mod_serves_one_function_as_well(tmp_path: Path) -> None:
    """``@app.train(mods=[...])`` in place of ``ClientApp(mods=[...])``."""
    app = ClientApp()

    @app.train(mods=[SecureAggregationMod(policy())])
    def train(message: Message, context: Context) -> Message:
        place = int(context.node_config["partition-id"])
        moved = drift(place, 1, message.content["arrays"].to_numpy_ndarrays())
        names = list(message.content["arrays"])
        record = ArrayRecord(dict(zip(names, ArrayRecord(moved).values(), strict=True)))
        return Message(RecordDict({"arrays": record}), reply_to=message)

    ours = run(InProcessGrid(app, NODES), tmp_path / "masked")
    plain = strategy_of(tmp_path / "plain", NODES, SIZE, None)
    theirs = plain.start(InProcessGrid(client_app(drift), NODES), model((SIZE,)), num_rounds=1)
    assert ours.arrays["0"].data == theirs.arrays["0"].data
