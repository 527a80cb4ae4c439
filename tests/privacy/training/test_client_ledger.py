"""The client's ledger: nothing is forgotten, across runs, restarts and crashes."""

import copy
import errno
import json
import math
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import NormalDist
from threading import Barrier

import pytest
from flwr.app import ConfigRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    AdditiveDelta,
    Budget,
    Full,
    GaussianRelease,
    Ledger,
    Poisson,
    Repeated,
    calibrate_noise_multiplier,
    epsilon,
    read_ledger,
)
from privacy.accounting.errors import LedgerError
from privacy.mechanisms import SeededRandomness
from privacy.training import ClientLedger, FullBatch, PoissonBatches
from privacy.training.errors import LocalBudgetError

DELTA = 1e-5
trainings = st.builds(
    Repeated,
    st.builds(
        GaussianRelease,
        st.sampled_from([0.8, 1.0, 2.5]),
        st.sampled_from([Poisson(0.01), Poisson(0.2), Full()]),
    ),
    st.integers(1, 30),
)


def training(steps: int = 3, noise_multiplier: float = 1.0) -> Repeated:
    return Repeated(GaussianRelease(noise_multiplier, Poisson(0.1)), steps)


@settings(max_examples=8, deadline=None)
@given(
    rounds=st.lists(trainings, min_size=1, max_size=3),
    delta=st.sampled_from([1e-2, 1e-5, 1e-9, 1e-15]),
)
def test_a_ledger_states_what_the_products_accountant_states(
    rounds: list[Repeated], delta: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After restarts, at every δ, and from the file alone."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    for event in rounds:
        ClientLedger(dataset="d", path=path).charge(event)

    events = [event.release for event in rounds for _ in range(event.times)]
    stated = epsilon(events, delta=delta)
    assert math.isfinite(stated)
    assert ClientLedger(dataset="d", path=path).epsilon(delta=delta) == stated
    assert read_ledger(path).epsilon(delta) == stated


def test_full_batches_cost_what_the_exact_formula_says() -> None:
    """Balle and Wang 2018, theorem 8: δ(ε) of one Gaussian, in closed form."""
    ledger = ClientLedger(dataset="d")
    ledger.charge(Repeated(GaussianRelease(4.0, Full()), 16))
    for delta in (1e-3, 1e-5, 1e-10):
        spent = ledger.epsilon(delta=delta)
        normal = NormalDist()
        exact = normal.cdf(0.5 - spent) - math.exp(spent) * normal.cdf(-0.5 - spent)
        assert exact == pytest.approx(delta, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(rounds=st.lists(trainings, max_size=4))
def test_a_record_survives_flowers_state(rounds: list[Repeated]) -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(*rounds)
    state = ConfigRecord(ledger.as_record())
    again = ClientLedger.from_record(state)
    assert again.events == ledger.events
    assert again.dataset == "d"
    assert again.as_record() == ledger.as_record()


def test_an_edited_record_is_refused() -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(training(500))
    record = ledger.as_record()
    for edited in ({"ledger": record["ledger"].replace("500", "100")}, {}, {"ledger": b"x"}):
        with pytest.raises(LedgerError):
            ClientLedger.from_record(edited)


@pytest.mark.parametrize("name", ["ward-8", "Ward-7", "ward-7 "])
def test_a_file_is_of_one_data_set_and_another_name_does_not_begin_afresh(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = ClientLedger(dataset="ward-7", path=path)
    for _ in range(2):
        ClientLedger(dataset="ward-7", path=path).charge(training())
    assert ledger.events == (training(), training()), "a charge of another process is seen at once"
    with pytest.raises(LedgerError, match=r"belongs to the data set 'ward-7'.*same records"):
        ClientLedger(dataset=name, path=path)


def test_a_ledger_of_the_format_before_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    before = {"format": 1, "ledgers": {"d": {"format": 1, "dataset": "d"}}}
    path.write_text(json.dumps(before, indent=1))
    with pytest.raises(LedgerError, match=r"earlier version.*off the budget"):
        ClientLedger(dataset="d", path=path)
    assert json.loads(path.read_text()) == before


def test_whatever_else_stands_in_the_file_is_spent_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="d") as ledger:
        ledger.append(AdditiveDelta(2 * DELTA), run="a", round=1)
    spent = ClientLedger(dataset="d", path=path, budget=Budget(3.0, DELTA))
    assert spent.events == (AdditiveDelta(2 * DELTA),)
    assert spent.epsilon(delta=DELTA) == math.inf
    with pytest.raises(LocalBudgetError):
        spent.charge(training())


def test_two_ledgers_on_one_file_see_each_other(tmp_path: Path) -> None:
    first, second = (
        ClientLedger(dataset="d", path=tmp_path / "l", budget=Budget(1.0, DELTA)) for _ in range(2)
    )
    first.charge(training(steps=2, noise_multiplier=2.0))
    with pytest.raises(LocalBudgetError):
        second.charge(training(steps=200, noise_multiplier=2.0))
    second.charge(training(steps=2, noise_multiplier=2.0))
    assert second.events == 2 * (training(steps=2, noise_multiplier=2.0),)


def charge_often(path: Path, times: int) -> None:
    for _ in range(times):
        ClientLedger(dataset="d", path=path).charge(training(1))


def test_processes_do_not_lose_each_others_charges(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=charge_often, args=(path, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert ClientLedger(dataset="d", path=path).events == 30 * (training(1),)


def test_a_charge_over_the_budget_records_nothing(tmp_path: Path) -> None:
    ledger = ClientLedger(dataset="d", path=tmp_path / "l", budget=Budget(4.0, DELTA))
    ledger.charge(training())
    before = (tmp_path / "l").read_bytes()
    with pytest.raises(LocalBudgetError) as refusal:
        ledger.charge(training(1000))
    assert not any(character.isdigit() for character in f"{refusal.value} {refusal.value.args}")
    assert (tmp_path / "l").read_bytes() == before


def test_use_without_noise_is_infinite_and_no_budget_allows_it() -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(training(noise_multiplier=0.0))
    assert ledger.epsilon(delta=DELTA) == math.inf
    with pytest.raises(LocalBudgetError):
        ClientLedger(dataset="d", budget=Budget(1e6, DELTA)).charge(training(noise_multiplier=0.0))


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    ClientLedger(dataset="d", path=path).charge(training())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "ledger.jsonl",
        "ledger.jsonl.lock",
    ]


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
      optimizer=GradientDescent(model.parameters(), learning_rate=.1), batches=FullBatch(steps=5),
      protection=ClipAndNoise(clipping_norm=1.0, noise_multiplier=2.0, delta=1e-5,
                              count=PublicCount()),
      ledger=ClientLedger(dataset="d", path=Path(sys.argv[1])))
"""


def test_a_killed_client_restarts_with_no_less_spent(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), "kill"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ClientLedger(dataset="d", path=path).events == (
        Repeated(GaussianRelease(2.0, Full()), 5),
    )


def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ClientLedger(dataset="d", path=tmp_path / "l")
    ledger.charge(training())

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="cannot be written"):
        ledger.charge(training())
    monkeypatch.undo()
    assert ClientLedger(dataset="d", path=tmp_path / "l").events == (training(),)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "l.lock"]


def test_a_disk_that_cannot_be_written_is_named_and_nothing_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only, or no folder at all."""

    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    ledger = ClientLedger(dataset="d", path=tmp_path / "state" / "l")
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(LedgerError, match=r"state/l cannot be written.*Read-only.*train nothing"):
        ledger.charge(training())
    monkeypatch.undo()
    assert ledger.events == ()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="file/l cannot be"):
        ClientLedger(dataset="d", path=tmp_path / "file" / "l").charge(training())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-7],
        lambda text: "",
        lambda text: text.replace("500", "100"),
        lambda text: text.replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0'),
        lambda text: text.replace("0.1", "0.01"),
        lambda text: text.replace("repeated", "gaussian"),
        lambda text: text.replace('"population": "d"', '"population": "e"'),
        lambda text: "".join([*text.splitlines(keepends=True)[:1], text.splitlines()[2], "\n"]),
        lambda text: text + text.splitlines()[-1] + "\n",
    ],
    ids=[
        "cut off",
        "emptied",
        "steps",
        "noise",
        "rate",
        "event",
        "name",
        "a line less in the middle",
        "a line twice",
    ],
)
def test_an_edited_file_is_refused_by_name(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "ledger.jsonl"
    ledger = ClientLedger(dataset="d", path=path)
    for steps in (500, 7):
        ledger.charge(training(steps))
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(LedgerError, match=r"ledger\.jsonl"):
        ClientLedger(dataset="d", path=path)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl"):
        ledger.charge(training())


def test_a_noised_count_is_paid_for_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    released = {
        ClientLedger(dataset="d", path=path).release_count(
            100, noise_multiplier=5.0, randomness=SeededRandomness(seed)
        )
        for seed in range(4)
    }
    assert len(released) == 1
    assert ClientLedger(dataset="d", path=path).events == (GaussianRelease(5.0, Full()),)


@pytest.mark.parametrize(
    ("target", "participations", "batches"),
    [
        (0.005, 1, FullBatch()),
        (0.5, 40, FullBatch()),
        (3.0, 1, FullBatch(steps=7)),
        (10.0, 5, FullBatch()),
        (3.0, 12, PoissonBatches(sampling_rate=0.05, steps=20)),
    ],
)
def test_calibrated_noise_spends_the_target_and_no_more(
    target: float, participations: int, batches: FullBatch | PoissonBatches
) -> None:
    budget = Budget(target, DELTA)
    rounds = batches.steps * participations
    noise = calibrate_noise_multiplier(sampling=batches.sampling, rounds=rounds, budget=budget)
    ledger = ClientLedger(dataset="d", budget=budget)
    one = Repeated(GaussianRelease(noise, batches.sampling), batches.steps)
    ledger.charge(*[one] * participations)
    assert 0.999 * target <= ledger.epsilon(delta=DELTA) <= target
    with pytest.raises(LocalBudgetError):
        ledger.charge(*[one] * participations)


def test_threads_do_not_overspend_a_ledger_in_memory() -> None:
    ledger = ClientLedger(dataset="d", budget=Budget(3.0, DELTA))
    began = Barrier(8)

    def charges() -> int:
        began.wait()
        paid = 0
        for _ in range(4):
            try:
                ledger.charge(training(1))
                paid += 1
            except LocalBudgetError:
                pass
        return paid

    with ThreadPoolExecutor(8) as pool:
        paid = sum(each.result() for each in [pool.submit(charges) for _ in range(8)])
    assert ledger.epsilon(delta=DELTA) <= 3.0
    assert len(ledger.events) == paid


def test_a_ledger_can_be_sent_to_another_process(tmp_path: Path) -> None:
    ledger = ClientLedger(dataset="d", path=tmp_path / "l")
    ledger.charge(training())
    assert copy.deepcopy(ledger).events == ledger.events
    assert pickle.loads(pickle.dumps(ledger)).events == ledger.events  # noqa: S301


@pytest.mark.parametrize("path", ["ledger.jsonl", "./state/ledger.jsonl", "../ledger.jsonl"])
def test_a_path_that_is_another_file_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="a relative path") as refusal:
        ClientLedger(dataset="d", path=Path(path))
    assert str(Path(path).absolute()) in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    ["\0", "l\0.jsonl", 5000 * "a", "\ud800"],
    ids=["null", "null within", "long", "surrogate"],
)
def test_a_path_that_no_file_can_have_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"^path is '/.*give the path of a file: ") as refusal:
        ClientLedger(dataset="d", path=Path("/") / name)
    assert len(str(refusal.value)) < 300


