"""What travels beside the protocol is bound to it: a server cannot ask one client otherwise.

The attacks are those of Pasquini, Francati and Ateniese (2022, arXiv 2111.07380): all clients but
one are made to add nothing, so that the sum is that one's update. Each is played with the defence
and without it.
"""

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanisms import DistributedGaussian, MaskedGaussian
from privacy.secure_aggregation import ClientPolicy
from privacy.secure_aggregation import _server_stages as server_stages
from privacy.secure_aggregation.errors import TooFewClientsError
from strategies import ContextMemory, InProcessGrid, SecureAggregationMod
from strategies.secure_aggregation import protocol_client, train_round
from strategies.secure_aggregation.messages import (
    configuration_digest,
    model_digest,
    request_digest,
)
from tests.strategies.federation import model
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    KEY,
    MALICIOUS,
    ByHand,
    Wire,
    request_to_train,
    secure,
    secure_app,
    strategy_of,
)

NODES, SIZE, TARGET = 12, 64, 7
Change = Callable[[Message], None]
generator = np.random.default_rng(1)
UPDATES = [generator.normal(0, 0.02, SIZE).astype(np.float32) for _ in range(NODES)]


def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    """An honest update, of a client whose training fails where the model is broken."""
    if not np.isfinite(arrays[0]).all() or np.abs(arrays[0]).max() > 1e3:
        raise ValueError("the model is broken")
    return [UPDATES[partition]]


def likeness(wire: Wire, folder: Path) -> float:
    """The cosine between what one round releases and the target's own update."""
    strategy = strategy_of(folder, NODES, SIZE, secure(MALICIOUS, min_clients=6))
    result = strategy.start(wire, model((SIZE,)), num_rounds=1)
    (got,) = result.arrays.to_numpy_ndarrays()
    own = UPDATES[TARGET]
    return float(got @ own / (np.linalg.norm(got) * np.linalg.norm(own) + 1e-12))


def encoding(**fields: Any) -> Change:
    def change(message: Message) -> None:
        record = dict(message.content[KEY])
        record.update({name.replace("_", "-"): value for name, value in fields.items()})
        message.content[KEY] = ConfigRecord(record)

    return change


def arrays(make: Callable[[ArrayRecord], ArrayRecord]) -> Change:
    def change(message: Message) -> None:
        message.content["arrays"] = make(message.content["arrays"])

    return change


def config(**fields: Any) -> Change:
    def change(message: Message) -> None:
        message.content["config"] = ConfigRecord(dict(message.content["config"]) | fields)

    return change


def extra_record(message: Message) -> None:
    message.content["more"] = MetricRecord({"learning-rate": 0.0})


def other_order(message: Message) -> None:
    message.content["arrays"] = message.content.pop("arrays")


def other_group(message: Message) -> None:
    message.metadata.__dict__["_group_id"] = "2"


def nothing(message: Message) -> None:
    pass


ATTACKS: dict[str, Change] = {
    "clipping norm": encoding(clipping_norms=[1e25]),
    "weight cap": encoding(weight_cap=1e25),
    "model": arrays(lambda _: ArrayRecord([np.full(SIZE, 1e30, np.float32)])),
}
CHANGES: dict[str, Change] = ATTACKS | {
    "mechanism's settings": encoding(mechanism_settings=[1]),
    "mechanism": encoding(
        mechanism="distributed-discrete-gaussian", mechanism_settings=[1, 3, 1, 12]
    ),
    "noise multiplier": encoding(noise_multiplier=9.0),
    "weighted by": encoding(weighted_by="loss"),
    "groups of layers": encoding(clipping_norms=[1.0, 2.0]),
    "beside the protocol": encoding(more=1),
    "the model's dtype": arrays(lambda _: ArrayRecord([np.zeros(SIZE, np.float64)])),
    "the model's byte order": arrays(lambda _: ArrayRecord([np.zeros(SIZE, ">f4")])),
    "the model's shape": arrays(lambda _: ArrayRecord([np.zeros((8, 8), np.float32)])),
    "zero's sign": arrays(lambda _: ArrayRecord([np.full(SIZE, -0.0, np.float32)])),
    "array's name": arrays(lambda r: ArrayRecord({"1": r["0"]})),
    "one array more": arrays(lambda r: ArrayRecord({**r, "1": Array(np.zeros(1))})),
    "learning rate": config(lr=0.0),
    "round": config(**{"server-round": 2}),
    "round as a float": config(**{"server-round": 1.0}),
    "round as a truth": config(**{"server-round": True}),
    "one record more": extra_record,
    "order of records": other_order,
    "group": other_group,
}


