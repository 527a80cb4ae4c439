"""A node's owner decides what protects its records, and its failures look like nothing."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from flower_app import client_app
from flower_app.data import encode, load_client_folder
from flower_app.models.build import build_model
from flower_app.settings import PATHS_OF_THE_SERVER, Settings
from flower_app.training import local_steps
from privacy.accounting import Full, GaussianRelease, Repeated, epsilon, read_ledger
from privacy.training import ClientLedger
from strategies import Budget, DPFedAvg, InProcessGrid, PrivateResult
from strategies.errors import NoUsableReplyError

START = ArrayRecord(build_model("hog-linear").state_dict())
RUN: dict[str, Any] = {
    "deployed": True,
    "record-epsilon": 1.0,
    "rounds": 2,
    "sampling-rate": 1.0,
}
ROUNDS = 3  # two, and one that is played again
UNNOISED = RUN | {"record-epsilon": 0.0}
CAPPED = {"weight-cap": 25.0, "total-weight": 40.0}
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (60, 28, 28), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 10, 60)


class Node:
    """A deployed node in this process, as its owner configures it."""

    def __init__(self, base: Path, **config: Any) -> None:
        self.data = base / "data"
        self.ledger = base / "state" / "record-ledger.jsonl"
        self.config = {"data-dir": str(self.data), "state-dir": str(base / "state")} | {
            name.replace("_", "-"): value for name, value in config.items()
        }
        self.hold(50)

    def hold(self, records: int, **changed: Any) -> None:
        self.data.mkdir(exist_ok=True, parents=True)
        parts = {"images": IMAGES[:records], "labels": LABELS[:records]} | changed
        np.savez(self.data / "mine.npz", **parts)

    def asked(self, run: dict[str, Any], sent: ArrayRecord = START) -> Message:
        """The node's reply; every message finds a fresh process there."""
        InProcessGrid(client_app.app, 1)  # a message needs a run
        load_client_folder.cache_clear()
        message = Message(RecordDict({"arrays": sent}), 1, MessageType.TRAIN)
        return client_app.app(message, Context(1, 1, self.config, RecordDict(), run))

    def trains(self, run: dict[str, Any]) -> float:
        """How far a round of the run moves the model."""
        reply = self.asked(run)
        assert not reply.has_error(), reply.error.reason
        return moved(reply)

    def declines(self, run: dict[str, Any], sent: ArrayRecord = START) -> str:
        """Why the node takes no part; nothing is spent then."""
        before = self.ledger.read_bytes() if self.ledger.exists() else None
        reply = self.asked(run, sent)
        assert reply.has_error()
        assert (self.ledger.read_bytes() if self.ledger.exists() else None) == before
        return reply.error.reason


def moved(reply: Message) -> float:
    (arrays,) = reply.content.array_records.values()
    return float(
        np.linalg.norm(
            np.concatenate(
                [
                    (after.numpy() - before.numpy()).ravel()
                    for after, before in zip(arrays.values(), START.values(), strict=True)
                ]
            )
        )
    )


