"""Whether a run can begin is judged before anything is started, in the settings' own names."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from flower_app.errors import SettingError
from flower_app.settings import Settings
from flower_app.training.assembly import check_run, warn_of_few_clients
from privacy.accounting import (
    AdditiveDelta,
    Full,
    GaussianRelease,
    Ledger,
    epsilon,
    read_ledger,
)

MASKED = {"secure-aggregation": "honest-but-curious", "sampling-rate": 1.0, "min-clients": 8}


def check(results: Path, nodes: int = 20, **config: Any) -> int:
    return check_run(
        Settings.from_config({"results-dir": str(results), "rounds": 2, **config}), nodes=nodes
    ).population


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"population": 50}, ["population = 50", "20 simulated nodes", "--nodes 50"]),
        ({"min-available-nodes": 21}, ["min-available-nodes = 21", "at most", "20"]),
        ({"clipping-norm": 1e-30}, ["clipping-norm is 1e-30", "in [1e-12"]),
        ({"ledger": "relative.jsonl"}, ["ledger = 'relative.jsonl'", "absolute"]),
        ({"ledger": "/no/such/folder/l.jsonl"}, ["ledger = '/no/such", "create it first"]),
        ({"ledger": "/etc"}, ["ledger = '/etc'", "is a folder"]),
        ({"ledger": "/" + 300 * "x" + "/l"}, ["ledger = ", "create it first"]),
        ({"results-dir": "relative"}, ["results-dir = 'relative'", "absolute"]),
        ({"results-dir": "/proc/none"}, ["results-dir = '/proc/none'", "cannot be made"]),
        (MASKED | {"min-clients": 500}, ["min-clients is 500", "20 clients"]),
        (
            MASKED | {"sampling-rate": 0.5},
            [
                "min-clients = 8",
                "max-dropout-fraction = 0.2",
                "dropout-probability = 0.02",
                "a sampling rate of 1",
            ],
        ),
        (MASKED | {"noise-placement": "distributed"}, ["max-clients is not set"]),
        (MASKED | {"max-clients": 4}, ["max-clients is 4"]),
        (
            {"weight-cap": 1.0, "total-weight": 99.0},
            ["total-weight = 99.0", "20"],
        ),
        ({"epsilon": 1e-12, "delta": 1e-12}, ["epsilon = 1e-12 is wrong"]),
        ({"noise-multiplier": 0.5}, ["noise-multiplier = 0.5 is wrong", "0.8098", "all 2 rounds"]),
        ({"delta": 1e-320}, ["delta is 1e-320", "in [2.3e-308, 1)"]),
        (
            {"record-epsilon": 1.0, "record-delta": 1e-320},
            ["record-delta is 1e-320", "in [2.3e-308, 1)"],
        ),
        (
            {"record-epsilon": 1.0, "rounds": 10**9, "local-steps": 10**9},
            ["record-epsilon = 1.0 is wrong", "no noise", "local-steps = 1000000000"],
        ),
        (
            {
                "record-epsilon": 0.05,
                "weight-cap": 1.0,
                "total-weight": 20.0,
            },
            ["record-epsilon = 0.05 is wrong", "one noised count", "record-delta = 1e-05"],
        ),
        ({"sampling-rate": 5e-324}, ["sampling-rate is 5e-324", "in [1e-100, 1]"]),
        (
            {"encrypted-round-images": 9, "encrypted-round-noise-multiplier": 1e-300},
            ["encrypted-round-noise-multiplier is 1e-300", "in [1e-100, 1e100]"],
        ),
        ({"deployed": True}, ["population = 0", "population-file"]),
        (
            MASKED | {"deployed": True, "population": 20, "secure-aggregation": "malicious"},
            ["client-public-keys = ''", "public keys"],
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_the_settings_names(
    tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingError) as caught:
        check(tmp_path, **config)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not re.search("[a-z]_[a-z]", message.partition("'")[0]), "a name that is no setting's"
    assert not any(path.is_dir() for path in tmp_path.iterdir()), "a run's folder was made"


def test_settings_that_an_error_proposes_for_so_few_clients_can_be_run(tmp_path: Path) -> None:
    """Also where earlier runs on the ledger were charged for presence, and noise is given."""
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="population, 60 clients") as ledger:
        ledger.append(AdditiveDelta(4e-6), run="earlier", round=1)
    config: dict[str, Any] = MASKED | {"sampling-rate": 0.5, "min-clients": 20}
    for given in ({}, {"noise-multiplier": 9.0}):
        config |= given | {"ledger": str(path)}
        with pytest.raises(
            SettingError, match="delta = 1e-05, of which earlier runs have left 6e-06"
        ) as told:
            check(tmp_path, 60, **config)
        (remedy, *_) = str(told.value).partition("What fits: ")[2].split("; ")
        fits = dict(each.split(" = ") for each in remedy.split(" with "))
        changed = {name: ast.literal_eval(value) for name, value in fits.items()}
        assert changed.keys() <= {"min-clients", "max-dropout-fraction"}
        assert check(tmp_path, 60, **(config | changed)) == 60


def test_advice_names_the_options_of_both_commands(caplog: pytest.LogCaptureFixture) -> None:
    """Whichever of them was given: one's options mean nothing to the other."""
    settings = Settings.from_config({"rounds": 2})
    warn_of_few_clients(settings, population=10, connected=10)
    (line,) = caplog.messages
    assert "run with --nodes 1000, or under flwr run with --federation-config" in line
    assert "'num-supernodes=1000'" in line


