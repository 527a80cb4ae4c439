"""The client's ledger: nothing is forgotten, across runs, restarts and crashes."""

import json
import math
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import create_accountant

from privacy.accounting import Budget, GaussianRelease, LedgerError, Poisson, epsilon
from privacy.mechanisms import SeededRandomness
from privacy.training import (
    Accountant,
    Charge,
    ClientLedger,
    FullBatch,
    LocalBudgetSpent,
    PoissonBatches,
    calibrate_noise,
)

DELTA = 1e-5
charges = st.builds(
    Charge,
    noise_multiplier=st.sampled_from([0.8, 1.0, 2.5]),
    sampling_rate=st.sampled_from([0.01, 0.2, 1.0]),
    steps=st.integers(1, 30),
)


def a_charge(steps: int = 3, noise_multiplier: float = 1.0) -> Charge:
    return Charge(noise_multiplier=noise_multiplier, sampling_rate=0.1, steps=steps)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@settings(max_examples=5, deadline=None)
@given(rounds=st.lists(charges, min_size=1, max_size=3))
def test_rounds_with_restarts_equal_the_accountant_fed_at_once(
    accountant: Accountant, rounds: list[Charge], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    for charge in rounds:
        ClientLedger(dataset="d", path=path, accountant=accountant).charge(charge)

    opacus = create_accountant(mechanism=accountant)
    for charge in rounds:
        for _ in range(charge.steps):
            opacus.step(noise_multiplier=charge.noise_multiplier, sample_rate=charge.sampling_rate)
    restarted = ClientLedger(dataset="d", path=path, accountant=accountant)
    assert restarted.epsilon(delta=DELTA) == pytest.approx(opacus.get_epsilon(delta=DELTA))


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "steps"),
    [(0.6, 0.01, 100), (1.0, 0.01, 1000), (1.0, 0.2, 50), (4.0, 1.0, 20), (20.0, 0.5, 300)],
)
@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_opacus_does_not_understate(
    noise_multiplier: float, sampling_rate: float, steps: int, accountant: Accountant
) -> None:
    """Against another library's privacy loss distributions, which bound ε from above tightly."""
    ledger = ClientLedger(dataset="d", accountant=accountant)
    ledger.charge(
        Charge(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    )
    release = GaussianRelease(noise_multiplier, Poisson(sampling_rate))
    tight = epsilon({release: steps}, delta=DELTA, accountant="pld")
    assert ledger.epsilon(delta=DELTA) >= tight * (1 - 1e-3)
    assert ledger.epsilon(delta=DELTA) <= tight * 1.3 + 0.05


@settings(max_examples=20, deadline=None)
@given(rounds=st.lists(charges, max_size=4))
def test_a_record_survives_flowers_state(rounds: list[Charge]) -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(*rounds)
    state = ConfigRecord(ledger.as_record())
    again = ClientLedger.from_record(state)
    assert again.charges == ledger.charges
    assert again.dataset == "d"
    assert again.as_record() == ledger.as_record()


def test_the_same_data_composes_and_other_data_does_not(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for _ in range(2):
        ClientLedger(dataset="a", path=path).charge(a_charge())
    ClientLedger(dataset="b", path=path).charge(a_charge())
    assert ClientLedger(dataset="a", path=path).charges == (a_charge(6),)
    assert ClientLedger(dataset="b", path=path).charges == (a_charge(3),)


def test_two_ledgers_on_one_file_see_each_other(tmp_path: Path) -> None:
    first, second = (
        ClientLedger(dataset="d", path=tmp_path / "l", budget=Budget(1.0, DELTA)) for _ in range(2)
    )
    first.charge(a_charge(steps=2, noise_multiplier=2.0))
    with pytest.raises(LocalBudgetSpent):
        second.charge(a_charge(steps=200, noise_multiplier=2.0))
    second.charge(a_charge(steps=2, noise_multiplier=2.0))
    assert second.charges[0].steps == 4


def charge_often(path: Path, times: int) -> None:
    for _ in range(times):
        ClientLedger(dataset="d", path=path).charge(a_charge(1))


def test_processes_do_not_lose_each_others_charges(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=charge_often, args=(path, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert ClientLedger(dataset="d", path=path).charges[0].steps == 30


def test_a_charge_over_the_budget_records_nothing(tmp_path: Path) -> None:
    ledger = ClientLedger(dataset="d", path=tmp_path / "l", budget=Budget(6.0, DELTA))
    ledger.charge(a_charge())
    before = (tmp_path / "l").read_bytes()
    with pytest.raises(LocalBudgetSpent) as refusal:
        ledger.charge(a_charge(1000))
    assert not any(character.isdigit() for character in f"{refusal.value} {refusal.value.args}")
    assert (tmp_path / "l").read_bytes() == before


def test_use_without_noise_is_infinite_and_no_budget_allows_it() -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(a_charge(noise_multiplier=0.0))
    assert ledger.epsilon(delta=DELTA) == math.inf
    with pytest.raises(LocalBudgetSpent):
        ClientLedger(dataset="d", budget=Budget(1e6, DELTA)).charge(a_charge(noise_multiplier=0.0))


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.json"
    ClientLedger(dataset="d", path=path).charge(a_charge())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.json", "ledger.json.lock"]


KILLED = """
import os, sys
from pathlib import Path
import torch
from torch.nn.functional import cross_entropy
from privacy.training import *
model = torch.nn.Linear(4, 2)
def kill(module, inputs, outputs):
    if "kill" in sys.argv and len(outputs) == 8:  # the trial before has fewer examples
        os.kill(os.getpid(), 9)
model.register_forward_hook(kill)
train(model, (torch.ones(8, 4), torch.zeros(8, dtype=torch.long)), loss=cross_entropy,
      optimizer=torch.optim.SGD(model.parameters(), lr=.1), batches=FullBatch(steps=5),
      protection=ClipAndNoise(clipping_norm=1.0, noise_multiplier=2.0, delta=1e-5,
                              count=PublicCount()),
      ledger=ClientLedger(dataset="d", path=Path(sys.argv[1])))
"""


def test_a_killed_client_restarts_with_no_less_spent(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), "kill"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ClientLedger(dataset="d", path=path).charges == (
        Charge(noise_multiplier=2.0, sampling_rate=1.0, steps=5),
    )


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ClientLedger(dataset="d", path=tmp_path / "l")
    ledger.charge(a_charge())

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger.charge(a_charge())
    monkeypatch.undo()
    assert ClientLedger(dataset="d", path=tmp_path / "l").charges == (a_charge(),)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "l.lock"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-7],
        lambda text: "",
        lambda text: text.replace('"steps"', '"stops"'),
        lambda text: text.replace("0.1", "-0.1"),
        lambda text: text.replace("1.0", "NaN"),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: json.dumps({"format": 1, "ledgers": {"d": json.loads(text)["ledgers"]["e"]}}),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "ledger.json"
    for dataset in "de":
        ClientLedger(dataset=dataset, path=path).charge(a_charge())
    path.write_text(damage(path.read_text()))
    with pytest.raises(LedgerError):
        ClientLedger(dataset="d", path=path)


def test_a_noised_count_is_paid_for_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    released = {
        ClientLedger(dataset="d", path=path).release_count(
            100, noise_multiplier=5.0, randomness=SeededRandomness(seed)
        )
        for seed in range(4)
    }
    assert len(released) == 1
    assert ClientLedger(dataset="d", path=path).charges == (
        Charge(noise_multiplier=5.0, sampling_rate=1.0, steps=1),
    )


@pytest.mark.parametrize(
    ("target", "participations", "batches"),
    [
        (0.5, 40, FullBatch()),
        (3.0, 1, FullBatch(steps=7)),
        (10.0, 5, FullBatch()),
        (3.0, 12, PoissonBatches(sampling_rate=0.05, steps=20)),
    ],
)
def test_calibrated_noise_spends_the_target_and_no_more(
    target: float, participations: int, batches: FullBatch | PoissonBatches
) -> None:
    noise = calibrate_noise(
        target_epsilon=target, target_delta=DELTA, batches=batches, participations=participations
    )
    ledger = ClientLedger(dataset="d", budget=Budget(target, DELTA))
    one = Charge(noise_multiplier=noise, sampling_rate=batches.sampling_rate, steps=batches.steps)
    ledger.charge(*[one] * participations)
    assert 0.97 * target <= ledger.epsilon(delta=DELTA) <= target
    with pytest.raises(LocalBudgetSpent):
        ledger.charge(*[one] * participations)


def test_calibration_counts_what_was_spent() -> None:
    spent = (Charge(noise_multiplier=5.0, sampling_rate=1.0, steps=5),)
    plan = {
        "target_epsilon": 5.0,
        "target_delta": DELTA,
        "participations": 5,
        "batches": FullBatch(),
    }
    fresh = calibrate_noise(**plan)  # type: ignore[arg-type]
    later = calibrate_noise(**plan, spent=spent)  # type: ignore[arg-type]
    assert later > fresh
    with pytest.raises(ValueError, match="already spent"):
        calibrate_noise(**plan, spent=spent * 100)  # type: ignore[arg-type]
