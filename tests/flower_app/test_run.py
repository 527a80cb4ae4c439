"""The whole app, from data to encrypted answers, in one process."""

import importlib.util
import json
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, RecordDict
from safetensors.torch import load_file

import privacy.imports
from flower_app import client_app
from flower_app.__main__ import main
from flower_app.data import load_dataset, load_inputs, load_partitions
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.report.results_folder import closing_lines
from flower_app.settings import Settings
from flower_app.training.progress import TimeLeft, accuracy
from privacy.accounting import (
    Budget,
    Full,
    GaussianRelease,
    Ledger,
    Poisson,
    calibrate_noise_multiplier,
)
from privacy.accounting.__main__ import main as accounting
from privacy.training import ClientLedger
from strategies import InProcessGrid
from tests.flower_app.app_runs import Run, run_app

ROOT = Path(__file__).parents[2]


def test_a_package_that_a_runs_processes_need_is_named_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        privacy.imports, "find_spec", lambda name: None if name == "jinja2" else found(name)
    )
    assert main(["run", "rounds=1"]) == 1
    error = capsys.readouterr().err
    assert "run needs jinja2, which is not installed: pip install 'bloomseal[app]'" in error


def test_metrics_hold_what_is_promised(small_run: Run) -> None:
    metrics = small_run.metrics
    assert metrics["accuracy"].keys() >= {"validation", "test"}
    assert metrics["privacy"]["client_level"].keys() >= {
        "epsilon",
        "delta",
        "noise_multiplier",
        "clipping_norm",
        "sampling_rate",
        "rounds",
        "population",
        "adjacency",
        "accountant",
    }
    assert metrics["privacy"]["record_level"]["epsilon_max"] is None
    assert metrics["privacy"]["record_level"]["reason"]
    assert metrics["privacy"]["tuning"]["reason"]
    assert metrics["encrypted"].keys() >= {
        "images",
        "agreement",
        "accuracy",
        "max_logit_error",
        "ms_per_image",
        "query_bytes",
        "answer_bytes",
        "security_bits",
    }
    assert metrics["seconds"].keys() == {"total", "training", "encrypted"}
    assert metrics["privacy"]["client_level"]["population"] == 40
    assert metrics["privacy"]["client_level"]["rounds"] == 4


def test_a_run_with_a_ledger_of_its_own_says_what_its_epsilon_covers(small_run: Run) -> None:
    assert small_run.metrics["privacy"]["client_level"]["covers"] == "this run alone"
    assert "this run alone" in (small_run.folder / "report.html").read_text()


