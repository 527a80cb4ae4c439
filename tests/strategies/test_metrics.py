"""Clients' metrics: dropped, released as public, or noised and paid."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from privacy.accounting import GaussianRelease, read_ledger
from strategies import (
    Full,
    Metrics,
    NoisedMetrics,
    PublicMetrics,
)
from tests.strategies.federation import (
    MOVE,
    answer,
    ask,
    grid_of,
    honest,
    model,
    nobody_of,
    noiseless,
    sent,
    two_arrays,
)


def test_train_metrics_are_dropped_by_default(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    nodes = ask(strategy, grid_of(4), model())
    replies = sent(nodes, dict.fromkeys(nodes, 0.0), lambda n: {"num-examples": 1, "loss": 3.0})
    assert strategy.aggregate_train(1, replies)[1] is None
    assert strategy.metrics.fraction_evaluate == 0
    assert list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid_of(4))) == []


def test_noised_metrics_are_averages_with_noise_and_are_paid(tmp_path: Path) -> None:
    """Out-of-range, missing and unreadable values count as the range's edge or middle."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 10.0), "acc": (0.0, 1.0)}, noise_multiplier=0.01)
    strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=rule))
    told: dict[int, Any] = {
        1: {"loss": 4.0, "acc": 1.0},
        2: {"loss": 1e30, "acc": float("nan")},
        3: {"loss": -(10**400), "acc": [1.0]},
        4: {},
    }
    messages = list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid_of(4)))
    grid = grid_of(4)
    grid.push_messages(messages)
    replies = [answer(m, model(), told[m.metadata.dst_node_id]) for m in messages]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx((4 + 10 + 0 + 5) / 4, abs=0.3)
    assert metrics["acc"] == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4, abs=0.03)
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(0.01, Full())]


def test_noised_train_metrics_share_the_rounds_noise(tmp_path: Path) -> None:
    """One cohort, one event: the update's noise grows by what the metrics take."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=2.0)
    strategy = noiseless(tmp_path, noise_multiplier=1.0, metrics=Metrics(train=rule))
    size = 20_000
    ask(strategy, nobody_of(4), model((size,)))
    record, metrics = strategy.aggregate_train(1, [])
    assert record is not None
    assert metrics is not None
    expected = (1 - 2.0**-2) ** -0.5 / 4
    variance = record.to_numpy_ndarrays()[0].var()
    assert abs(variance / expected**2 - 1) < 6 * math.sqrt(2 / size)  # fails once in 5·10⁸
    events = [r.event for r in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(1.0, Full())]


def test_metrics_that_spend_more_than_the_round_are_refused(tmp_path: Path) -> None:
    rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=0.5)
    strategy = noiseless(tmp_path, noise_multiplier=1.0, metrics=Metrics(train=rule))
    with pytest.raises(ValueError, match="noised metrics"):
        ask(strategy, grid_of(4), model())


def left_out(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server's console is told of metrics that are left out."""
    lines = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    return [line for line in lines if "left metrics out" in line]


def with_metrics(message: Message, metrics: dict[str, Any] | None) -> Message:
    record = ArrayRecord({"w": Array(MOVE.copy()), "n": Array(np.array(9))})
    if metrics is None:
        return Message(RecordDict({"arrays": record}), reply_to=message)
    return answer(message, record, metrics)


