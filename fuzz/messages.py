"""Flower's messages: a node's replies to the server, and a server's requests to a node.

Contents are the bytes of Flower's protocol buffers, as they come from the network. What Flower
itself cannot decode reaches none of this project's code.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import mse_loss

from fuzz.edits import EDITS, edited
from fuzz.encrypted import compiled
from fuzz.target import Target
from privacy.inference import Evaluator, InputContract
from privacy.secure_aggregation import Adversary, ClientPolicy, FewSilos, Identity, ServerModel
from privacy.statistics import TableQuery
from privacy.training import DataPolicy, Persons
from strategies import (
    AdaptiveClipping,
    Budget,
    CappedWeights,
    ContextMemory,
    DistributedDPSGD,
    DPFedAvg,
    Full,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    PublicMetrics,
    SecureAggregation,
    SecureAggregationMod,
    SiloTable,
    SiloTask,
    answer_silo,
)
from strategies.encrypted_round import ExactAccuracy, answer_encrypted_round
from strategies.encrypted_round import messages as encrypted_messages
from strategies.encrypted_round.messages import Questions, read_accuracy, read_questions
from strategies.errors import Fault, ReplyError
from strategies.model_schema import ModelSchema
from strategies.replies import is_decline, refuse_error
from strategies.secure_aggregation.messages import (
    KEY,
    MOD_ERRORS,
    _is_refusal,
    content_of,
    reply_bytes,
)
from strategies.train_round import ClearRound, EvaluateRound

_App = Callable[[Message, Context], Message]
_Arrays = list[NDArray[Any]]
_NODES, _CLIENTS = (1, 2), 5
_NORM = 1.0
_IDENTITIES = [Identity(bytes([node]) * 32) for node in range(_CLIENTS)]
_PUBLIC_KEYS = [identity.public for identity in _IDENTITIES]
_MODEL = ArrayRecord([np.zeros((2, 3), np.float32), np.array(7)])


def _records(content: bytes) -> RecordDict:
    """Records as Flower reads them; it raises whatever its parser does."""
    return recorddict_from_proto(ProtoRecordDict.FromString(content))


def _decoded(content: bytes) -> RecordDict | None:
    """Records of a stranger; None where Flower cannot read them, and the message is lost."""
    try:
        return _records(content)
    except Exception:  # Flower's own fault, whatever it is
        return None


def _encoded(records: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(records).SerializeToString(deterministic=True))


@cache
def _join_a_run() -> None:
    """Flower makes messages within a run alone; whatever plays one in this process begins it."""
    InProcessGrid(ClientApp(), 1)


def _nothing_logged(record: logging.LogRecord) -> bool:
    record.getMessage()
    return False


@contextmanager
def _silent() -> Iterator[None]:
    """A block whose log lines are made and not written."""
    loggers = [logging.getLogger(name) for name in ("flwr", "strategies.encrypted_round.node")]
    for logger in loggers:
        logger.addFilter(_nothing_logged)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_nothing_logged)


# --- A node's replies


def _strategy(noised: bool) -> DPFedAvg:
    """Everyone in every round, and no noise on the model, so that a sum can be told exactly."""
    ranges = {"loss": (0.0, 1.0), "num-examples": (0.0, 10.0)}
    rule = NoisedMetrics(ranges=ranges, noise_multiplier=1.0) if noised else PublicMetrics()
    return DPFedAvg(
        population=len(_NODES),
        sampling=Full(),
        clipping=AdaptiveClipping(initial_norm=_NORM) if noised else _NORM,
        weighting=CappedWeights(cap=2.0, total_weight=2.0) if noised else None,
        noise_multiplier=0.0,
        budget=Budget(inf, 1e-5),
        metrics=Metrics(train=rule, evaluate=rule, fraction_evaluate=1.0),
        ledger=Path(tempfile.mkdtemp(prefix="fuzz-")) / "ledger.jsonl",
    )


def replies() -> Target:
    """A node's reply, beside a good one: it moves the sum by at most the norm, and ends nothing.

    To training and evaluation under two strategies, in secure aggregation, and with encrypted
    questions and their accuracy; an error where the first byte says so.
    """
    _join_a_run()
    strategies = [_strategy(noised) for noised in (False, True)]
    schema = ModelSchema(_MODEL)
    good = RecordDict(
        {
            "arrays": ArrayRecord([np.full((2, 3), 0.125, np.float32), np.array(9)]),
            "metrics": MetricRecord({"num-examples": 3, "loss": 0.5}),
        }
    )

    def train(strategy: DPFedAvg, answers: list[Callable[[Message], Message]]) -> _Arrays:
        round_ = ClearRound(1, schema, strategy._setup, strategy._run)
        asked = round_.begin(_NODES, RecordDict({"arrays": _MODEL}), drawn=2)
        round_.gather(answer(each) for answer, each in zip(answers, asked, strict=False))
        outcome = round_.release()
        assert outcome.update is not None
        _check_finite(outcome.metrics)
        return outcome.update

    def honest(message: Message) -> Message:
        return Message(good, reply_to=message)

    alone = [train(strategy, [honest]) for strategy in strategies]

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        number, fails = first % 7, first >= 0x80
        given = None if fails else _decoded(content[1:])
        if given is None and not fails:
            return

        def stranger(message: Message) -> Message:
            if given is not None:
                return Message(given, reply_to=message)
            code = int.from_bytes(content[1:3], "little")
            return Message(Error(code, content[3:].decode(errors="replace")), reply_to=message)

        with _silent():
            if number < 2:
                moved = train(strategies[number], [honest, stranger])
                change = [a - b for a, b in zip(moved, alone[number], strict=True)]
                length = np.sqrt(sum(float((part.astype(float) ** 2).sum()) for part in change))
                assert length <= _NORM * (1 + 1e-5), length
                return
            if number < 4:
                strategy = strategies[number - 2]
                round_ = EvaluateRound(1, strategy._setup, strategy._run)
                asked = round_.begin(_NODES, RecordDict({"arrays": _MODEL}))
                round_.gather([honest(asked[0]), stranger(asked[1])])
                _check_finite(round_.release())
                return
            reply = stranger(Message(RecordDict(), 1, "train"))
            if number == 4:
                reply_bytes(reply)
                return
            refuse_error(reply)
            if number == 5:
                read_questions(reply.content, compiled("slots").plan, images=2, max_bytes=1 << 30)
            else:
                assert isfinite(read_accuracy(reply.content))

    plan = compiled("slots").plan
    sizes = Questions(bytes(plan.public_bytes), (bytes(plan.query_bytes),))
    contents = [good, *_awkward(good)]
    seeds = [bytes([number]) + _encoded(each) for each in contents for number in range(4)]
    seeds += [
        b"\x04" + _encoded(content_of(b"message")),
        b"\x05" + _encoded(encrypted_messages.questions_message(sizes))[:200],
        b"\x06" + _encoded(encrypted_messages.accuracy_message(0.5)),
        b"\x80\x00\x00it fails",
        b"\x84\x00\x00StaleMessageError: no",
    ]
    return Target(read, (ReplyError,), tuple(seeds))


def _awkward(good: RecordDict) -> Iterator[RecordDict]:
    """Replies like a good one with other metrics, or with another first array."""
    usual = good.metric_records["metrics"]
    for value in (nan, inf, -1.0, 0, 1e300, 1 << 62, [0.5, nan], []):
        for name in usual:
            yield RecordDict({**good, "metrics": MetricRecord({**usual, name: value})})
    yield RecordDict({"arrays": good["arrays"]})
    whole, counter = good.array_records["arrays"].to_numpy_ndarrays()
    for array in (
        *(np.full_like(whole, value) for value in (nan, inf, 1e38)),
        *(whole.astype(kind) for kind in ("float16", "float64", "int32", "complex64", "bool")),
        *(whole.T, whole.reshape(-1), whole[None], np.asfortranarray(whole)),
    ):
        yield RecordDict({**good, "arrays": ArrayRecord([np.asarray(array), counter])})


def _check_finite(metrics: MetricRecord | None) -> None:
    for value in (metrics or {}).values():
        assert all(map(isfinite, value if isinstance(value, list) else [value])), metrics


# --- A server's requests


@dataclass(frozen=True)
class _Step:
    """A message to the first node, and what the node remembered before it."""

    state: bytes
    message_type: str
    content: bytes
    run_id: int


class _Recording(ClientApp):
    """An app that writes down what its first node is sent."""

    def __init__(self, app: _App) -> None:
        super().__init__()
        self._app = app
        self.steps: list[_Step] = []

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does; ``InProcessGrid`` calls this."""
        if context.node_config["partition-id"] == 0:
            kind, content = message.metadata.message_type, _encoded(message.content)
            self.steps.append(_Step(_encoded(context.state), kind, content, context.run_id))
        return self._app(message, context)