def test_what_can_be_run_writes_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    assert check(tmp_path, ledger=str(ledger)) == 20
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_of_another_population_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger.open(path, population="somebody else").close()
    before = path.read_bytes()
    with pytest.raises(SettingError, match="belongs to population 'somebody else'") as told:
        check(tmp_path, ledger=str(path))
    assert str(told.value).startswith(f"ledger = '{path}' is wrong; the ledger {path} belongs")
    assert path.read_bytes() == before
    assert read_ledger(path).population == "somebody else"


def test_a_spent_ledger_is_refused_before_anything_begins(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="population, 20 clients") as ledger:
        ledger.append(GaussianRelease(1.0, Full()), run="earlier", round=1)
    paid = read_ledger(path).epsilon(1e-5)
    assert paid > 3.0
    with pytest.raises(
        SettingError, match=rf"epsilon = 3 is spent; .* of which earlier runs .*{path} have"
    ):
        check(tmp_path, ledger=str(path), epsilon=3.0)
    costly = {"encrypted-round-images": 9, "encrypted-round-noise-multiplier": 0.1, "epsilon": 3.0}
    for given, earlier in (({}, False), ({"ledger": str(path)}, True)):
        with pytest.raises(SettingError, match="raise encrypted-round-noise-multiplier") as told:
            check(tmp_path, **costly, **given)
        takes = epsilon([GaussianRelease(0.1, Full())], delta=1e-5)
        assert f"(encrypted-round-noise-multiplier = 0.1) takes ε = {takes:.6g}" in str(told.value)
        assert (
            f"earlier runs on the ledger {path} have paid ε = {paid:.6g}" in str(told.value)
        ) is earlier
        assert "spent already" not in str(told.value)
    with pytest.raises(SettingError, match=r"is spent; noise-multiplier is 0.5, with which"):
        check(tmp_path, ledger=str(path), epsilon=paid * 1.05, **{"noise-multiplier": 0.5})
    assert len(read_ledger(path).records) == 1


def test_a_damaged_ledger_is_named_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("not a ledger\n")
    with pytest.raises(SettingError) as told:
        check(tmp_path, ledger=str(path))
    assert str(told.value).count(str(path)) == 2


def test_a_lognormal_partition_is_made_however_wide_the_sizes_spread(tmp_path: Path) -> None:
    for sigma in (0.0 + 1e-9, 30.0, 1e6):
        assert check(tmp_path, partition="lognormal", **{"lognormal-sigma": sigma}) == 20