class Meddling(Wire):
    """A server that sends all clients but the target something else than it announced."""

    def __init__(self, change: Change, adversary: Any = MALICIOUS) -> None:
        super().__init__(secure_app(update, adversary), NODES)
        self._change = change

    def _work(self, message: Message) -> Message:
        if "arrays" in message.content and message.metadata.dst_node_id != TARGET + 1:
            own = RecordDict(dict(message.content))
            message.__dict__["_content"] = own
            self._change(message)
        return super()._work(message)

    @property
    def refusals(self) -> list[str]:
        return [r.error.reason.partition(":")[0] for r in self.replies if r.has_error()]


def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the defence out: no request is told from another."""
    for module in (protocol_client, train_round):
        monkeypatch.setattr(module, "request_digest", lambda message: bytes(32))


@pytest.mark.parametrize("name", ATTACKS)
def test_without_the_binding_one_update_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack works where the defence is taken out."""
    unbound(monkeypatch)
    assert likeness(Meddling(ATTACKS[name]), tmp_path) > 0.99


@pytest.mark.parametrize("name", CHANGES)
def test_who_is_asked_otherwise_refuses_by_name(name: str, tmp_path: Path) -> None:
    wire = Meddling(CHANGES[name])
    assert abs(likeness(wire, tmp_path)) < 0.5
    assert wire.refusals == ["DifferentRequestsError"] * (NODES - 1)


def test_who_is_asked_as_announced_takes_part(tmp_path: Path) -> None:
    wire = Meddling(nothing)
    assert 0 < likeness(wire, tmp_path) < 0.9
    assert wire.refusals == []


def test_the_function_that_is_asked_for_is_bound() -> None:
    """The type of a message chooses the app's function; more than half are asked for another."""
    app = secure_app(lambda partition, number, arrays_: arrays_)

    @app.train("other")
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    attacked = ByHand(InProcessGrid(app, NODES), range(1, NODES + 1))

    def make(node: int, content: bytes) -> Message:
        message = request_to_train(node, content)
        if node < 9:
            message.metadata.message_type = "train.other"
        return message

    with pytest.raises(TooFewClientsError):
        attacked.send(make)
    refused = {reply.metadata.src_node_id for reply in attacked.replies if reply.has_error()}
    assert refused == set(range(1, 9))
    assert attacked.refusals == {"DifferentRequestsError"}


# The configuration that a client is given beside the messages ------------------------------------


class Configured(InProcessGrid):
    """A SuperLink that gives all nodes but the target's another run configuration."""

    def __init__(self) -> None:
        def scaled(partition: int, number: int, arrays_: list[Any]) -> list[Any]:
            return [UPDATES[partition] * rates[partition]]

        rates: dict[int, float] = {}
        secagg_mod = secure_app(scaled, MALICIOUS)

        def reading(message: Message, context: Context) -> Message:
            rates[int(context.node_config["partition-id"])] = float(context.run_config["rate"])
            return secagg_mod(message, context)

        super().__init__(reading, NODES)  # type: ignore[arg-type]
        self._run_config = {"rate": 1.0}

    def context(self, node_id: int) -> Context:
        given = super().context(node_id)
        given.run_config["rate"] = 1.0 if node_id == TARGET + 1 else 0.0
        return given


def released(grid: InProcessGrid, folder: Path) -> Any:
    strategy = strategy_of(folder, NODES, SIZE, secure(MALICIOUS, min_clients=6))
    result = strategy.start(grid, model((SIZE,)), num_rounds=1)
    return result.arrays.to_numpy_ndarrays()[0] * NODES


def test_without_the_binding_a_run_configuration_opens_one_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack works where the defence is taken out."""
    monkeypatch.setattr(protocol_client, "configuration_digest", lambda context: b"")
    assert np.allclose(released(Configured(), tmp_path), UPDATES[TARGET], atol=0.01)


def test_a_roster_of_several_configurations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all who see it; an honest server leaves out those who were configured otherwise."""
    assert not released(Configured(), tmp_path / "honest").any()  # the others' rate is 0
    monkeypatch.setattr(server_stages, "_leave_out_misconfigured", lambda state: None)
    strategy = strategy_of(tmp_path / "cunning", NODES, SIZE, secure(MALICIOUS, min_clients=6))
    result = strategy.start(Configured(), model((SIZE,)), num_rounds=1)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (1,)


def test_a_configuration_that_changes_within_a_round_is_refused() -> None:
    grid = InProcessGrid(secure_app(update), NODES, run_config={"rate": 1.0})
    attacked = ByHand(grid, range(1, NODES + 1))
    for node in attacked.requests:
        grid.context(node).run_config["rate"] = 1  # the same number of another type
    with pytest.raises(TooFewClientsError):
        attacked.send(request_to_train)
    assert attacked.refusals == {"DifferentRequestsError"}


