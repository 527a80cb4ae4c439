"""What is spent is written down, never under-stated, and never more than the budget."""

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp import PrivacySpent

from privacy import files
from privacy.accounting import (
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    epsilon,
    read_ledger,
)
from privacy.accounting.errors import LedgerBusyError, LedgerError
from privacy.mechanisms import SeededRandomness
from strategies import (
    Budget,
    Checkpointing,
)
from strategies.checkpoint import Checkpoint
from strategies.progress import RoundProgress
from tests.strategies.federation import STEP, answer, ask, model, noiseless, private, spent


def test_the_ledger_alone_gives_epsilon_back(tmp_path: Path) -> None:
    """Anybody can: the events of 5 rounds, through the accountant or by the closed form."""
    result = private(tmp_path).start(STEP, model(), num_rounds=5)
    assert result.privacy is not None
    assert result.privacy.epsilon == spent(tmp_path)
    event = GaussianRelease(20.0 / math.sqrt(5), Poisson(1.0))
    assert spent(tmp_path) == pytest.approx(epsilon([event], delta=1e-5), rel=1e-3)
    assert list(result.privacy.epsilon_by_round) == [1, 2, 3, 4, 5]
    assert sorted(result.privacy.epsilon_by_round.values()) == list(
        result.privacy.epsilon_by_round.values()
    )
    assert json.loads(json.dumps(result.privacy.as_dict()))["private"] is True


def test_what_is_reserved_is_left_over(tmp_path: Path) -> None:
    """Calibrated or given, the rounds leave room for what is to be paid after them."""
    later = GaussianRelease(2.0, Full())
    free = private(tmp_path, noise_multiplier=None, budget=Budget(4.0, 1e-5))
    free.start(STEP, model(), num_rounds=3)
    (folder := tmp_path / "reserved").mkdir()
    strategy = private(folder, noise_multiplier=None, budget=Budget(4.0, 1e-5), reserve=[later])
    strategy.start(STEP, model(), num_rounds=3)
    assert strategy.noise_multiplier > free.noise_multiplier
    paid = [record.event for record in read_ledger(folder / "ledger.jsonl").records]
    assert len(paid) == 3
    assert 3.99 < epsilon([*paid, later], delta=1e-5) <= 4.0

    (folder := tmp_path / "given").mkdir()
    result = private(folder, noise_multiplier=2.0, budget=Budget(4.0, 1e-5), reserve=[later]).start(
        STEP, model(), num_rounds=9
    )
    assert result.privacy is not None
    assert result.privacy.stopped
    rounds = result.privacy.rounds
    assert epsilon([later] * (rounds + 1), delta=1e-5) <= 4.0
    assert epsilon([later] * (rounds + 2), delta=1e-5) > 4.0


def test_a_round_is_paid_before_its_sum_exists(tmp_path: Path) -> None:
    """If the ledger cannot be written, nothing is released."""
    strategy = private(tmp_path)
    asked = ask(strategy, STEP, model())
    assert asked
    current: Any = strategy._round

    def full_disk(*args: Any, **kw: Any) -> None:
        assert not current._sum._released
        raise OSError(28, "No space left on device")

    strategy._privacy_budget._ledger.append = full_disk  # type: ignore[method-assign,assignment]
    replies = [answer(message, model()) for message in asked.values()]
    with pytest.raises(OSError, match="No space"):
        strategy.aggregate_train(1, replies)
    assert not current._sum._released
    assert strategy.aggregate_train(1, []) == (None, None)


def test_a_ledger_or_checkpoint_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, **options: Any) -> AbstractContextManager[BinaryIO]:
        if path.name == full_file:
            raise OSError(28, "No space left on device")
        return write(path, **options)

    full_file = ""
    write = files.replacement  # through which whatever is to last is written
    monkeypatch.setattr("privacy.files.replacement", full)
    strategy = private(tmp_path, checkpointing=Checkpointing(tmp_path / "checkpoint"))

    def fill(number: int, arrays: ArrayRecord) -> None:
        nonlocal full_file
        if number == 1:
            full_file = "ledger.jsonl"

    with pytest.raises(OSError, match=r"No space.*ledger\.jsonl cannot.*round 2 was not released"):
        strategy.start(STEP, model(), num_rounds=3, evaluate_fn=fill)
    assert Checkpoint.load(tmp_path / "checkpoint").round == 1
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 1
    full_file = "checkpoint"
    again = private(
        tmp_path,
        checkpointing=Checkpointing(tmp_path / "checkpoint", resume=tmp_path / "checkpoint"),
    )
    with pytest.raises(OSError, match=r"No space.*the checkpoint .*Round 2 stands in the ledger"):
        again.start(STEP, model(), num_rounds=3)