@pytest.fixture
def node_log() -> Iterator[list[str]]:
    """What a node's own log says: Flower's logger, and Python's."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if record.exc_info:
                said.append(str(record.exc_info[1]))

    keep = Keep()
    loggers = [logging.getLogger("flwr"), logging.getLogger()]
    for logger in loggers:
        logger.addHandler(keep)
    yield said
    for logger in loggers:
        logger.removeHandler(keep)


# The ledger goes by the data's name ---------------------------------------------------------------


def test_the_server_takes_spent_budgets_for_declines_and_not_for_crashes(tmp_path: Path) -> None:
    nodes = [Node(tmp_path / str(place)) for place in range(2)]
    grid = InProcessGrid(
        client_app.app, 2, run_config=RUN, node_config=lambda place: nodes[place].config
    )

    def run(name: str, rounds: int) -> PrivateResult:
        strategy = DPFedAvg(
            population=2,
            sampling=Full(),
            clipping=1.0,
            noise_multiplier=1.0,
            budget=Budget(math.inf, 1e-5),
            ledger=tmp_path / name,
        )
        return strategy.start(grid, START, num_rounds=rounds)

    ended = run("first", ROUNDS + 1).privacy
    assert ended is not None
    assert ended.rounds == ROUNDS
    assert "(the node declines: its owner's rules, what is left of" in str(ended.stopped)
    assert "exception" not in str(ended.stopped)
    with pytest.raises(NoUsableReplyError, match="ask the nodes for what their owners allow"):
        run("second", 1)


@pytest.mark.parametrize("records", [51, 60, 30, 1], ids="{} records then".format)
def test_a_budget_does_not_begin_afresh_when_the_data_changes(tmp_path: Path, records: int) -> None:
    node = Node(tmp_path)
    for _ in range(ROUNDS):
        assert node.trains(RUN) > 0
    assert "budget" in node.declines(RUN)
    node.hold(records)
    assert "budget" in node.declines(RUN)
    contents = read_ledger(node.ledger)
    assert contents.population == str(node.data)
    assert len(contents.records) == ROUNDS
    assert 0.99 < contents.epsilon(1e-5) <= 1.0


def test_a_name_of_the_owners_stands_for_the_data_wherever_it_lies(tmp_path: Path) -> None:
    node = Node(tmp_path, dataset_name="ward-7/2025")
    node.trains(RUN)
    node.data.rename(tmp_path / "moved")
    node.config["data-dir"] = str(tmp_path / "moved")
    node.trains(RUN)
    assert read_ledger(node.ledger).population == "ward-7/2025"
    assert len(read_ledger(node.ledger).records) == 2


@pytest.mark.parametrize("name", ["ward-8", "Ward-7/2025", None])
def test_another_name_on_the_same_ledger_is_refused(
    tmp_path: Path, node_log: list[str], name: str | None
) -> None:
    node = Node(tmp_path, dataset_name="ward-7/2025")
    node.trains(RUN)
    if name is None:
        del node.config["dataset-name"]
    else:
        node.config["dataset-name"] = name
    assert node.declines(RUN) == "this node cannot keep its own ledger, and trains nothing"
    assert any("belongs to the data set 'ward-7/2025'" in line for line in node_log)


def test_a_file_of_an_earlier_version_is_not_passed_over(
    tmp_path: Path, node_log: list[str]
) -> None:
    node = Node(tmp_path)
    node.ledger.parent.mkdir()
    (node.ledger.parent / "record-ledger.json").write_text('{\n "format": 1,\n "ledgers": {}\n}')
    assert "ledger" in node.declines(RUN)
    assert any("earlier version" in line and "off the budget" in line for line in node_log)


def test_what_is_trained_without_noise_is_charged_as_infinite(tmp_path: Path) -> None:
    node = Node(tmp_path, allow_unnoised_training=True)
    node.trains(RUN)
    node.trains(UNNOISED)
    assert read_ledger(node.ledger).epsilon(1e-5) == float("inf")
    assert "budget" in node.declines(RUN)


def test_the_owner_who_says_nothing_has_not_allowed_training_without_noise(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert "record-epsilon = 0.0" in node.declines(UNNOISED)
    for _ in range(ROUNDS):
        node.trains(RUN)
    assert "record-epsilon = 0.0" in node.declines(UNNOISED)


# The owner's word, and the run's ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "run", "named", "limit"),
    [
        ({}, {"record-epsilon": 3.1}, "record-epsilon = 3.1", "3.0"),
        ({}, {"record-epsilon": 1e300}, "record-epsilon = 1e+300", "3.0"),
        ({"max-record-epsilon": 0.5}, {}, "record-epsilon = 1.0", "0.5"),
        ({}, {"record-delta": 0.5}, "record-delta = 0.5", "1e-05"),
        ({"max-record-delta": 1e-6}, {}, "record-delta = 1e-05", "1e-06"),
        ({"min-record-noise-multiplier": 77.0}, {}, "noise multiplier of 6.", "77.0"),
        (
            {"min-record-noise-multiplier": 12.0},
            {"rounds": 40} | CAPPED,
            "the number of records",
            "12.0",
        ),
        ({}, {"record-epsilon": 0.0}, "record-epsilon = 0.0", "allow-unnoised-training = false"),
        ({}, {"record-epsilon": 0.0} | CAPPED, "record-epsilon = 0.0", "allow-unnoised"),
    ],
    ids=str,
)
def test_a_run_that_protects_less_is_declined_by_name(
    tmp_path: Path,
    node_log: list[str],
    owner: dict[str, Any],
    run: dict[str, Any],
    named: str,
    limit: str,
) -> None:
    node = Node(tmp_path)
    node.config |= owner
    reason = node.declines(RUN | run)
    assert named in reason
    assert "owner of this node" in reason
    assert limit not in reason.replace(named, ""), "the owner's own limit is not the server's"
    assert any(named in line and limit in line for line in node_log)


@pytest.mark.parametrize(
    "run",
    [
        {"record-epsilon": float("inf")},
        {"record-epsilon": float("nan")},
        {"record-epsilon": -1.0},
        {"record-epsilon": "1.0"},
        {"record-epsilon": True},
        {"record-delta": 0.0},
        {"record-delta": 1.0},
        {"deployed": False},
        {"dataset-name": "another"},
        {"max-record-epsilon": 1e9},
        {"allow-unnoised-training": True, "record-epsilon": 0.0},
        {"state-dir": "elsewhere"},
    ],
    ids=str,
)
def test_no_other_word_of_the_server_weakens_it(tmp_path: Path, run: dict[str, Any]) -> None:
    node = Node(tmp_path, dataset_name="ward-7/2025")
    assert node.declines(RUN | run)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    record_epsilon=st.floats(0.0, 10.0),
    exponent=st.floats(-12.0, -0.1),
    rounds=st.integers(1, 50),
)
def test_whatever_a_run_asks_the_owners_limits_hold(
    tmp_path_factory: pytest.TempPathFactory, record_epsilon: float, exponent: float, rounds: int
) -> None:
    node = Node(
        tmp_path_factory.mktemp("node"),
        max_record_epsilon=2.0,
        max_record_delta=1e-4,
        min_record_noise=1.5,
    )
    node.asked(
        RUN | {"record-epsilon": record_epsilon, "record-delta": 10.0**exponent, "rounds": rounds}
    )
    if not node.ledger.exists():
        return
    events = [record.event for record in read_ledger(node.ledger).records]
    assert epsilon(events, delta=1e-4) <= 2.0
    assert all(isinstance(e, GaussianRelease) and e.noise_multiplier >= 1.5 for e in events)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max-record-epsilo", 1.0, "must be written max-record-epsilon"),
        ("weight_cap", 1.0, "must be written weight-cap"),
        ("secure_aggregation", "malicious", "must be written secure-aggregation"),
        ("min-client", 40, "must be written min-clients"),
        ("max_record_epsilon", 1.0, "must be written max-record-epsilon"),
        ("max-record-epsilon", "3", "max-record-epsilon = '3'"),
        ("max-record-epsilon", 0, "max-record-epsilon = 0"),
        ("max-record-epsilon", float("inf"), "max-record-epsilon = inf"),
        pytest.param(
            "max-record-epsilon", 10**400, "a finite number above 0", id="huge max-record-epsilon"
        ),
        pytest.param(
            "min-record-noise-multiplier",
            10**400,
            "a finite number of at least 0",
            id="huge min-record-noise-multiplier",
        ),
        pytest.param("max-corrupt-fraction", 10**400, "below 0.5", id="huge corrupt"),
        pytest.param(
            "max-record-delta", 10**400, "strictly between 0 and 1", id="huge max-record-delta"
        ),
        ("max-record-delta", 1.0, "max-record-delta = 1.0"),
        ("max-record-delta", True, "max-record-delta = True"),
        ("min-record-noise-multiplier", -1, "min-record-noise-multiplier = -1"),
        ("allow-unnoised-training", "true", "allow-unnoised-training = 'true'"),
        ("dataset-name", " ", "dataset-name = ' '"),
        ("state-dir", "", "state-dir = ''"),
        ("data-dir", "", "data-dir = ''"),
        *(
            (key, value, f"{key} = {value!r} in this node's --node-config is wrong; it must be ")
            for keys, values in (
                (
                    ("data-dir", "state-dir", "test-dir", "signing-key", "client-public-keys"),
                    (5, True, 0.5),
                ),
                (("dataset-name",), (7, False)),
                (("allow-unnoised-training", "publish-report"), ("yes", 1)),
                (("min-clients", "partition-id", "num-partitions"), ("many", -1, 2.5, True)),
                (("max-record-delta", "max-corrupt-fraction"), ("small", 1.5, float("nan"), -0.1)),
                (("secure-aggregation",), ("on", False, 1)),
                (
                    (
                        "max-record-epsilon",
                        "min-record-noise-multiplier",
                        "clipping-norm",
                        "weight-cap",
                    ),
                    ("1.0", True, float("nan"), float("inf"), -2.0),
                ),
                (("report-epsilon", "report-total-epsilon"), ("1.0", 0, True, float("inf"))),
            )
            for key in keys
            for value in values
        ),
    ],
)
def test_an_owners_slip_of_the_pen_stops_the_node_and_is_in_the_owners_log_alone(
    tmp_path: Path, node_log: list[str], key: str, value: object, said: str
) -> None:
    node = Node(tmp_path)
    node.config[key] = value
    reason = node.declines(RUN)
    assert reason == "this node could not do its part; its owner finds why in its log"
    assert any(said in line for line in node_log)


def test_keys_of_other_apps_on_the_node_are_let_alone(tmp_path: Path) -> None:
    assert Node(tmp_path, x_colour="red", partition_id=0, num_partitions=2).trains(RUN) > 0


def test_a_nodes_data_may_lie_under_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    node = Node(tmp_path)
    node.config |= {"data-dir": "~/data", "state-dir": "~/state"}
    node.config["allow-unnoised-training"] = True
    assert node.trains(UNNOISED) > 0


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("max-epsilon", 0.5, "max-record-epsilon"),
        ("epsilon", 0.1, "-epsilon"),
        ("MAX-RECORD-EPSILON", 0.1, "max-record-epsilon"),
        ("maxRecordEpsilon", 0.1, "max-record-epsilon"),
        ("max-delta", 1e-9, "max-record-delta"),
        ("corrupt", 0.2, "corrupt was renamed to max-corrupt-fraction"),
        ("identity", "/a/key", "identity was renamed to signing-key"),
        ("min-noise-multiplier", 4.0, "min-record-noise-multiplier"),
        ("dataset", "x", "dataset-name"),
        ("max-record-epsilon ", 0.1, "max-record-epsilon"),
        ("colour", "red", "begins with x-"),
        ("", 1, "begins with x-"),
    ],
)
def test_a_key_that_nobody_reads_stops_the_node_and_is_in_the_owners_log(
    tmp_path: Path, node_log: list[str], key: str, value: object, meant: str
) -> None:
    node = Node(tmp_path)
    node.config[key] = value
    assert node.declines(RUN).endswith("its owner finds why in its log")
    assert any(f"{key} = {value!r}" in line and meant in line for line in node_log)


# What a node answers tells of no record -----------------------------------------------------------


def probe(record: np.ndarray) -> ArrayRecord:
    """A model, as a server might choose it, that one record alone makes fail where others do not.

    All its logits of that record are equal up to rounding, and those of others huge.
    """
    inputs = encode(record[None], "hog")[0].astype(float)
    weight = np.random.default_rng(1).normal(size=(10, inputs.size))
    weight -= np.outer(weight @ inputs, inputs) / (inputs @ inputs)
    return ArrayRecord({"0.weight": torch.tensor(1e4 * weight, dtype=torch.float32)})


def test_a_node_whose_budget_is_spent_says_so_whatever_its_records(tmp_path: Path) -> None:
    node = Node(tmp_path)
    sent = probe(IMAGES[0])
    node.trains(RUN | {"record-epsilon": 3.0})
    small = RUN | {"record-epsilon": 0.01}
    for held in (slice(0, 50), slice(1, 51), slice(0, 0)):
        node.hold(50, images=IMAGES[held], labels=LABELS[held])
        assert "budget" in node.declines(small, sent)


def test_a_node_that_fails_on_its_records_answers_and_pays_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however the training fails, so that what follows is the same as well."""

    def answers(base: Path) -> tuple[list[bool], int]:
        base.mkdir()
        node = Node(base)
        replies = [node.asked(RUN).has_error() for _ in range(ROUNDS + 2)]
        return replies, len(read_ledger(node.ledger).records)

    usual = answers(tmp_path / "usual")
    assert usual == ([False] * ROUNDS + [True] * 2, ROUNDS)
    build = local_steps.model_of

    def wants_memory(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) == 50:  # the trial before has fewer records
            raise MemoryError

    def failing(settings: Settings) -> nn.Module:
        model = build(settings)
        model.register_forward_pre_hook(wants_memory)
        return model

    monkeypatch.setattr(local_steps, "model_of", failing)
    assert answers(tmp_path / "failing") == usual


