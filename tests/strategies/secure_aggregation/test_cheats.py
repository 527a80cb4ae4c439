"""What the operator is told of clients that cheat or drop out, and nobody else."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from privacy.secure_aggregation import Adversary, RoundPlan
from privacy.secure_aggregation._messages import Kind, decode
from strategies import InProcessGrid
from tests.strategies.federation import client_app, model
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    KEY,
    MALICIOUS,
    Wire,
    asked,
    forged,
    said,
    secure,
    secure_app,
    strategy_of,
)

NODES = 12
AWAY = {2, 5, 7, 9}
SHARING = Kind.NEIGHBOURHOOD
BOTH = pytest.mark.parametrize("adversary", [CURIOUS, MALICIOUS], ids=lambda a: a.server.value)


def drift(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    """A different step for each client and round."""
    generator = np.random.default_rng([partition, number])
    return [generator.standard_normal(a.shape).astype(a.dtype) for a in arrays]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """The warnings of the operator's log."""
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(caplog.handler)
    yield lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == logger.name and record.levelno >= logging.WARNING
    ]
    logger.removeHandler(caplog.handler)


def noise_in_boxes(message: Message, reply: Message) -> Message:
    """Node 4 seals noise to everybody, and does not say what it should have been."""
    content = said(reply)
    if message.metadata.dst_node_id != 4 or content[4] != Kind.SHARES:
        return reply
    return forged(message, content[: -92 * 4] + os.urandom(92 * 4))


def wrong_openings(message: Message, reply: Message) -> Message:
    content = said(reply)
    if message.metadata.dst_node_id != 4 or content[4] != Kind.OPENINGS:
        return reply
    return forged(message, content[:-40] + bytes(40))


@BOTH
@pytest.mark.parametrize("cheat", [noise_in_boxes, wrong_openings])
def test_a_cheat_is_named_to_the_operator_and_moves_nobody_else(
    adversary: Adversary, cheat: Any, tmp_path: Path, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = strategy_of(tmp_path / "masked", NODES, 9, secure(adversary))
    wire = Wire(secure_app(drift, adversary), NODES, alter=cheat)
    result = masked.start(wire, model((9,)), num_rounds=1)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == ()
    named = [line for line in told() if "node 4 " in line]
    assert named
    printed = capsys.readouterr()
    assert "node 4" not in printed.out + printed.err
    # The others' sum is what it would be, with node 4's update or without.
    plain = strategy_of(tmp_path / "plain", NODES, 9, None)
    grid = InProcessGrid(client_app(drift), NODES)
    left_out = any("did not show" in line or "had not signed" in line for line in named)
    grid.offline = {4} if left_out else set()
    theirs = plain.start(grid, model((9,)), num_rounds=1)
    assert_same(result.arrays, theirs.arrays)


def assert_same(ours: ArrayRecord, theirs: ArrayRecord) -> None:
    for a, b in zip(ours.to_numpy_ndarrays(), theirs.to_numpy_ndarrays(), strict=True):
        assert a.any()
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("stage", "declared", "warns"),
    [
        (None, 0.02, True),  # not even connected
        (Kind.INVITATION, 0.02, True),
        (Kind.DELIVERIES, 0.02, True),
        (Kind.OPENING_REQUEST, 0.02, True),
        (Kind.OPENING_REQUEST, 0.0, True),
        (Kind.PARTICIPANTS, 0.25, False),
    ],
)
def test_more_dropouts_than_declared_are_logged_once_and_for_the_operator_only(
    stage: Kind | None,
    declared: float,
    warns: bool,
    tmp_path: Path,
    told: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three of twelve a round, five rounds, whenever they vanish: 2 % do not explain that."""
    wire = Wire(
        secure_app(drift),
        NODES,
        cut=lambda m: asked(m) is stage and m.metadata.dst_node_id in (2, 5, 11),
    )
    if stage is None:
        wire.offline = {2, 5, 11}
    strategy = strategy_of(tmp_path, NODES, 9, secure(dropout_probability=declared))
    result = strategy.start(wire, model((9,)), num_rounds=5)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == ()
    warnings = [line for line in told() if "dropout_probability" in line]
    assert len(warnings) == warns
    if warns:
        assert f"dropout_probability = {declared:g}" in warnings[0]
        assert "declare at least 0.25" in warnings[0]
    printed = capsys.readouterr()
    assert "did not see their round through" not in printed.out + printed.err


@pytest.mark.parametrize("away", ["not connected", "silent"])
def test_corrupt_clients_are_counted_from_all_who_were_drawn(away: str, tmp_path: Path) -> None:
    """Of 24 four are away: clients check the plan against a tenth of 24, not of 20."""
    wire = Wire(
        secure_app(drift),
        24,
        cut=lambda m: away == "silent" and m.metadata.dst_node_id in AWAY,
    )
    wire.offline = AWAY if away == "not connected" else set()
    strategy_of(tmp_path, 24, 9, secure()).start(wire, model((9,)), num_rounds=1)
    rosters = [message.content[KEY] for message in wire.requests if asked(message) is SHARING]
    plans = {RoundPlan.from_bytes(decode(r["message"], SHARING, [20, None])[0]) for r in rosters}
    (plan,) = plans
    assert (plan.clients, plan.cohort) == (20, 24)
    assert plan.max_corrupt(CURIOUS) == 3