def test_one_run_at_a_time_holds_the_ledger(tmp_path: Path) -> None:
    holder = private(tmp_path)
    with pytest.raises(LedgerBusyError):
        private(tmp_path)
    holder.start(STEP, model(), num_rounds=1)
    private(tmp_path).start(STEP, model(), num_rounds=1)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


def test_a_strategy_is_started_in_another_thread_than_it_was_made_in(tmp_path: Path) -> None:
    strategy = private(tmp_path)
    asyncio.run(asyncio.to_thread(strategy.start, STEP, model(), num_rounds=2))
    strategy.start(STEP, model(), num_rounds=1)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3


def test_a_second_start_meanwhile_is_told_of_the_first_which_goes_on(tmp_path: Path) -> None:
    tried, refused = [], []

    def start_again(_: RoundProgress) -> None:
        for thread in (asyncio.to_thread, _here):
            if len(tried) == 4:  # where it is not refused, this is called by it as well
                return
            tried.append(thread)
            with pytest.raises(LedgerBusyError, match="another run, of this same strategy"):
                asyncio.run(thread(strategy.start, STEP, model(), num_rounds=1))
            refused.append(thread)

    strategy = private(tmp_path, on_round=start_again)
    result = strategy.start(STEP, model(), num_rounds=2)
    assert len(refused) == 4
    assert result.privacy is not None
    assert result.privacy.rounds == 2
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


async def _here(function: Callable[..., Any], *args: Any, **kw: Any) -> None:
    function(*args, **kw)


def test_another_population_cannot_use_the_ledger(tmp_path: Path) -> None:
    private(tmp_path).start(STEP, model(), num_rounds=1)
    with pytest.raises(LedgerError, match="population"):
        private(tmp_path, population=5)


def test_a_fixed_size_is_accounted_at_twice_the_sensitivity(tmp_path: Path) -> None:
    """Replace-one, Rényi, and dearer than what add-or-remove-one would claim."""
    strategy = private(tmp_path, sampling=FixedSize(2, 4))
    strategy.start(STEP, model(), num_rounds=2)
    report = strategy.report()
    assert (report.adjacency, report.accountant) == ("replace-one", "rdp")
    single = epsilon({GaussianRelease(20.0, FixedSize(4, 4)): 2}, delta=1e-5)
    claimed = epsilon({GaussianRelease(20.0, Poisson(1.0)): 2}, delta=1e-5, accountant="rdp")
    assert single > 1.9 * claimed


def test_a_seed_is_not_private_and_its_ledger_is_its_own(tmp_path: Path) -> None:
    """No private run can go on from a seeded one's ledger, nor the other way round."""
    seeded = {"randomness": SeededRandomness(1), "budget": Budget(5.0, 1e-5)}
    result = private(tmp_path, **seeded).start(STEP, model(), num_rounds=2)
    assert result.privacy is not None
    assert result.privacy.epsilon == math.inf
    assert not result.privacy.private
    with pytest.raises(LedgerError, match="population"):
        private(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    private(other).start(STEP, model(), num_rounds=1)
    with pytest.raises(LedgerError, match="population"):
        private(other, **seeded)


def test_the_same_seed_gives_the_same_models(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        strategy = private(folder, randomness=SeededRandomness(7), sampling=Poisson(0.5))
        found.append(strategy.start(STEP, model(), num_rounds=3).arrays.to_numpy_ndarrays()[0])
    np.testing.assert_array_equal(found[0], found[1])


def test_no_noise_costs_everything(tmp_path: Path) -> None:
    result = noiseless(tmp_path).start(STEP, model(), num_rounds=1)
    assert result.privacy is not None
    assert result.privacy.epsilon == math.inf
    assert not result.privacy.private


def test_privacy_spent_has_epsilon_delta_rounds_and_accountant(tmp_path: Path) -> None:
    strategy = private(tmp_path)
    strategy.start(STEP, model(), num_rounds=2)
    assert strategy.privacy_spent() == PrivacySpent(spent(tmp_path), 1e-5, 2, "pld")
