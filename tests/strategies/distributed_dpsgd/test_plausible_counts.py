"""A noised number of persons beside the public N: the operator hears of silos without data."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.statistics import TableQuery
from privacy.training import Persons
from strategies import InProcessGrid, SiloTable
from strategies.distributed_dpsgd import LocalEvaluation
from strategies.distributed_dpsgd.plausible_counts import implausible_count, summed_deviation
from tests.strategies.distributed_dpsgd.silos import (
    FEATURES,
    FailsAfterTrials,
    initial,
    persons,
    silo_app,
    strategy_of,
    table_of,
)

QUERY = TableQuery(bounds=[(-4.0, 4.0)] * FEATURES)
EVALUATION = LocalEvaluation(every=1, noise_multiplier=1.0)


@pytest.fixture
def console() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    flower = logging.getLogger("flwr")
    flower.addHandler(handler)
    yield lines
    flower.removeHandler(handler)


def lines(console: list[str]) -> list[str]:
    return [line for line in console if "noised number of" in line]


def denied(silo: int) -> Persons:
    raise OSError("patients.csv: permission denied")


def no_table(silo: int) -> SiloTable:
    raise OSError("patients.csv: permission denied")


def test_a_run_of_noise_alone_warns_once(tmp_path: Path, console: list[str]) -> None:
    strategy = strategy_of(tmp_path, evaluation=EVALUATION)
    strategy.start(
        InProcessGrid(silo_app(load=FailsAfterTrials(persons, denied)), 4), initial(), num_rounds=3
    )
    (line,) = lines(console)
    assert "within its noise" in line
    assert "add noise alone, because their data did not load" in line


def test_statistics_of_noise_alone_warn(tmp_path: Path, console: list[str]) -> None:
    grid = InProcessGrid(silo_app(table=FailsAfterTrials(table_of, no_table)), 4)
    strategy_of(tmp_path).statistics(grid, QUERY, noise_multiplier=0.5)
    (line,) = lines(console)
    assert "far below persons = 160" in line


def test_more_persons_than_were_said_warn(tmp_path: Path, console: list[str]) -> None:
    strategy = strategy_of(tmp_path, persons=40, evaluation=EVALUATION)
    strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    (line,) = lines(console)
    assert "far above persons = 40" in line


def test_fewer_persons_for_testing_than_for_training_are_no_reason_to_warn(
    tmp_path: Path, console: list[str]
) -> None:
    strategy = strategy_of(tmp_path, persons=1000, evaluation=EVALUATION)
    strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    assert not lines(console)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (1000, "far below evaluation.persons = 1,000"),
        (160, None),
        (40, "= 40: a silo sent a false"),
    ],
)
def test_a_public_number_of_persons_for_testing_is_held_against_the_count(
    tmp_path: Path, console: list[str], given: int, words: str | None
) -> None:
    evaluation = LocalEvaluation(every=1, noise_multiplier=1.0, persons=given)
    strategy = strategy_of(tmp_path, evaluation=evaluation)
    strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    assert [words in line for line in lines(console)] == ([True] if words else [])


def test_more_persons_for_testing_than_for_training_do_not_wrap(tmp_path: Path) -> None:
    """A sum of rights beyond what N persons can give is read as it is."""
    evaluation = LocalEvaluation(every=1, noise_multiplier=1.0, persons=160)
    strategy = strategy_of(tmp_path, persons=2, evaluation=evaluation)
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    assert float(result.evaluate_metrics_clientapp[1]["persons"]) == pytest.approx(160, abs=15)


def test_more_for_testing_than_anybody_said_are_cut_and_do_not_wrap(
    tmp_path: Path, console: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """40 in each of four silos, beside 2 of all: each is cut to 8, which is far above 2 still."""
    strategy = strategy_of(tmp_path, persons=2, evaluation=EVALUATION)
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    cut = 4 * 8 * math.sqrt(2)
    assert float(result.evaluate_metrics_clientapp[1]["persons"]) == pytest.approx(cut, abs=15)
    (line,) = lines(console)
    assert "far above persons = 2" in line
    assert any("This silo alone has 40 persons, and persons = 2" in line for line in console)
    assert "numbers of this silo's sum are cut" in caplog.text


def test_silos_that_all_take_part_are_no_reason_to_warn(tmp_path: Path, console: list[str]) -> None:
    strategy = strategy_of(tmp_path, evaluation=EVALUATION)
    grid = InProcessGrid(silo_app(), 4)
    strategy.statistics(grid, QUERY, noise_multiplier=0.5)
    strategy.start(grid, initial(), num_rounds=2)
    assert not lines(console)


@given(st.floats(0, 1e6), st.integers(1, 10**6), st.floats(-6, 6), st.floats(0.5, 2))
def test_no_noise_of_six_deviations_about_half_to_twice_as_many_warns(
    deviation: float, persons: int, drawn: float, share: float
) -> None:
    count = share * persons + drawn * deviation * (1 - 1e-9)
    line = implausible_count(count, deviation, persons=persons, unit="person")
    assert line is None or math.isclose(abs(drawn), 6, rel_tol=1e-6) or deviation < 1e-6


def test_all_silos_together_add_more_noise_than_the_fewest_honest_ones() -> None:
    assert summed_deviation(3.0, silos=8, honest=2) == 6.0
