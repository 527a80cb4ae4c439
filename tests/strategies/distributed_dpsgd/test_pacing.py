"""Answers go out at fixed times, whatever they took."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.training import DataPolicy
from strategies import InProcessGrid
from strategies.distributed_dpsgd import silo
from strategies.distributed_dpsgd.pacing import paced
from tests.strategies.distributed_dpsgd.silos import initial, policy, silo_app, strategy_of


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@given(st.floats(0, 30), st.floats(0.5, 10))
def test_a_block_ends_at_a_multiple_whatever_it_took(taken: float, seconds: float) -> None:
    clock = Clock()
    with paced(seconds, clock=clock, sleep=clock.sleep):
        clock.sleep(taken)
    multiples = (clock.now - 100.0) / seconds
    assert multiples == pytest.approx(round(multiples), abs=1e-6)
    assert max(1, taken / seconds) - 1e-6 <= multiples <= taken / seconds + 1 + 1e-6


def test_an_error_waits_as_well() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="row 17"), paced(5, clock=clock, sleep=clock.sleep):
        raise ValueError("row 17")
    assert clock.now == 105.0


def test_without_a_pace_nothing_waits() -> None:
    clock = Clock()
    with paced(0, clock=clock, sleep=clock.sleep):
        clock.sleep(1.25)
    assert clock.now == 101.25


def test_each_sum_of_a_silo_is_paced_as_its_policy_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def watched(seconds: float) -> object:
        asked.append(seconds)
        return paced(0)

    monkeypatch.setattr(silo, "paced", watched)

    def kept(place: int) -> DataPolicy:
        return policy(place, answer_seconds=float(place))

    strategy = strategy_of(tmp_path)
    strategy.start(InProcessGrid(silo_app(kept), 4), initial(), num_rounds=1)
    # The trial before a run's first sum, and the sum.
    assert sorted(asked) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