def test_a_folder_under_a_mistyped_key_does_not_make_the_node_a_simulated_one(
    tmp_path: Path, node_log: list[str]
) -> None:
    node = Node(tmp_path, partition_id=0, num_partitions=3)
    node.config["data_dir"] = node.config.pop("data-dir")
    assert node.declines({"rounds": 1}).endswith("its owner finds why in its log")
    assert any("written data-dir" in line for line in node_log)


@pytest.mark.parametrize("deployed", [True, False])
@pytest.mark.parametrize("key", PATHS_OF_THE_SERVER)
def test_no_path_of_a_run_tells_whether_it_exists_on_the_node(
    tmp_path: Path, key: str, deployed: bool
) -> None:
    """Neither what is answered nor what is paid depends on the node's disk."""
    answers = []
    for place in ("there", "not-there"):
        (tmp_path / f"node-{place}").mkdir()
        node = Node(tmp_path / f"node-{place}")
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there" / "file").touch()
        for path in (tmp_path / place, tmp_path / place / "file"):
            reply = node.asked(RUN | {"deployed": deployed, key: str(path)})
            answers.append(reply.error.reason if reply.has_error() else "trained")
            answers.append(str(node.ledger.exists()))
    assert answers[:4] == answers[4:]


@pytest.mark.parametrize("key", ["state-dir", "data-dir"])
def test_a_folder_that_is_another_elsewhere_is_not_begun_with(
    tmp_path: Path, node_log: list[str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A SuperNode that is started in another folder would begin a ledger, and forget its own."""
    node = Node(tmp_path)
    monkeypatch.chdir(tmp_path)
    node.config[key] = key.partition("-")[0]
    assert "its owner finds why in its log" in node.declines(RUN)
    assert any(
        key in line and "absolute path" in line and str(tmp_path) in line for line in node_log
    )


@pytest.mark.parametrize(
    "config", [{}, {"state-dir": "/nowhere"}, {"x-rack": 7}, {"partition-id": 0, "test-dir": "/n"}]
)
def test_a_node_that_is_configured_by_an_owner_is_none_of_a_simulation(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    node = Node(tmp_path)
    node.config = config
    for path in (tmp_path, tmp_path / "not-there"):
        reason = node.declines(RUN | {"deployed": False, "data-dir": str(path)})
        assert str(path) not in reason
        assert "deployed = False" in reason


# Data that is no good -----------------------------------------------------------------------------

BROKEN = {
    "an empty folder": lambda node: (node.data / "mine.npz").unlink(),
    "no folder": lambda node: ((node.data / "mine.npz").unlink(), node.data.rmdir()),
    "no record": lambda node: node.hold(0),
    "a broken file": lambda node: (node.data / "mine.npz").write_bytes(b"PK\x03\x04"),
    "a pickle": lambda node: node.hold(50, labels=np.array([object()])),
    "two files": lambda node: np.savez(node.data / "too.npz", images=IMAGES, labels=LABELS),
    "other images": lambda node: node.hold(50, images=IMAGES[:50, :27]),
    "images of numbers": lambda node: node.hold(50, images=IMAGES[:50] / 255),
    "labels of numbers": lambda node: node.hold(50, labels=LABELS[:50] + 0.5),
    "fewer labels": lambda node: node.hold(50, labels=LABELS[:49]),
    "no label right": lambda node: node.hold(50, labels=LABELS[:50] + 10),
    "one label wrong": lambda node: node.hold(50, labels=np.r_[LABELS[:49], 77]),
    "one label negative": lambda node: node.hold(50, labels=np.r_[LABELS[:49], -1]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_no_fault_of_the_data_shows(tmp_path: Path, node_log: list[str], fault: str) -> None:
    """With record-level noise the reply is as far from the model as noise is, and is paid for."""
    node = Node(tmp_path)
    usual = node.trains(RUN)
    BROKEN[fault](node)
    node_log.clear()
    # The noise on 3,930 numbers: its norm varies by 1 in 88; 8 deviations are 9 %.
    assert node.trains(RUN) == pytest.approx(usual, rel=0.1)
    assert len(read_ledger(node.ledger).records) == 2
    assert any(str(node.data) in line for line in node_log), "the owner is told, with the file"


@pytest.mark.parametrize("fault", BROKEN)
def test_without_noise_what_cannot_be_used_adds_zero_with_a_weight(
    tmp_path: Path, fault: str
) -> None:
    node = Node(tmp_path, allow_unnoised_training=True)
    BROKEN[fault](node)
    reply = node.asked(UNNOISED | CAPPED)
    assert not reply.has_error()
    weight = reply.content.metric_records["metrics"]["num-examples"]
    if "one label" in fault:
        assert (weight, moved(reply) > 0) == (49, True)
    else:
        assert (weight, moved(reply)) == (25.0, 0.0)


def test_a_noised_weight_is_sent_with_no_data_too(tmp_path: Path) -> None:
    """Once noised, the number of records stays as it was, whatever becomes of them."""
    node = Node(tmp_path)
    (first, *others) = (
        node.asked(RUN | CAPPED).content.metric_records["metrics"]["num-examples"]
        for change in ("nothing", "no record", "an empty folder")
        if BROKEN.get(change, lambda node: None)(node) is None
    )
    assert others == [first, first]


def test_failures_in_training_are_in_the_owners_log_alone(
    tmp_path: Path, node_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    usual = node.trains(RUN)
    real = local_steps.train

    def fails(model: Any, data: Any, **options: Any) -> Any:
        if len(data[1]):
            raise RuntimeError(f"record 7 says {int(data[1][7])}")
        return real(model, data, **options)

    monkeypatch.setattr(local_steps, "train", fails)
    assert node.trains(RUN) == pytest.approx(usual, rel=0.1)
    assert any("record 7 says" in line for line in node_log)


def test_a_disk_that_cannot_be_written_is_no_training(tmp_path: Path, node_log: list[str]) -> None:
    node = Node(tmp_path)
    (tmp_path / "file").touch()
    node.config["state-dir"] = str(tmp_path / "file" / "state")
    assert "cannot keep its own ledger" in node.declines(RUN)
    assert any("cannot be" in line and "record-ledger" in line for line in node_log)


def test_an_edited_ledger_is_no_training(tmp_path: Path, node_log: list[str]) -> None:
    node = Node(tmp_path)
    node.trains(RUN)
    text = node.ledger.read_text()
    node.ledger.write_text(text.replace('"noise_multiplier": 6.', '"noise_multiplier": 9.'))
    assert node.ledger.read_text() != text
    assert "cannot keep its own ledger" in node.declines(RUN)
    assert any("line 2" in line and "record-ledger.jsonl" in line for line in node_log)


def test_a_node_whose_ledger_another_run_wrote_to_meanwhile_counts_both(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trains(RUN)
    other = ClientLedger(dataset=str(node.data), path=node.ledger)
    other.charge(Repeated(GaussianRelease(2.0, Full()), 5))
    assert "budget" in node.declines(RUN)