# What a client pins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pins", "names"),
    [
        ({"clipping_norm": 1.0, "weight_cap": 0.0, "mechanism": MaskedGaussian(256)}, set()),
        ({"clipping_norm": 1.01}, {"UnacceptableTermsError"}),
        ({"weight_cap": 10.0}, {"UnacceptableTermsError"}),
        ({"mechanism": MaskedGaussian(512)}, {"UnacceptableTermsError"}),
        ({"mechanism": DistributedGaussian(256, 3, 1, 12)}, {"UnacceptableTermsError"}),
    ],
    ids=str,
)
def test_a_client_pins_how_its_update_is_bounded(pins: dict[str, Any], names: set[str]) -> None:
    """Also where all clients alike are asked for something else, and before it trains."""
    trained = []

    def secagg_mod(message: Message, context: Context) -> Message:
        insists = ClientPolicy(min_clients=3, adversary=CURIOUS, **pins)

        def train(message: Message, context: Context) -> Message:
            trained.append(context.node_id)
            return Message(message.content, reply_to=message)

        return SecureAggregationMod(insists, memory=ContextMemory())(message, context, train)

    attacked = ByHand(InProcessGrid(secagg_mod, NODES), range(1, NODES + 1))  # type: ignore[arg-type]
    if names:
        with pytest.raises(TooFewClientsError):
            attacked.send(request_to_train)
    else:
        attacked.send(request_to_train)
    assert attacked.refusals == names
    assert len(trained) == (0 if names else NODES)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_pinned_is_checked(wrong: float) -> None:
    with pytest.raises(ValueError, match="clipping_norm"):
        ClientPolicy(min_clients=3, clipping_norm=wrong)
    if wrong:
        with pytest.raises(ValueError, match="weight_cap"):
            ClientPolicy(min_clients=3, weight_cap=wrong)


# The encoding -------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.floats(0, 3), max_size=3),
    st.lists(st.text(max_size=2), max_size=3),
    st.lists(st.booleans(), max_size=3),
)
RECORDS = st.lists(
    st.tuples(st.text(max_size=2), st.dictionaries(st.text(max_size=2), VALUES, max_size=3)),
    max_size=3,
    unique_by=lambda pair: pair[0],
)


def asked_with(records: list[tuple[str, dict[str, Any]]]) -> Message:
    InProcessGrid(secure_app(update), 1)  # a message needs a run
    content = RecordDict({name: ConfigRecord(fields) for name, fields in records})
    return Message(content, message_type="train", dst_node_id=1)


@given(RECORDS, RECORDS)
@settings(max_examples=300, deadline=None)
def test_two_requests_have_one_digest_only_if_they_are_the_same(one: Any, other: Any) -> None:
    """The same to the type and the bit; NaN is itself."""
    same = repr(one) == repr(other)
    assert (request_digest(asked_with(one)) == request_digest(asked_with(other))) == same
    assert request_digest(asked_with(one)) == request_digest(asked_with(one))


@given(RECORDS)
@settings(max_examples=50, deadline=None)
def test_a_digest_outlives_the_wire(records: Any) -> None:
    """What Flower serialises, object by object, and reads back has the digest of what was sent."""

    class Schedule(int, enum.Enum):
        COSINE = 3

    class Name(enum.StrEnum):
        COSINE = "cosine"

    several = {
        "b": Array(np.arange(12, dtype=np.float16).reshape(3, 4)),
        "a": Array(np.zeros((), np.float32)),
        "n": Array(np.array(3)),
        "f": Array(np.asfortranarray(np.ones((2, 3)))),
        "none": Array(np.zeros((0, 2))),
    }
    sent = asked_with(records)
    sent.content["the model"] = ArrayRecord(several)
    sent.content["of enums"] = ConfigRecord(
        {"schedule": Schedule.COSINE, "all": [Schedule.COSINE], "name": Name.COSINE}
    )
    objects = get_all_nested_objects(sent)
    received = inflate_object_from_contents(
        sent.object_id, {name: part.deflate() for name, part in objects.items()}
    )
    assert isinstance(received, Message)
    assert request_digest(received) == request_digest(sent)


def test_a_models_digest_is_of_its_values() -> None:
    one, two = np.arange(6, dtype=np.float32).reshape(2, 3) / 7, np.array([0.0, 1.0], np.float16)
    same = model_digest([one, two])
    for alike in (
        [two, one],
        [one.astype(np.float64), two],
        [np.asfortranarray(one), two.astype(np.float32)],
        [one.reshape(3, 2), np.array([-0.0, 1.0])],
        [one.astype(">f4"), two],
    ):
        assert model_digest(alike) == same
    for unlike in (
        [one, two + 1],
        [one],
        [one, two, np.zeros(1)],
        [one.T, two],
        [np.concatenate([one.ravel(), two])],
    ):
        assert model_digest(unlike) != same


def test_a_run_configuration_has_one_digest_in_any_order() -> None:
    def given_(**fields: Any) -> bytes:
        return configuration_digest(Context(1, 1, {}, RecordDict(), fields))

    assert given_(a=1, b="x") == given_(b="x", a=1)
    digests = {given_(a=value) for value in (1, 1.0, True, "1", 2)}
    assert len(digests) == 5
