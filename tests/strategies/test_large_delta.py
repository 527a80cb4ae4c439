"""A δ that promises next to nothing is said at the start; what a report adds to ε."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from privacy.accounting import Full, GaussianRelease, LedgerText, epsilon, read_ledger
from strategies import Budget, DPFedAvg, Poisson, Population
from strategies.population import ClientRegistry
from tests.strategies.federation import grid_of, model


def run(folder: Path, delta: float) -> DPFedAvg:
    strategy = DPFedAvg(
        population=20,
        sampling=Poisson(0.5),
        clipping=1.0,
        noise_multiplier=3.0,
        budget=Budget(math.inf, delta),
        ledger=folder / "ledger.jsonl",
    )
    grid = grid_of(20, lambda client, number, arrays: [np.zeros_like(a) for a in arrays])
    strategy.start(grid, model(), num_rounds=2)
    return strategy


@pytest.mark.parametrize(("delta", "warned"), [(0.05, True), (0.2, True), (1e-4, False)])
def test_a_delta_of_one_over_the_population_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, delta: float, warned: bool
) -> None:
    run(tmp_path, delta)
    told = [r for r in caplog.records if "one over the population of 20" in r.getMessage()]
    assert [r.levelno for r in told] == [logging.WARNING] * warned


def test_a_ledger_of_the_strategy_tells_how_many_clients_there_are(tmp_path: Path) -> None:
    run(tmp_path, 1e-4)
    assert read_ledger(tmp_path / "ledger.jsonl").clients == 20
    listed = ClientRegistry(Population(("a", "b", "c"))).name
    assert LedgerText.start(listed).contents.clients == 3


def test_the_report_has_epsilon_without_amplification(tmp_path: Path) -> None:
    report = run(tmp_path, 1e-4).report()
    plain = epsilon({GaussianRelease(3.0, Full()): 2}, delta=1e-4)
    assert report.epsilon < report.epsilon_without_amplification == pytest.approx(plain)
    assert report.as_dict()["epsilon_without_amplification"] == pytest.approx(plain)


def test_a_ledger_does_not_tell_when_its_rounds_were(tmp_path: Path) -> None:
    run(tmp_path, 1e-4)
    times = {record.time for record in read_ledger(tmp_path / "ledger.jsonl").records}
    assert len(times) <= 1
    assert all(time.endswith("T00:00+00:00") for time in times)