def _again(app: _App, step: _Step, message_type: str, given: RecordDict) -> Message:
    """The first node's reply to other records, sent where a step's were."""
    state = _records(step.state)
    node: dict[str, str | int | float | bool] = {"partition-id": 0, "num-partitions": _CLIENTS}
    with _silent():
        reply = app(Message(given, 1, message_type), Context(step.run_id, 1, node, state, {}))
    assert isinstance(reply, Message)
    return reply


def requests() -> Target:
    """A server's message to a client under secure aggregation, at each stage, or to a silo.

    It is answered with one message of the protocol, or with words that tell nothing of data. The
    client's app, and the silo's table, are reached by what was announced alone.
    """
    reached: list[Message] = []

    def protected(server: ServerModel) -> _App:
        policy = ClientPolicy(3, Adversary(server, 0.1), _PUBLIC_KEYS)

        def work(message: Message, context: Context) -> Message:
            reached.append(message)
            arrays = message.content["arrays"]
            return Message(RecordDict({"arrays": arrays, "n": MetricRecord()}), reply_to=message)

        def answer(message: Message, context: Context) -> Message:
            identity = _IDENTITIES[int(context.node_config["partition-id"])]
            mod = SecureAggregationMod(policy, identity=identity, memory=ContextMemory())
            return mod(message, context, work)

        return answer

    def silo(message: Message, context: Context) -> Message:
        def table() -> SiloTable:
            reached.append(message)
            return SiloTable(features=np.array([[30.0], [50.0]]))

        task = SiloTask(model=nn.Linear(1, 1), loss=mse_loss, persons=_no_persons, table=table)
        policy = DataPolicy(
            dataset="ward", max_epsilon=1e3, max_delta=1e-5, unit="row", min_silos=3, colluders=1
        )
        return answer_silo(message, context, task=lambda: task, policy=policy)

    asked: list[tuple[_App, _Step]] = [(silo, step) for step in _statistics(silo)]
    for server in ServerModel:
        app = protected(server)
        asked += [(app, step) for step in _training(app, server)]

    announced = [_without_message(_records(step.content)) for _, step in asked]

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        app, step = asked[first % len(asked)]
        given = _decoded(edited(step.content, content[1:]))
        if given is None:
            return
        kinds = (step.message_type, "evaluate", "train.other", step.message_type)
        reached.clear()
        shown = _without_message(given)
        reply = _again(app, step, kinds[first // len(asked) % len(kinds)], given)
        if not reply.has_error():
            assert list(reply.content) == [KEY] and list(reply.content[KEY]) == ["message"]
        elif not is_decline(reply):
            reason = reply.error.reason
            assert reason in MOD_ERRORS or _is_refusal(reason), reason
        assert not reached or shown == announced[first % len(asked)]

    seeds = tuple(bytes([first]) + edits for first in range(len(asked)) for edits in EDITS)
    return Target(read, (), seeds)


def _no_persons() -> Persons:
    raise AssertionError("persons are asked for where a table is to be summed")


def _without_message(records: RecordDict) -> bytes:
    """All but the protocol's own message, which the app is not shown."""
    protocol = records.config_records.get(KEY, ConfigRecord())
    named = ConfigRecord({name: value for name, value in protocol.items() if name != "message"})
    return _encoded(RecordDict({**records, KEY: named}))


def _training(app: _App, server: ServerModel) -> list[_Step]:
    """The messages of a round of training."""
    recording = _Recording(app)
    strategy = DPFedAvg(
        population=_CLIENTS,
        sampling=Full(),
        clipping=_NORM,
        noise_multiplier=0.0,
        budget=Budget(inf, 1e-5),
        ledger=Path(tempfile.mkdtemp(prefix="fuzz-")) / "ledger.jsonl",
        secure_aggregation=SecureAggregation(
            min_clients=3,
            adversary=Adversary(server, 0.1),
            max_dropout_fraction=0.1,
            dropout_probability=0.0,
            client_public_keys=_PUBLIC_KEYS if server is ServerModel.MALICIOUS else (),
        ),
    )
    with _silent():
        strategy.start(InProcessGrid(recording, _CLIENTS), _MODEL, num_rounds=1)
    return recording.steps


def _statistics(app: _App) -> list[_Step]:
    """The messages in which silos are asked for their statistics."""
    recording = _Recording(app)
    strategy = DistributedDPSGD(
        silos=FewSilos(_CLIENTS, colluders=1),
        persons=100,
        unit="row",
        sampling_rate=0.5,
        clipping_norm=_NORM,
        noise_multiplier=1.0,
        budget=Budget(inf, 1e-5),
        ledger=Path(tempfile.mkdtemp(prefix="fuzz-")) / "ledger.jsonl",
    )
    query = TableQuery(bounds=[(0.0, 120.0)])
    with _silent():
        strategy.statistics(InProcessGrid(recording, _CLIENTS), query, noise_multiplier=1.0)
    return recording.steps


def encrypted_requests() -> Target:
    """A plan or answers to a node of an encrypted round, which are carried out or declined."""
    _join_a_run()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    model = compiled("slots")
    contract = InputContract((4,), (0.0, 1.0), classes=2)
    app = partial(
        answer_encrypted_round,
        data=lambda: (np.full((2, 4), 0.5), np.array([0, 1])),
        contract=contract,
        folder=folder,
        report=ExactAccuracy(),
    )
    announced = encrypted_messages.plan_message(model.plan, images=2, public=False)
    asked = app(Message(announced, 1, "query"))
    questions = read_questions(asked.content, model.plan, images=2, max_bytes=1 << 30)
    evaluator = Evaluator(model, questions.material)
    answers = [evaluator.evaluate(query) for query in questions.queries]
    secrets = folder / "encrypted-round.secrets"
    kept = secrets.read_bytes()
    asking = [
        _encoded(announced),
        _encoded(encrypted_messages.answers_message(answers)),
        _encoded(encrypted_messages.refusal_message(Fault.QUESTIONS)),
    ]

    def read(content: bytes) -> None:
        given = _decoded(edited(asking[(content[0] if content else 0) % len(asking)], content[1:]))
        if given is None:
            return
        secrets.write_bytes(kept)
        with _silent():
            reply = app(Message(given, 1, "query"))
        if not reply.has_error():
            assert len(reply.content) == 1
        elif not is_decline(reply):
            assert str(reply.error.reason).startswith("the node could not take part (")

    seeds = tuple(bytes([first]) + edits for first in range(len(asking)) for edits in EDITS)
    return Target(read, (), seeds)