def test_epsilon_follows_from_the_ledger_alone(
    small_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = small_run.folder / "privacy-ledger.jsonl"
    assert accounting(["ledger", str(ledger), "--delta", "1e-5"]) == 0
    client_level = small_run.metrics["privacy"]["client_level"]
    derived = json.loads(capsys.readouterr().out)
    assert derived["epsilon"]["pld"] == client_level["epsilon"]
    assert client_level["epsilon"] <= 3.0


def test_the_saved_model_is_the_one_that_was_measured(small_run: Run) -> None:
    model = build_model("hog-linear")
    model.load_state_dict(load_file(small_run.folder / "model.safetensors"))
    inputs = load_inputs(load_dataset("mnist"), "hog")
    labels = torch.tensor(inputs.dataset.test.labels)
    found = accuracy(model, torch.from_numpy(inputs.test()), labels)
    assert found == small_run.metrics["accuracy"]["test"]


def test_encrypted_answers_are_the_plain_ones(small_run: Run) -> None:
    encrypted = small_run.metrics["encrypted"]
    assert encrypted["images"] == 20
    assert encrypted["agreement"] == 1.0
    assert 0 < encrypted["max_logit_error"] < 0.02
    assert encrypted["security_bits"] == 128


def test_nothing_un_noised_is_in_the_folder_that_is_shared(small_run: Run) -> None:
    log = small_run.folder.parent / "operator-logs" / f"{small_run.folder.name}.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "replies used" in log.read_text()
    for path in small_run.folder.iterdir():
        if path.suffix in {".json", ".jsonl", ".html"}:
            assert "replies used" not in path.read_text(), path


def test_the_report_is_one_file_with_its_pictures(small_run: Run) -> None:
    page = (small_run.folder / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "http://" not in page
    assert "https://" not in page
    assert "Simulation: not private" in page
    assert "Undefined" not in page


def test_the_slow_first_round_does_not_count_in_how_long_a_run_will_take() -> None:
    time_left = TimeLeft(rounds=12)
    assert time_left.after(3, now=100.0) == ""  # resumed: the first of this run
    assert time_left.after(4, now=102.0) == "   16 s left"
    assert time_left.after(8, now=180.0) == "   1 min 04 s left"
    assert time_left.after(12, now=190.0) == "   0 s left"


def test_latest_points_at_the_newest_run(small_run: Run) -> None:
    assert (small_run.folder.parent / "latest").is_symlink()
    assert (small_run.folder / "config.json").exists()


def test_with_uniform_weights_a_client_says_nothing_but_its_update() -> None:
    capped = {"weight-cap": 1.0, "total-weight": 1.0}
    for config, names in (({}, {"arrays"}), (capped, {"arrays", "metrics"})):
        reply = _train_once(config)
        assert set(reply.content.keys()) == names


def test_a_client_without_data_adds_nothing() -> None:
    config = {"partition": "dirichlet", "dirichlet-alpha": 0.01}
    grid = InProcessGrid(client_app.app, 300, run_config=config)
    spec = Settings.from_config(config).partition_spec(300)
    sizes = load_partitions(spec, load_dataset("mnist")).sizes
    (empty, *_) = np.flatnonzero(sizes == 0)
    sent = Message(RecordDict({"arrays": _arrays()}), int(empty) + 1, MessageType.TRAIN)
    (reply,) = grid.send_and_receive([sent])
    assert not reply.has_error()
    assert not reply.content.array_records["arrays"]["0.weight"].numpy().any()


@pytest.mark.parametrize(
    "weighting",
    [{}, {"weight-cap": 1250.0, "total-weight": 40.0}],
    ids=["uniform", "capped: the count is noised and paid for as well"],
)
def test_record_level_noise_is_accounted_across_rounds(weighting: dict[str, Any]) -> None:
    """The same node trains until its own budget is spent, then declines without a number.

    It has budget for all rounds and for one that is played again after the server died.
    """
    config = {"record-epsilon": 1.0, "rounds": 2, "sampling-rate": 1.0}
    grid = InProcessGrid(client_app.app, 40, run_config=config)
    arrays = _arrays()
    replies = [_ask(grid, arrays) for _ in range(4)]
    assert [reply.has_error() for reply in replies] == [False, False, False, True]
    assert not any(character.isdigit() for character in replies[3].error.reason)


def test_a_simulated_client_without_noise_is_charged_beside_what_it_did_with_noise() -> None:
    """Flower's state outlives a run; the next may ask for less."""
    arrays = _arrays()
    noised = {"record-epsilon": 1.0, "rounds": 2, "sampling-rate": 1.0}
    grid = InProcessGrid(client_app.app, 40, run_config=noised)
    assert not _ask(grid, arrays).has_error()
    for run, declined in (({}, False), (noised, True)):
        grid.context(1).run_config = run
        assert _ask(grid, arrays).has_error() is declined
    kept = grid.context(1).state.config_records["privacy-ledger"]
    assert ClientLedger.from_record(dict(kept)).epsilon(delta=1e-5) == np.inf


def test_both_levels_stand_side_by_side(tmp_path: Path) -> None:
    run = run_app(
        tmp_path, rounds=4, sampling_rate=0.5, record_epsilon=2.0, encrypted_test_images=0, nodes=10
    )
    privacy = run.metrics["privacy"]
    assert privacy["record_level"]["epsilon_max"] == 2.0
    assert privacy["record_level"]["unit"] != privacy["client_level"]["unit"]
    assert run.metrics["encrypted"] is None


def test_runs_on_one_ledger_add_up(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    settings: dict[str, Any] = {
        "nodes": 10,
        "sampling_rate": 1.0,
        "encrypted_test_images": 0,
        "noise_multiplier": 20.0,
        "ledger": str(ledger),
        "rounds": 2,
    }
    first, second = (run_app(tmp_path / name, **settings) for name in ("one", "two"))
    assert len(ledger.read_text().splitlines()) == 1 + 4
    covers = {r.metrics["privacy"]["client_level"]["covers"] for r in (first, second)}
    assert covers == {"all runs that share the ledger"}
    spent = [r.metrics["privacy"]["client_level"]["epsilon"] for r in (first, second)]
    assert spent[0] < spent[1]


def test_results_say_which_code_made_them(small_run: Run) -> None:
    told = small_run.metrics["software"]
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert told["version"] == tomllib.load(file)["project"]["version"]
    if (ROOT / ".git").exists():
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert told["commit"].removesuffix("+") == head.stdout.strip()
    assert len(told["source_sha256"]) == 64
    assert json.loads((small_run.folder / "config.json").read_text())["software"] == told
    page = (small_run.folder / "report.html").read_text()
    assert told["version"] in page
    assert told["source_sha256"] in page


def test_more_nodes_than_the_population_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="population = 2 is wrong; 3 nodes are connected"):
        run_app(tmp_path, nodes=3, population=2)


def test_a_spent_ledger_ends_the_run_in_the_settings_names(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    nearly = Budget(2.9999, 1e-5)
    z = calibrate_noise_multiplier(sampling=Poisson(1.0), rounds=1, budget=nearly)
    with Ledger.open(path, population="population, 3 clients") as ledger:
        ledger.append(GaussianRelease(z, Full()), run="before", round=1)
    with pytest.raises(SettingError, match=r"^epsilon = 3 is spent; .*2\.9.*Raise epsilon;"):
        run_app(tmp_path, nodes=3, rounds=2, ledger=str(path))


def test_a_population_beyond_the_nodes_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="population = 50 is larger than the 3 simulated nodes"):
        run_app(tmp_path, nodes=3, population=50)


def test_an_impossible_budget_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="epsilon = 1e-12 is wrong; no noise is enough"):
        run_app(tmp_path, nodes=10, epsilon=1e-12, delta=1e-12, rounds=3)


def test_a_relative_results_folder_is_refused() -> None:
    with pytest.raises(SettingError, match="results-dir"):
        run_app(Path("somewhere"), nodes=10)


def _arrays() -> Any:
    from flwr.app import ArrayRecord

    return ArrayRecord(build_model("hog-linear").state_dict())


def _ask(grid: InProcessGrid, arrays: Any) -> Message:
    message = Message(RecordDict({"arrays": arrays}), 1, MessageType.TRAIN)
    (reply,) = grid.send_and_receive([message])
    return reply


def _train_once(config: dict[str, Any]) -> Message:
    reply = _ask(InProcessGrid(client_app.app, 40, run_config=config), _arrays())
    assert not reply.has_error(), reply.error
    moved = reply.content.array_records["arrays"]["0.weight"].numpy()
    assert np.abs(moved).max() > 0
    return reply


@pytest.mark.parametrize("images", [0, 5])
def test_a_run_whose_model_has_outgrown_all_numbers_ends_with_results_and_says_so(
    images: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grown = {"server_learning_rate": 1e300, "sampling_rate": 1.0, "encrypted_test_images": images}
    run = run_app(tmp_path, nodes=10, rounds=1, **grown)
    assert run.metrics["accuracy"]["test"] < 0.5
    page = (run.folder / "report.html").read_text()
    assert "grown beyond what its numbers can hold" in caplog.text

    # The questions to such a model fail, and cost no result.
    assert run.metrics["encrypted"] is None
    assert run.metrics["encrypted_failure"] == ("SettingError" if images else None)
    assert ("Encrypted inference was not tested" in page) == bool(images)
    assert ("no encrypted\nquestions were asked" in page) == (not images)
    assert ("holds numbers that are not finite" in caplog.text) == bool(images)
    assert any(
        "the questions failed (SettingError" in line for line in closing_lines(run.folder)
    ) == bool(images)
