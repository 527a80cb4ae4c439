"""Steps are paid some at a time: never fewer than are taken, and what is left is not lost."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import Budget, Poisson, Repeated, SiloSum, epsilon
from privacy.accounting.errors import LedgerError
from privacy.mechanisms import SiloGaussian
from privacy.training import ClientLedger, StepPayments
from privacy.training.errors import LocalBudgetError


def step(z: float = 1.0) -> SiloSum:
    return SiloGaussian(5).account(parameters=20, noise_multiplier=z, sampling=Poisson(0.02))


def paid(ledger: ClientLedger, event: SiloSum) -> int:
    """How many such steps the ledger was charged for."""
    return sum(
        e.times if isinstance(e, Repeated) else 1
        for e in ledger.events
        if event in (e, getattr(e, "release", None))
    )


def test_a_runs_steps_take_few_lines_and_none_is_paid_in_vain() -> None:
    ledger = ClientLedger(dataset="ward 7")
    payments = StepPayments(ledger)
    for number in range(60):
        payments.take(step(), planned=60 - number)
    assert ledger.events == (Repeated(step(), 25), Repeated(step(), 25), Repeated(step(), 10))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=40))
def test_no_more_steps_are_taken_than_were_paid(taken: list[tuple[int, int]]) -> None:
    events = [step(1.0), step(2.0), step(3.0)]
    ledger = ClientLedger(dataset="ward 7")
    record: dict[str, str] = {}
    for kind, planned in taken:
        payments = StepPayments(ledger, record=record)  # as after a restart
        payments.take(events[kind], planned=planned)
        record = payments.as_record()
    for kind, event in enumerate(events):
        times = sum(each == kind for each, _ in taken)
        assert times <= paid(ledger, event) <= times + 24


def test_a_budget_with_room_for_less_is_used_to_its_end() -> None:
    fitting = 7
    limit = epsilon({step(): fitting}, delta=1e-5) * (1 + 1e-9)
    ledger = ClientLedger(dataset="ward 7", budget=Budget(limit, 1e-5))
    payments = StepPayments(ledger)
    for _ in range(fitting):
        payments.check(step())
        payments.take(step(), planned=100)
    for refused in (lambda: payments.check(step()), lambda: payments.take(step(), planned=1)):
        with pytest.raises(LocalBudgetError):
            refused()
    assert paid(ledger, step()) == fitting


def test_what_is_left_outlives_the_process_in_a_file(tmp_path: Path) -> None:
    def opened() -> StepPayments:
        ledger = ClientLedger(dataset="ward 7", path=tmp_path / "ledger.jsonl")
        return StepPayments(ledger, path=tmp_path / "ahead")

    for number in range(10):
        opened().take(step(), planned=10 - number)
    assert ClientLedger(dataset="ward 7", path=tmp_path / "ledger.jsonl").events == (
        Repeated(step(), 10),
    )
    opened().take(step(), planned=3)
    assert paid(ClientLedger(dataset="ward 7", path=tmp_path / "ledger.jsonl"), step()) == 13


def test_a_step_is_taken_off_before_it_is_made(tmp_path: Path) -> None:
    """Killed between the ledger and the file, steps were paid in vain, never taken unpaid."""
    ledger = ClientLedger(dataset="ward 7", path=tmp_path / "ledger.jsonl")
    (tmp_path / "ahead").mkdir()  # it cannot be written
    with pytest.raises(LedgerError):
        StepPayments(ledger, path=tmp_path / "ahead").take(step(), planned=4)
    (tmp_path / "ahead").rmdir()
    StepPayments(ledger, path=tmp_path / "ahead").take(step(), planned=4)
    assert paid(ledger, step()) >= 4


def test_steps_that_another_ledger_paid_for_are_not_taken_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner begins a new year's ledger where the old one's was, beside what is left of it."""
    path, ahead = tmp_path / "ledger.jsonl", tmp_path / "ahead"
    StepPayments(ClientLedger(dataset="ward 7/2025", path=path), path=ahead).take(
        step(), planned=25
    )
    path.rename(tmp_path / "ledger-2025.jsonl")
    new = ClientLedger(dataset="ward 7/2026", path=path)
    StepPayments(new, path=ahead).check(step())
    assert "'ward 7/2025'" in caplog.text
    for number in range(10):
        StepPayments(new, path=ahead).take(step(), planned=10 - number)
    assert paid(new, step()) == 10


def test_steps_that_a_ledger_of_the_same_name_does_not_hold_are_not_taken(tmp_path: Path) -> None:
    path, ahead = tmp_path / "ledger.jsonl", tmp_path / "ahead"
    old = ClientLedger(dataset="ward 7", path=path)
    StepPayments(old, path=ahead).take(step(), planned=25)
    path.rename(tmp_path / "moved.jsonl")
    new = ClientLedger(dataset="ward 7", path=path)
    new.charge(step(2.0))  # it is another one
    StepPayments(new, path=ahead).take(step(), planned=1)
    assert paid(new, step()) == 1
    tight = ClientLedger(
        dataset="ward 7", path=path, budget=Budget(new.epsilon(delta=1e-5) * 1.01, 1e-5)
    )
    with pytest.raises(LocalBudgetError):
        StepPayments(tight, path=ahead).check(step())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"a": 5}',
        *[
            f'{{"dataset": "ward 7", "left": {{"a": {{"steps": {steps}, "paid": ""}}}}}}'
            for steps in ("-1", "1.5", "true")
        ],
    ],
)
def test_a_file_that_is_no_account_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "ahead").write_text(content)
    ledger = ClientLedger(dataset="ward 7")
    with pytest.raises(LedgerError, match="Move it away"):
        StepPayments(ledger, path=tmp_path / "ahead").take(step(), planned=4)
    assert not ledger.events
