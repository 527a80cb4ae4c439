"""A wrong setting is named, with its value and the remedy, before anything starts."""

import re
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import get_fused_config_from_dir, parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from flower_app.__main__ import main as flower_app_main
from flower_app.commands.run import parse_settings
from flower_app.errors import SettingError
from flower_app.models.specs import RECIPES
from flower_app.setting_names import _USUAL_NAMES, FORMER_NAMES, kebab
from flower_app.settings import (
    _CHOICES,
    _RANGES,
    PATHS_OF_THE_SERVER,
    Settings,
    write_run_config,
)
from privacy.accounting.__main__ import main as accounting_main
from privacy.audit.__main__ import main as audit_main
from tests.flower_app.tasks.projects import TASK, project

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def test_the_project_declares_every_setting_with_its_default() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["tool"]["flwr"]["app"]["config"]
    assert declared == Settings().as_config() | FORMER_NAMES
    assert list(declared) == [*Settings().as_config(), *FORMER_NAMES]
    assert Settings.from_config(declared) == Settings.from_config({})


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_former_name_is_answered_with_the_new_one(former: str, name: str) -> None:
    assert name in Settings().as_config()
    for value in (0.3, "distributed", float("nan"), True):
        with pytest.raises(SettingError, match=f"{former} was renamed to {name}"):
            Settings.from_config({former: value, "epsilon": 2.0})


def test_flwr_run_passes_a_former_name_on_and_the_command_refuses_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Flower itself refuses only what ``pyproject.toml`` does not declare."""
    given = parse_config_args(["corrupt=0.3"])
    with pytest.raises(SettingError, match="corrupt was renamed to max-corrupt-fraction"):
        Settings.from_config(get_fused_config_from_dir(ROOT, given))
    assert flower_app_main(["run", "corrupt=0.3"]) == 1
    assert "corrupt was renamed to max-corrupt-fraction" in capsys.readouterr().err


def test_all_former_names_of_a_configuration_are_answered_at_once() -> None:
    with pytest.raises(
        SettingError, match=r"corrupt was renamed to max-.*; dropout was renamed to max-drop"
    ):
        Settings.from_config({"corrupt": 0.1, "dropout": 0.2})


def test_usual_names_lead_to_settings_and_hide_none() -> None:
    known = Settings().as_config()
    assert {name for names in _USUAL_NAMES.values() for name in names.split()} <= set(known)
    assert not set(_USUAL_NAMES) & (set(known) | set(FORMER_NAMES))


@pytest.mark.parametrize(
    "spelt",
    [
        lambda name: name.replace("-", "_"),
        str.upper,
        lambda name: name.replace("-", "_").upper(),
        lambda name: name.replace("-", " ").title(),
    ],
    ids=["underscores", "capitals", "both", "words"],
)
def test_a_name_in_another_spelling_is_answered_with_one_name(spelt: Callable[[str], str]) -> None:
    own = {name: f"(here it is {name}|{name} is, but it)" for name in Settings().as_config()}
    former = {name: f"{name} was renamed to {today}" for name, today in FORMER_NAMES.items()}
    usual = {
        name: f"here it is ({names.replace(' ', '|')})" for name, names in _USUAL_NAMES.items()
    }
    for name, answer in {**own, **former, **usual}.items():
        if (written := spelt(name)) != name:
            with pytest.raises(SettingError, match=rf"is not a setting; {answer}( \(.*\)|, .*)?"):
                Settings.from_config({written: 1})


def another(name: str, value: object) -> object:
    """A value of a setting that is not its default, and that some run takes."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next((c for c in _CHOICES.get(name.replace("-", "_"), ()) if c != value), "text")
    close = (value + step for step in (1, 0.25, -0.25) if isinstance(value, int | float))
    for number in close:
        field = name.replace("-", "_")
        typed = type(value)(number)  # type: ignore[arg-type]
        if typed != value and all(ok(typed) for names, ok, _ in _RANGES if field in names.split()):
            return typed
    raise AssertionError(f"no other value of {name}")


RUNS: dict[str, dict[str, object]] = {
    "clients": {},
    "silos": {"mode": "silos"},
    "deployed clients": {"deployed": True},
    "deployed silos": {"deployed": True, "mode": "silos"},
    "task": {},
}


