"""What strangers write reaches a log quoted, cut and on one line: nobody can forge an entry."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from privacy.untrusted_text import error_quoted, one_line, quoted
from strategies import InProcessGrid, PublicMetrics, SecureAggregationMod
from strategies.lost_clients import operator_log
from tests.strategies.federation import client_app, model
from tests.strategies.secure_aggregation.federation import (
    ByHand,
    Wire,
    policy,
    request_to_train,
    secure,
    secure_app,
    strategy_of,
)

NODES, SIZE = 12, 9
FORGED = "round 1, secure aggregation: node 7 shared something else than its own secrets"


def drift(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    return [np.full_like(a, 0.1) for a in arrays]


@pytest.fixture
def entries() -> Iterator[list[str]]:
    """The operator's log as a file of it would be read, by line."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.extend(  # type: ignore[method-assign]
        handler.format(record).splitlines()
    )
    operator_log.addHandler(handler)
    yield written
    operator_log.removeHandler(handler)


@given(st.text())
def test_quoted_words_stay_in_their_quotes(words: str) -> None:
    told = quoted(words)
    assert told.isprintable()
    kept = told.rpartition(" and ")[0] if len(words) > 300 else told
    assert ast.literal_eval(kept) == words[:300]
    assert one_line(words).isprintable()
    assert error_quoted(ValueError(words)).isprintable()


def test_long_words_are_cut() -> None:
    assert len(quoted("x" * 10**6)) < 400
    assert quoted("x" * 301).endswith("' and 1 characters more")
    assert quoted("x" * 300) == repr("x" * 300)


@pytest.mark.parametrize("kind", ["UnacceptableTermsError: ", ""])
@pytest.mark.parametrize(
    "between",
    ["\n", "\r\n", "\x0b", "\x85", "\u2028", "\x1b[2K\r", "'\n", '"\n', "x" * 10**5 + "\n"],
)
def test_no_client_writes_an_entry_of_the_operators_log(
    kind: str, between: str, tmp_path: Path, entries: list[str]
) -> None:
    code = 3 if kind else 0

    def alter(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id != 1:
            return reply
        return Message(Error(code, f"{kind}no{between}{FORGED}"), reply_to=message)

    strategy = strategy_of(tmp_path, NODES, SIZE, secure())
    strategy.start(Wire(secure_app(drift), NODES, alter=alter), model((SIZE,)), num_rounds=1)
    (told,) = [line for line in entries if "node 1:" in line]
    assert "no" in told
    assert not any(line.startswith("round 1, secure aggregation: node 7") for line in entries)
    assert all(line.isprintable() and len(line) < 600 for line in entries)


def test_nor_by_names_of_metrics_or_in_an_error_of_ones_own_aggregation(
    tmp_path: Path, entries: list[str]
) -> None:
    def aggregate(records: list[RecordDict], key: str) -> MetricRecord:
        raise ValueError("".join(records[0].metric_records["metrics"]))

    rule = PublicMetrics(aggregate=aggregate)
    record = MetricRecord({f"a\n{FORGED}" + "x" * 10**4: 1.0, "num-examples": 1.0})
    assert rule.release([record], "num-examples", left_out=lambda fault: None) is None
    (told,) = entries
    assert told.isprintable()
    assert len(told) < 500


def test_whatever_is_logged_is_one_entry(entries: list[str]) -> None:
    operator_log.warning("node %s: %s", 1, f"100 %\n{FORGED}")
    operator_log.warning("100 %\nof it")
    assert entries == [f"node 1: 100 %\\n{FORGED}", "100 %\\nof it"]


def test_nor_does_a_server_write_one_of_the_owners_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nor fill it: what it asks for is refused in its own words, which are cut."""
    name = "x\nThis node trained.\n" + "y" * 10**5
    announced = request_to_train(0, mechanism=name)
    mods = [lambda m, c, n: SecureAggregationMod(policy())(m, c, n)]
    this = ByHand(
        InProcessGrid(client_app(drift, mods=mods), NODES),
        range(1, NODES + 1),
        announced=announced,
        size=SIZE,
    )
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        replies = this.grid.send_and_receive(
            [request_to_train(n, m, mechanism=name) for n, m in this.requests.items()]
        )
        reasons = {reply.error.reason for reply in replies}
    finally:
        logger.removeHandler(caplog.handler)
    (told,) = {record.getMessage() for record in caplog.records}
    assert "MalformedRequestError" in told
    assert told.isprintable()
    assert len(told) < 600
    assert all(reason.isprintable() for reason in reasons)
