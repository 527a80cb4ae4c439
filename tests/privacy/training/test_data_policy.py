"""A data set's policy: its rules hold whatever is asked, and what is declined shows no number."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import Full, GaussianRelease, Repeated
from privacy.accounting.errors import LedgerError
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    DataPolicy,
    FullBatch,
    NominalCount,
    PoissonBatches,
    pay,
)
from privacy.training.errors import LocalBudgetError, PolicyError

TEXT = """
dataset = "st-anna/cardiology/2025"
ledger = "{folder}/ledger.jsonl"
unit = "row"
max-epsilon = 3
max-delta = 1e-5
max-clipping-norm = 1.0
max-sampling-rate = 0.25
min-silos = 5
colluders = 2
"""
ALLOWED: dict[str, Any] = {
    "unit": "person",
    "clipping_norm": 1.0,
    "sampling_rate": 0.25,
    "min_silos": 5,
    "colluders": 2,
}


def policy(**changes: Any) -> DataPolicy:
    rules: dict[str, Any] = {
        "dataset": "ward-7",
        "max_epsilon": 3.0,
        "max_delta": 1e-5,
        "max_clipping_norm": 1.0,
        "max_sampling_rate": 0.25,
        "min_silos": 5,
        "colluders": 2,
    }
    return DataPolicy(**(rules | changes))


def noisy(z: float = 4.0, **changes: Any) -> ClipAndNoise:
    given: dict[str, Any] = {
        "clipping_norm": 1.0,
        "noise_multiplier": z,
        "delta": 1e-5,
        "count": NominalCount(records=9),
    }
    return ClipAndNoise(**(given | changes))


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "policy.toml"
    path.write_text(text.format(folder=folder))
    return path


def test_a_file_has_the_parameters_under_their_names_with_hyphens(tmp_path: Path) -> None:
    expected = policy(
        dataset="st-anna/cardiology/2025", unit="row", ledger=tmp_path / "ledger.jsonl"
    )
    assert DataPolicy.load(written(tmp_path)) == expected
    assert DataPolicy.load(written(tmp_path, f"\ufeff{TEXT}")) == expected  # a Windows editor's


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("min-silos", "min_silos", "min_silos is no rule of a policy; the nearest is min-silos"),
        ("max-epsilon = 3\n", "", "max-epsilon is missing"),
        ('ledger = "{folder}/ledger.jsonl"\n', "", "ledger is missing"),
        ("max-epsilon = 3\n", 'max-epsilon = "3"\n', "max-epsilon is '3'"),
        ("dataset =", "[policy]\ndataset =", "no part [policy]: its keys stand without a heading"),
        ("max-delta = 1e-5", "max-delta = 2.0", "max-delta is 2.0"),
        ('unit = "row"', 'unit = "ward"', "unit is 'ward'; give 'person' or 'row'"),
        ("colluders = 2", "colluders = 3", "colluders is 3"),
        ("min-silos = 5", "min-silos = 2", "min-silos is 2"),
        ("min-silos = 5", "min-silos = 5\nanswer-seconds = -1", "answer-seconds is -1"),
        ("min-silos = 5", "min-silos = 5\nanswer-seconds = 5e-324", "or from 0.001 to 86400"),
        ("min-silos = 5", "min-silos = 5\nanswer-seconds = 1e300", "or from 0.001 to 86400"),
        ("min-silos = 5", f"min-silos = {5000 * '['}", "nested too deeply"),
        ('ledger = "{folder}/', 'ledger = "', "a relative path"),
        ("max-delta", "max-delta = 1", "line 6"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_whole(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in TEXT
    with pytest.raises(PolicyError, match=re.escape(words)):
        DataPolicy.load(written(tmp_path, TEXT.replace(old, new, 1)))


def test_a_missing_file_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No such file"):
        DataPolicy.load(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"unit": "row"}, "unit"),
        ({"clipping_norm": 1.0000001}, "max-clipping-norm"),
        ({"sampling_rate": 0.2500001}, "max-sampling-rate"),
        ({"min_silos": 4}, "min-silos"),
        ({"colluders": 1}, "colluders"),
    ],
)
def test_a_step_beyond_a_rule_is_declined_by_its_name_and_no_number(
    asked: dict[str, Any], rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy().check_step(**ALLOWED)
    with caplog.at_level(logging.WARNING), pytest.raises(PolicyError) as declined:
        policy().check_step(**(ALLOWED | asked))
    assert str(declined.value) == f"the owner of the data does not allow it: {rule}"
    assert str(next(iter(asked.values()))) in caplog.text, "the owner's own log has the numbers"


@given(
    st.floats(1e-6, 2.0),
    st.floats(1e-6, 1.0),
    st.integers(3, 9),
    st.integers(1, 8),
    st.sampled_from(["person", "row"]),
)
def test_what_is_allowed_is_never_beyond_a_rule(
    norm: float, rate: float, silos: int, colluders: int, unit: Any
) -> None:
    try:
        policy().check_step(
            unit=unit,
            clipping_norm=norm,
            sampling_rate=rate,
            min_silos=silos,
            colluders=colluders,
        )
    except PolicyError:
        return
    assert unit == "person"
    assert norm <= 1.0
    assert rate <= 0.25
    assert silos >= 5
    assert colluders >= 2


@pytest.mark.parametrize(
    ("protection", "batches", "rule"),
    [
        (ClipOnly(clipping_norm=1.0), FullBatch(), "max-epsilon"),
        (noisy(delta=2e-5), PoissonBatches(sampling_rate=0.1, steps=1), "max-delta"),
        (noisy(clipping_norm=2.0), PoissonBatches(sampling_rate=0.1, steps=1), "max-clipping-norm"),
        (noisy(), FullBatch(), "max-sampling-rate"),
    ],
)
def test_clients_that_noise_for_themselves_are_held_to_the_same_policy(
    protection: Any, batches: Any, rule: str
) -> None:
    with pytest.raises(PolicyError, match=f": {rule}$"):
        policy(unit="row").check_training(protection, batches)


def test_noise_for_rows_is_declined_where_persons_are_to_be_protected() -> None:
    batches = PoissonBatches(sampling_rate=0.1, steps=1)
    policy(unit="row").check_training(noisy(), batches)
    with pytest.raises(PolicyError, match=r": unit$"):
        policy().check_training(noisy(), batches)


def test_a_run_of_persons_is_declined_where_rows_are_to_be_protected() -> None:
    policy(unit="row").check_step(**ALLOWED | {"unit": "row"})
    with pytest.raises(PolicyError, match=r": unit$"):
        policy(unit="row").check_step(**ALLOWED)


def test_the_ledger_holds_all_runs_to_the_owners_budget(tmp_path: Path) -> None:
    owner = policy(ledger=tmp_path / "ledger.jsonl", unit="row", max_sampling_rate=1.0)

    def spend() -> bool:
        owner.check_training(noisy(), FullBatch())
        try:
            pay(noisy(), FullBatch(), ledger=owner.open_ledger())
        except LocalBudgetError:
            return False
        return True

    spent = next(times for times in range(100) if not spend())
    assert 1 <= spent < 100
    assert owner.open_ledger().epsilon(delta=1e-5) <= 3.0
    renamed = TEXT.replace("st-anna/cardiology/2025", "ward-7")
    restarted = DataPolicy.load(written(tmp_path, renamed))
    with pytest.raises(LocalBudgetError):
        restarted.open_ledger().charge(Repeated(GaussianRelease(4.0, Full()), 1))


@pytest.mark.parametrize(("before", "after"), [("row", "person"), ("person", "row")])
def test_a_ledger_of_one_unit_is_never_read_as_one_of_the_other(
    tmp_path: Path, before: Any, after: Any
) -> None:
    file = tmp_path / "ledger.jsonl"
    spent = policy(unit=before, ledger=file).open_ledger()
    spent.charge(GaussianRelease(4.0, Full()))
    with pytest.raises(LedgerError, match=f"spent on each {before}, not on each {after}"):
        policy(unit=after, ledger=file).open_ledger()
    again = policy(unit=before, ledger=file).open_ledger()
    assert again.events == spent.events
    assert ClientLedger.from_record(again.as_record()).unit == before