@pytest.mark.parametrize("run", RUNS)
def test_what_is_suggested_is_taken_by_that_run(run: str, tmp_path: Path) -> None:
    """Of every name that people bring along, and of every setting with a letter too few."""
    base = dict(RUNS[run])
    if run == "task":
        silos = 'mode = "silos"\nsilos = 4\npersons = 160\nepsilon'
        base["task"] = str(project(tmp_path, task=TASK.replace("epsilon", silos)))
    known = Settings().as_config()
    refused = set()
    for name, value in known.items():
        if name in base:
            continue
        try:
            Settings._of({**base, name: another(name, value)})
        except SettingError as error:
            if "leave it out" in str(error) or "left out" in str(error):
                refused.add(name)
    assert ("local-learning-rate" in refused) is (base.get("mode") == "silos" or run == "task")
    assert ("partition-seed" in refused) is (run == "task")
    misspelt = {name[:-1] for name in known} | {f"{name}s" for name in known}
    brought = [*_USUAL_NAMES, *sorted(misspelt - set(known))]
    for name in brought:
        with pytest.raises(SettingError) as caught:
            Settings._of({**base, name: 1})
        _, hint = str(caught.value).split("is not a setting; ")
        assert not refused & set(re.findall(r"[a-z]+(?:-[a-z]+)*", hint.split(" (")[0])), hint
    for name in FORMER_NAMES:
        for written in (name, name.upper()):
            with pytest.raises(SettingError, match="was renamed to") as caught:
                Settings._of({**base, written: 0.3})
            words = (
                "leave it out|left out" if FORMER_NAMES[name] in refused else "^((?!left out).)*$"
            )
            assert re.search(words, str(caught.value)), caught.value