def test_a_ledger_in_ones_home_is_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    ledger = ClientLedger(dataset="d", path=Path("~/state/l"))
    ledger.charge(training())
    monkeypatch.chdir("/")
    assert ledger.events == ClientLedger(dataset="d", path=Path("~/state/l")).events != ()
    assert (tmp_path / "home" / "state" / "l").is_file()
    assert not (tmp_path / "~").exists()


def test_a_path_that_can_be_no_ledgers_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "a folder"), (Path("~nobody-of-that-name/l"), "nobody")):
        with pytest.raises(ValueError, match=reason):
            ClientLedger(dataset="d", path=path)


@settings(max_examples=60, deadline=None)
@given(
    noise=st.floats(-6, 3).map(lambda power: 10.0**power),
    rate=st.one_of(
        st.floats(-17, -6).map(lambda power: 1 - 10.0**power), st.floats(1e-16, 1.0), st.just(1.0)
    ),
    steps=st.floats(0, 40).map(lambda power: int(10.0**power)),
)
@example(noise=0.03, rate=1e-16, steps=1)  # too rare a loss for doubles
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_every_charge_has_an_epsilon_and_at_most_that_of_all_records(
    noise: float, rate: float, steps: int
) -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(Repeated(GaussianRelease(noise, Poisson(rate)), steps))
    unsampled = ClientLedger(dataset="d")
    unsampled.charge(Repeated(GaussianRelease(noise, Full()), steps))
    assert 0 <= ledger.epsilon(delta=DELTA) <= unsampled.epsilon(delta=DELTA) * (1 + 1e-9)


def test_a_record_that_is_hardly_ever_drawn_spends_nothing() -> None:
    ledger = ClientLedger(dataset="d")
    ledger.charge(Repeated(GaussianRelease(0.03, Poisson(1e-12)), 100))
    assert ledger.epsilon(delta=2e-10) == 0
    assert ledger.epsilon(delta=5e-11) > 0


def test_a_rate_a_hair_below_one_with_next_to_no_noise_is_accounted() -> None:
    ledger = ClientLedger(dataset="d", budget=Budget(3.0, DELTA))
    event = Repeated(GaussianRelease(1e-3, Poisson(1 - 1e-16)), 10**30)
    with pytest.raises(LocalBudgetError):
        ledger.charge(event)
    unlimited = ClientLedger(dataset="d")
    unlimited.charge(event)
    assert unlimited.epsilon(delta=DELTA) == pytest.approx(5e35, rel=1e-6)


@pytest.mark.parametrize("steps", [10**400, 10**101])
def test_more_steps_than_can_be_accounted_are_named(steps: int) -> None:
    for make in (FullBatch, partial(PoissonBatches, sampling_rate=0.1)):
        with pytest.raises(ValueError, match=r"steps is an integer of \d+ bits"):
            make(steps=steps)
