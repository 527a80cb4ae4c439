"""A training is paid for before its records are looked at, so that no answer tells of them free."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from privacy.accounting import Budget, Full, GaussianRelease, Repeated
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NoisyCount,
    NominalCount,
    Payment,
    PublicCount,
    pay,
    train,
)
from privacy.training.errors import GradientError, LocalBudgetError

BATCHES = FullBatch(steps=2)
NOMINAL = ClipAndNoise(
    clipping_norm=1.0, noise_multiplier=4.0, delta=1e-5, count=NominalCount(records=9)
)
COST = Repeated(GaussianRelease(4.0, Full()), 2)


def noisy(count: PublicCount | NoisyCount) -> ClipAndNoise:
    return ClipAndNoise(clipping_norm=1.0, noise_multiplier=4.0, delta=1e-5, count=count)


class Untouchable(Dataset[tuple[Tensor, ...]]):
    """Records that tell when one is looked at."""

    def __init__(self) -> None:
        self.looked = 0

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        self.looked += 1
        return torch.ones(4), torch.tensor(0)


def trained(
    data: object, ledger: ClientLedger | Payment, protection: ClipAndNoise = NOMINAL
) -> float:
    model = nn.Linear(4, 3)
    return train(
        model,
        data,  # type: ignore[arg-type]
        loss=cross_entropy,
        optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
        protection=protection,
        batches=BATCHES,
        ledger=ledger,
    ).weight


def spent(path: Path) -> ClientLedger:
    return ClientLedger(dataset="d", budget=Budget(0.1, 1e-5), path=path / "ledger.jsonl")


@pytest.mark.parametrize("count", [NominalCount(records=9), NoisyCount(noise_multiplier=5.0)])
def test_a_spent_budget_is_reported_before_the_records_are_read(
    tmp_path: Path, count: NominalCount | NoisyCount
) -> None:
    data = Untouchable()
    protection = ClipAndNoise(clipping_norm=1.0, noise_multiplier=4.0, delta=1e-5, count=count)
    with pytest.raises(LocalBudgetError):
        trained(data, spent(tmp_path), protection)
    assert not data.looked
    with pytest.raises(LocalBudgetError):
        pay(protection, BATCHES, ledger=spent(tmp_path), records=lambda: pytest.fail("asked"))
    assert not spent(tmp_path).events


def test_what_fails_on_the_records_was_paid_for(tmp_path: Path) -> None:
    """Every one of them, whether with noise or not: the failure is an answer."""
    labels = torch.ones(9, 4), torch.full((9,), 77)
    shapes = torch.ones(9, 3), torch.ones(9, dtype=torch.long)
    trained(labels, ClientLedger(dataset="d", path=tmp_path / "labels"))  # type: ignore[arg-type]
    assert ClientLedger(dataset="d", path=tmp_path / "labels").events == (COST,)
    for bad, protection, charged in (
        (labels, ClipOnly(clipping_norm=1.0), 0.0),
        (shapes, NOMINAL, 4.0),
        (shapes, ClipOnly(clipping_norm=1.0), -0.0),
    ):
        path = tmp_path / f"{charged}"
        with pytest.raises((IndexError, GradientError)):
            trained(bad, ClientLedger(dataset="d", path=path), protection)  # type: ignore[arg-type]
        events = ClientLedger(dataset="d", path=path).events
        assert events == (Repeated(GaussianRelease(abs(charged), Full()), 2),)


def test_a_payment_is_good_for_one_training_that_returns() -> None:
    ledger = ClientLedger(dataset="d")
    payment = pay(NOMINAL, BATCHES, ledger=ledger)
    with pytest.raises(GradientError):
        trained((torch.ones(9, 3), torch.full((9,), 1)), payment)
    assert trained((torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)), payment) == 9.0
    assert ledger.events == (COST,), "the client that failed on its records paid once"
    with pytest.raises(ValueError, match="used up"):
        trained(Untouchable(), payment)


def test_a_payment_is_for_what_was_paid() -> None:
    payment = pay(NOMINAL, BATCHES, ledger=ClientLedger(dataset="d"))
    less = ClipAndNoise(
        clipping_norm=1.0, noise_multiplier=0.4, delta=1e-5, count=NominalCount(records=9)
    )
    data = Untouchable()
    with pytest.raises(ValueError, match=r"protection is .*0\.4.*4\.0.* was paid for"):
        trained(data, payment, less)
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"batches is FullBatch\(steps=3\).*was paid for"):
        train(
            model,
            data,
            loss=cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
            protection=NOMINAL,
            batches=FullBatch(steps=3),
            ledger=payment,
        )
    assert not data.looked


def test_a_count_is_asked_for_after_the_steps_are_paid() -> None:
    ledger = ClientLedger(dataset="d")
    seen: list[tuple[object, ...]] = []

    def records() -> int:
        seen.append(ledger.events)
        return 1000

    first = pay(noisy(NoisyCount(noise_multiplier=5.0)), BATCHES, ledger=ledger, records=records)
    again = pay(noisy(NoisyCount(noise_multiplier=5.0)), BATCHES, ledger=ledger, records=records)
    assert seen[0] == (COST,)
    assert first.count == again.count == ledger.released_count
    assert 900 < first.count < 1100
    assert ledger.events == (COST, GaussianRelease(5.0, Full()), COST)


def test_the_count_and_the_steps_are_allowed_together_or_not_at_all() -> None:
    ledger = ClientLedger(dataset="d", budget=Budget(2.0, 1e-5))
    ledger.check(COST)
    with pytest.raises(LocalBudgetError):
        pay(noisy(NoisyCount(noise_multiplier=0.5)), BATCHES, ledger=ledger, records=lambda: 9)
    assert not ledger.events


def test_what_pay_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="ledger is None"):
        pay(NOMINAL, BATCHES, ledger=None)
    with pytest.raises(ValueError, match="records is None"):
        pay(noisy(PublicCount()), BATCHES, ledger=ClientLedger(dataset="d"))


def test_one_payment_pays_for_one_of_several_trainings_at_once() -> None:
    """The others are told while the first still trains, and not only afterwards."""
    payment = pay(NOMINAL, BATCHES, ledger=ClientLedger(dataset="d"))
    started, others_told = Event(), Event()

    class Waiting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            assert others_told.wait(60)
            return super().forward(x)

    records = torch.rand(9, 4), torch.arange(9) % 3

    def first() -> str:
        model = Waiting(4, 3)
        train(
            model,
            records,
            loss=cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
            protection=NOMINAL,
            batches=BATCHES,
            ledger=payment,
        )
        return "trained"

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(first)
        assert started.wait(60)
        try:
            with pytest.raises(ValueError, match="being used by another training"):
                trained(records, payment)
        finally:
            others_told.set()
        assert training.result() == "trained"
    with pytest.raises(ValueError, match="used up"):
        trained(records, payment)


def test_a_payment_is_given_back_where_the_training_raises() -> None:
    payment = pay(NOMINAL, BATCHES, ledger=ClientLedger(dataset="d"))
    records = torch.rand(9, 4), torch.arange(9) % 3
    for _ in range(2):
        with pytest.raises((GradientError, ValueError, RuntimeError)):
            trained((torch.rand(9, 7), records[1]), payment)
    trained(records, payment)
    with pytest.raises(ValueError, match="used up"):
        trained(records, payment)
