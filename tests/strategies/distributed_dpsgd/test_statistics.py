"""Statistics of the silos' tables, over the same messages and from the same budgets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from privacy.accounting import Budget, read_ledger
from privacy.statistics import TableQuery
from privacy.training import DataPolicy
from strategies import InProcessGrid, SiloTable
from strategies.errors import BudgetError, NoUsableReplyError
from tests.strategies.distributed_dpsgd.silos import (
    CLASSES,
    FEATURES,
    FailsAfterTrials,
    initial,
    policy,
    silo_app,
    strategy_of,
    table_of,
)
from tests.strategies.distributed_dpsgd.test_runs import missing
from tests.strategies.secure_aggregation.federation import Wire

QUERY = TableQuery(bounds=[(-4.0, 4.0)] * FEATURES, classes=CLASSES, bins=4)
Z = 0.5


def test_means_deviations_and_classes_are_those_of_all_rows_together(tmp_path: Path) -> None:
    found = strategy_of(tmp_path).statistics(
        InProcessGrid(silo_app(), 4), QUERY, noise_multiplier=Z
    )
    together = [table_of(silo) for silo in range(4)]
    x = np.concatenate([table.features for table in together])
    y = np.concatenate([table.labels for table in together])
    # Persons have two rows each, so these are the means of persons. Noise of z times the norm, and
    # more of four shares than of the two it is sized for: 3.6 persons of 160; eight deviations.
    deviation = Z * QUERY.clipping_norm * np.sqrt(4 / 2)
    assert found.count == pytest.approx(160, abs=8 * deviation)
    relative = deviation / 120
    np.testing.assert_allclose(found.means, x.mean(axis=0), atol=8 * relative * 4)
    assert (np.abs(found.deviations - x.std(axis=0)) < 1.5).all()
    np.testing.assert_allclose(found.class_counts, np.bincount(y) / 2, atol=8 * deviation)
    assert found.histograms.shape == (FEATURES, 4)


def test_statistics_are_paid_by_server_and_silos_and_leave_the_rest_to_training(
    tmp_path: Path,
) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=tmp_path / f"silo-{silo}.jsonl")

    strategy = strategy_of(tmp_path, noise_multiplier=None, budget=Budget(6.0, 1e-5))
    grid = InProcessGrid(silo_app(kept), 4)
    strategy.statistics(grid, QUERY, noise_multiplier=5.0)
    (paid,) = read_ledger(tmp_path / "ledger.jsonl").events
    assert paid == QUERY.event(strategy._setup.mechanism, noise_multiplier=5.0)
    result = strategy.start(grid, initial(), num_rounds=2)
    assert result.privacy is not None
    assert 5.9 < result.privacy.epsilon <= 6.0
    for silo in range(4):
        own = read_ledger(tmp_path / f"silo-{silo}.jsonl")
        assert own.events[0] == paid
        assert own.epsilon(1e-5) == result.privacy.epsilon


def test_statistics_beyond_the_budget_ask_nobody(tmp_path: Path) -> None:
    wire = Wire(silo_app(), 4)
    with pytest.raises(BudgetError, match="nobody was asked"):
        strategy_of(tmp_path, budget=Budget(0.1, 1e-5)).statistics(wire, QUERY, noise_multiplier=Z)
    assert not wire.requests


def test_statistics_of_too_few_silos_open_nothing(tmp_path: Path) -> None:
    wire = Wire(silo_app(), 4, cut=missing(2, 3, of="INVITATION"))
    with pytest.raises(NoUsableReplyError, match="fewer silos than 3"):
        strategy_of(tmp_path).statistics(wire, QUERY, noise_multiplier=Z)
    assert not read_ledger(tmp_path / "ledger.jsonl").records


def unreadable(silo: int) -> SiloTable:
    raise OSError("row 17 of patients.csv: Ms Example")


def of_another_shape(silo: int) -> SiloTable:
    return SiloTable(features=np.zeros((5, 2)), labels=np.zeros(5))


@pytest.mark.parametrize("broken", [unreadable, of_another_shape])
def test_a_silo_whose_table_cannot_be_used_declines(
    tmp_path: Path, broken: Callable[[int], SiloTable]
) -> None:
    app = silo_app(table=lambda silo: broken(silo) if silo == 0 else table_of(silo))
    wire = Wire(app, 4)
    found = strategy_of(tmp_path).statistics(wire, QUERY, noise_multiplier=Z)
    assert found.count == pytest.approx(120, abs=8 * Z * QUERY.clipping_norm * np.sqrt(3 / 2))
    (words,) = {reply.error.reason for reply in wire.replies if reply.has_error()}
    assert words == "this silo cannot take part; its owner finds why in its log"


@pytest.mark.parametrize("broken", [unreadable, of_another_shape])
def test_a_table_that_fails_after_its_trial_adds_noise_alone_and_shows_nowhere(
    tmp_path: Path, broken: Callable[[int], SiloTable]
) -> None:
    failing = FailsAfterTrials(table_of, broken)
    app = silo_app(table=lambda silo: failing(silo) if silo == 0 else table_of(silo))
    wire = Wire(app, 4)
    found = strategy_of(tmp_path).statistics(wire, QUERY, noise_multiplier=Z)
    deviation = Z * QUERY.clipping_norm * np.sqrt(4 / 2)
    assert found.count == pytest.approx(120, abs=8 * deviation)
    assert not any(reply.has_error() for reply in wire.replies)