def test_every_setting_is_checked_used_and_described() -> None:
    """A field alone would be a setting that takes any value and does nothing."""
    ranged = {name for names, _, _ in _RANGES for name in names.split()}
    source = "\n".join(
        file.read_text()
        for file in (ROOT / "flower_app").rglob("*.py")
        if file.name != "settings.py"
    )
    own = (ROOT / "flower_app" / "settings.py").read_text()
    rows = re.findall(r"^\| (`.+?) \|", (REFERENCE / "settings.md").read_text(), re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    for field in fields(Settings):
        checked = (
            isinstance(field.default, bool)
            or field.name in ranged
            or field.name in _CHOICES
            or kebab(field.name) in PATHS_OF_THE_SERVER
        )
        assert checked, f"{field.name} has neither a range nor choices"
        used = rf"\.{field.name}\b"
        assert re.search(used, source) or re.search(rf"self{used}", own), f"{field.name} is unused"
        assert kebab(field.name) in described, f"{field.name} has no row in settings.md"
    pages = "".join((REFERENCE / page).read_text() for page in ("settings.md", "data.md"))
    for name, choices in _CHOICES.items():
        for choice in choices:
            assert f"`{choice}`" in pages, f"{choice!r}, of {kebab(name)}, is on neither page"


def test_the_defaults_are_valid_and_take_the_models_recipe() -> None:
    settings = Settings.from_config(Settings().as_config())
    assert settings.rounds == RECIPES["hog-linear"].rounds
    assert settings.server_momentum == RECIPES["hog-linear"].server_momentum


def test_what_is_set_wins_over_the_recipe() -> None:
    settings = Settings.from_config({"rounds": 3, "server-momentum": 0.0, "model": "cnn"})
    assert settings.rounds == 3
    assert settings.server_momentum == 0.0
    assert settings.clipping_norm == RECIPES["cnn"].clipping_norm


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"modle": "cnn"}, ["modle", "'cnn'", "model"]),
        ({"model": "resnet"}, ["model", "'resnet'", "hog-linear"]),
        ({"dataset": "cifar"}, ["dataset", "'cifar'", "mnist"]),
        ({"partition": "random"}, ["partition", "'random'", "shards"]),
        ({"epsilon": -1.0}, ["epsilon", "-1.0", "positive"]),
        ({"epsilon": float("nan")}, ["epsilon", "nan", "finite"]),
        ({"delta": 1.0}, ["delta", "1.0", "between 0 and 1"]),
        ({"sampling-rate": 0.0}, ["sampling-rate", "0.0", "(0, 1]"]),
        ({"sampling-rate": 1.5}, ["sampling-rate", "1.5", "(0, 1]"]),
        ({"mechanism": "tree"}, ["mechanism", "'tree'", "banded", "blt"]),
        ({"mechanism": "banded", "sampling-rate": 0.3}, ["sampling-rate", "0.3", "groups"]),
        ({"mechanism": "blt", "sampling-rate": 1.0}, ["sampling-rate", "1.0", "groups"]),
        ({"mechanism": "banded", "mode": "silos"}, ["mechanism", "mode"]),
        ({"rounds": 2.5}, ["rounds", "2.5", "whole number"]),
        ({"rounds": -1}, ["rounds", "-1", "at least 0"]),
        ({"deployed": "yes"}, ["deployed", "'yes'", "true or false"]),
        ({"population": True}, ["population", "True", "whole number"]),
        ({"min-available-nodes": 9, "population": 8}, ["min-available-nodes", "9", "8"]),
        ({"clipping-norm": -0.1}, ["clipping-norm", "-0.1", "at least 0"]),
        ({"total-weight": 9.0}, ["weight-cap", "0.0", "positive"]),
        ({"data-dir": "/no/such/folder"}, ["data-dir", "/no/such/folder", "exists"]),
        ({"resume": "/no/such/folder"}, ["resume", "/no/such/folder", "results folder"]),
        ({"resume": "/etc/hostname"}, ["resume", "/etc/hostname", "not a file"]),
        ({"epsilom": 3.0}, ["epsilom", "did you mean epsilon?"]),
        ({"noise_multiplier": 3.0}, ["noise_multiplier", "here it is noise-multiplier"]),
        ({"sampling_rat": 0.1}, ["did you mean sampling-rate"]),
        ({"num-server-rounds": 3}, ["num-server-rounds = 3", "here it is rounds"]),
        ({"steps": 5}, ["steps = 5", "here it is rounds"]),
        ({"lr": 0.1}, ["here it is local-learning-rate"]),
        ({"lr": 0.1, "mode": "silos"}, ["here it is server-learning-rate"]),
        ({"Sampling_Rate": 1, "mode": "silos"}, ["belongs to mode = 'clients'", "record-sampling"]),
        ({"dropout": 0.3, "mode": "silos"}, ["max-dropout-fraction, but it belongs to mode"]),
        ({"batch_size": 32}, ["here it is local-steps (each step takes all"]),
        ({"noise-scale": 1.1}, ["here it is noise-multiplier"]),
        ({"xyz": 1}, ["xyz", "the settings are task, dataset, data-dir"]),
        ({"partition-seed": -1}, ["partition-seed", "-1", "at least 0"]),
        ({"population-file": "/no/such/file", "deployed": True}, ["population-file", "exists"]),
        ({"population-file": "/etc/hostname"}, ["population-file", "left out in a simulation"]),
        ({"client-public-keys": "/some/file"}, ["client-public-keys", "left out in a simulation"]),
        ({"data-dir": 300 * "x"}, ["data-dir", "exists"]),
        ({"encrypted-test-images": -5}, ["encrypted-test-images", "-5", "at least 0"]),
    ],
)
def test_a_wrong_setting_names_itself(config: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_config(config)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_whole_number_serves_where_a_number_is_meant() -> None:
    assert Settings.from_config({"epsilon": 8}).epsilon == 8.0


def test_command_line_settings_are_typed() -> None:
    assert parse_settings(["model=cnn", "epsilon=8", "deployed=true", "ledger=/a b/c"]) == {
        "model": "cnn",
        "epsilon": 8,
        "deployed": True,
        "ledger": "/a b/c",
    }


@pytest.mark.parametrize("pair", ["epsilon", "=3", ""])
def test_a_command_line_setting_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(SettingError, match="name=value"):
        parse_settings([pair])


def test_a_command_line_setting_is_given_once() -> None:
    with pytest.raises(SettingError, match="rounds is given twice, as 3 and as 4; give it once"):
        parse_settings(["rounds=3", "epsilon=8", "rounds=4"])


def test_text_stays_text_whatever_it_looks_like() -> None:
    assert parse_settings(["results-dir=2026-11-29", "ledger=7", "resume=true", "x=[1]"]) == {
        "results-dir": "2026-11-29",
        "ledger": "7",
        "resume": "true",
        "x": "[1]",
    }


_TEXT = st.text(st.characters(codec="utf-8"))


@given(st.dictionaries(st.from_regex(r"[a-z-]+", fullmatch=True), _TEXT | st.floats(-9, 9)))
def test_flower_reads_the_settings_as_they_were_given(config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = write_run_config(config, Path(folder) / "run.toml")
        assert parse_config_args([str(written)], flatten=False) == config


def test_a_path_may_begin_with_the_users_home() -> None:
    settings = Settings.from_config({"ledger": "~/ledger.jsonl", "results-dir": "~"})
    assert settings.ledger == str(Path.home() / "ledger.jsonl")
    assert settings.results_dir == str(Path.home())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("example-clipping-norm", 1e-46),
        ("example-clipping-norm", 3e38),
        ("example-clipping-norm", 10**400),
        ("local-learning-rate", 3e38),
        ("local-learning-rate", 1e-300),
        ("local-learning-rate", float("inf")),
        ("records-per-client", 10**400),
        ("rounds", 10**400),
        ("local-steps", 10**400),
        ("encrypted-round-images", 2**63),
        ("partition-seed", 10**30),
    ],
)
def test_a_number_that_single_precision_or_nobody_can_work_with_is_named(
    name: str, value: float
) -> None:
    with pytest.raises(SettingError, match=rf"{name} = .* is wrong; it must be"):
        Settings.from_config({name: value})


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (flower_app_main, ["run", "--node", "200"]),
        (flower_app_main, ["plan", "--pop", "1000"]),
        (
            accounting_main,
            [
                "calibrate",
                "--eps",
                "3",
                "--delta",
                "1e-5",
                "--sampling-rate",
                "0.1",
                "--rounds",
                "9",
            ],
        ),
        (audit_main, ["bound", "--canaries", "9", "--corr", "5", "--delta", "0"]),
    ],
)
def test_an_option_is_not_taken_for_another_that_begins_like_it(
    command: Callable[[list[str]], int], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(("rate", "rounds", "turns"), [(0.1, 100, 10), (0.333, 1000, 334)])
def test_a_client_budgets_for_its_turns_and_one_more(rate: float, rounds: int, turns: int) -> None:
    """By the groups, which are whole, and not by the rate that stands for them."""
    given = {"mechanism": "banded", "sampling-rate": rate, "rounds": rounds}
    assert Settings.from_config(given).planned_participations == turns + 1