WEIGHT, VALUES, FORM = (
    "the weight, by record_keys.weighted_by",
    "a value is NaN",
    "have other names",
)


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"num-examples": float("nan"), "loss": 1.0}, WEIGHT),
        ({"num-examples": 0, "loss": 1.0}, WEIGHT),
        ({"loss": 1.0}, WEIGHT),
        ({"num-examples": 1.0, "loss": [1.0, 2.0]}, FORM),
        ({"num-examples": 1.0, "loss": float("inf")}, VALUES),
        ({"num-examples": 1.0, "loss": 10**400}, VALUES),
        ({"num-examples": 1.0, "other": 1.0}, FORM),
        ({"num-examples": [1.0], "loss": 1.0}, WEIGHT),
        ({}, WEIGHT),
        (None, "no MetricRecord"),
    ],
)
def test_public_metrics_survive_a_client_that_sends_nonsense_and_say_so(
    metrics: dict[str, Any] | None, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind, once a run."""
    strategy = noiseless(tmp_path, metrics=Metrics(train=PublicMetrics()))
    arrays = two_arrays()
    for number in (1, 2):
        asked = ask(strategy, grid_of(4), arrays, number)
        first, *others = asked.values()
        replies = [with_metrics(first, metrics), *map(honest, others)]
        stepped, told = strategy.aggregate_train(number, replies)
        assert stepped is not None
        assert told is not None
        assert told["loss"] == pytest.approx(1.0)
        arrays = stepped
    (said,) = left_out(caplog)
    assert said.startswith("round 1, train: ")
    assert why in said


def test_an_aggregation_that_raises_costs_the_metrics_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(records: list[RecordDict], key: str) -> MetricRecord:
        raise ZeroDivisionError(f"of {records}")

    strategy = noiseless(tmp_path, metrics=Metrics(train=PublicMetrics(broken)))
    asked = ask(strategy, grid_of(4), two_arrays())
    arrays, told = strategy.aggregate_train(1, [honest(m) for m in asked.values()])
    assert arrays is not None
    assert told is None
    (said,) = left_out(caplog)
    assert "PublicMetrics(aggregate) raised an exception" in said
    assert "ZeroDivisionError" not in said


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        (None, "no MetricRecord"),
        ({"num-examples": 1.0}, "a metric that ranges names is missing"),
        ({"num-examples": 1.0, "loss": float("nan")}, "a metric that ranges names is missing"),
        ({"num-examples": 1.0, "loss": [1.0]}, "a metric that ranges names is missing"),
        ({"num-examples": 1.0, "loss": 77.0, "other": 1.0}, None),
    ],
)
@pytest.mark.parametrize("evaluated", [False, True])
def test_noised_metrics_that_count_as_the_middle_are_in_the_operators_log_alone(
    metrics: dict[str, Any] | None,
    why: str | None,
    evaluated: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That one client's metric has no value is what the noise hides, and no word for a console."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 2.0)}, noise_multiplier=1.0)
    if evaluated:
        strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=rule))
        messages = list(strategy.configure_evaluate(1, two_arrays(), ConfigRecord(), grid_of(4)))
        # What holds no record at all is a reply that is dropped, and told as one.
        replies = [
            Message(RecordDict({"m": MetricRecord(metrics or {})}), reply_to=m) for m in messages
        ]
        strategy.aggregate_evaluate(1, replies)
        why = why and "a metric that ranges names is missing"
    else:
        strategy = noiseless(tmp_path, metrics=Metrics(train=rule))
        asked = ask(strategy, grid_of(4), two_arrays())
        strategy.aggregate_train(1, [with_metrics(m, metrics) for m in asked.values()])
    operators = [r.getMessage() for r in caplog.records if r.name == "bloomseal.operator"]
    said = [line for line in operators if "metrics without a value" in line]
    assert len(said) == (4 if why else 0)
    assert all(why in line for line in said if why)
    # But of a name that no reply has, which is the app's, not its data's.
    never = ["named 'loss'"] if why and "loss" not in (metrics or {}) else []
    never = never or (["named 'loss'"] if (metrics or {}).get("loss") == [1.0] else [])
    console = [r.getMessage() for r in caplog.records if r.name == "flwr"]
    assert len([line for line in console if "metric" in line.lower()]) == len(never)
    assert all(any(word in line for line in console) for word in never)


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        ([{"loss": 1.0}, {"loss": 2.0}, {"kind": 1.0}], ["los"]),
        ([{"loss": 1.0}], []),  # one reply alone is nobody's business
        ([{"loss": 1.0}, {"los": math.nan}, {"loss": 1.0}], []),  # the name is there
        ([{"loss": 1.0}, None, None], ["los"]),
    ],
)
def test_a_noised_metric_that_no_reply_names_is_logged_once(
    replies: list[dict[str, Any] | None], told: list[str], tmp_path: Path, console: list[str]
) -> None:
    """The names are the operator's; those of clients and their number are for its own log."""
    rule = NoisedMetrics(ranges={"los": (0.0, 2.0)}, noise_multiplier=1.0)
    strategy = noiseless(tmp_path, metrics=Metrics(train=rule))
    for number in (1, 2):
        asked = ask(strategy, grid_of(4), two_arrays(), number)
        answers = [
            with_metrics(m, None if r is None else {"num-examples": 1.0, **r})
            for m, r in zip(asked.values(), replies, strict=False)
        ]
        strategy.aggregate_train(number, answers)
    lines = [line for line in console if "NoisedMetrics(ranges)" in line]
    assert [name for name in told if f"named '{name}'" in "".join(lines)] == told
    assert len(lines) == len(told)
    assert not any("loss" in line or "kind" in line for line in lines)
