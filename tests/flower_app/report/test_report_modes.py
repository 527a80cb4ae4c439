"""Every sentence of metrics and report is true of the run that it describes, in each mode."""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from flower_app import server_app
from flower_app.errors import SettingError
from flower_app.report.compared import compared_run
from flower_app.report.privacy_metrics import privacy_metrics
from flower_app.report.report import write_report
from flower_app.report.results_folder import ResultsFolder
from flower_app.report.software import software
from flower_app.report.task_metrics import task_metrics
from flower_app.settings import Settings
from flower_app.training.resumption import with_settings_of_run
from privacy.accounting import (
    GaussianRelease,
    LedgerText,
    Poisson,
    epsilon,
    large_delta,
)
from strategies import Population, PrivacyReport, SecureAggregationReport
from tests.flower_app.app_runs import run_app
from tests.strategies.reports import a_report

EVENT = GaussianRelease(3.0, Poisson(0.1))
SECURE = SecureAggregationReport(
    server="honest-but-curious",
    max_corrupt_fraction=0.1,
    min_clients=40,
    max_dropout_fraction=0.2,
    noise_placement="central",
    epsilon_against_server=float("inf"),
    dropout_probability=0.02,
    presence_delta=1e-9,
    aborted_rounds=(),
)


NODES_TESTED = {
    "nodes_asked": 1000,
    "nodes_answered": 990.0,
    "accuracy": 0.9,
    "accuracy_noise": 0.01,
    "release": "noised at client level (z = 5) and counted in ε",
    "counted": True,
    "node_noise": "each node noises its own report",
    "images_per_node": 3,
    "bytes_from_node": 100,
    "bytes_to_node": 10,
    "ms_per_image": 2.0,
    "security_bits": 128,
}


def told(
    folder: Path,
    report: PrivacyReport | None = None,
    nodes_tested: dict[str, Any] | None = None,
    *,
    accuracy: Mapping[str, Any] = MappingProxyType({}),
    about: Mapping[str, str] = MappingProxyType({}),
    encrypted: Mapping[str, Any] | None = None,
    before: int = 0,
    **config: Any,
) -> tuple[dict[str, Any], str]:
    """The metrics, and the words of the page, of a run with these settings."""
    settings = Settings.from_config(config)
    paid = LedgerText.start("p")
    for number in range(1, 4):
        paid = paid.plus(
            EVENT, run="r" if number <= before or not before else "later", round=number
        )
    privacy = privacy_metrics(settings, report or a_report(), paid.contents)
    metrics = {
        "resumed": bool(settings.resume),
        "begun_with": None,
        "software": software(),
        "model": settings.model,
        "dataset": settings.dataset,
        "task": task_metrics(settings),
        "deployed": settings.deployed,
        "about": dict.fromkeys(("controller", "contact", "purpose"), "") | dict(about),
        "accuracy": {"test": 0.9, **accuracy},
        "seconds": {"total": None if settings.deployed else 75.0},
        "privacy": privacy,
        "encrypted": encrypted,
        "encrypted_failure": None,
        "encrypted_round": nodes_tested,
    }
    write_report(ResultsFolder(folder), metrics, settings.as_config(), {})
    return privacy, words(folder)


def words(folder: Path) -> str:
    """What a person reads on a run's page."""
    page = (folder / "report.html").read_text()
    body = re.sub(r"<[^>]+>", "", page[page.index("<body>") :])
    return " ".join(html.unescape(body).split())


def test_a_report_has_epsilon_without_amplification_as_mu_and_as_attack_success(
    tmp_path: Path,
) -> None:
    privacy, page = told(tmp_path)
    client_level = privacy["client_level"]
    assert client_level["epsilon"] < client_level["epsilon_without_amplification"]
    assert 0 < client_level["gaussian_dp_mu"] < 1
    assert 0.01 < client_level["attack_success"]["0.01"] < client_level["attack_success"]["0.1"] < 1
    assert "whoever does learn it, a drawn client about itself for one, it is ε = 2.5" in page
    assert "N = 1,000 registered clients is public" in page
    assert "wrongly suspects 1 %" in page


def test_tuning_is_free_for_a_recipe_and_else_not_known(tmp_path: Path) -> None:
    privacy, page = told(tmp_path)
    assert privacy["tuning"]["epsilon"] == 0.0
    assert "Tuning: ε = 0" in page
    for changed in (
        {"clipping-norm": 0.5},
        {"rounds": 12},
        {"local-steps": 3},
        {"sampling-rate": 0.4},
        {"weight-cap": 9.0, "total-weight": 99.0},
    ):
        privacy, page = told(tmp_path, **changed)
        assert privacy["tuning"]["epsilon"] is None, changed
        assert all(name in privacy["tuning"]["reason"] for name in changed)
        assert "Tuning: not known" in page
        assert "Tuning: ε = 0" not in page
    # A budget is no hyper-parameter, and a recipe written out is the recipe.
    privacy, _ = told(tmp_path, epsilon=1.0, delta=1e-6, **{"clipping-norm": 0.02})
    assert privacy["tuning"]["epsilon"] == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"private": False, "epsilon": float("inf"), "noise_multiplier": 0.0},
        {"private": False, "epsilon": float("inf"), "noise_multiplier": 3.0},
    ],
    ids=["no noise", "seeded"],
)
def test_what_is_not_private_promises_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = a_report(**changes, epsilon_without_amplification=float("inf"))
    privacy, page = told(tmp_path, report)
    assert privacy["client_level"]["gaussian_dp_mu"] is None
    assert privacy["client_level"]["attack_success"] == {"0.01": 1.0, "0.1": 1.0}
    assert "This run is not private" in page
    assert "private federated run" not in page
    assert "Client-level differential privacy: not in this run" in page
    assert "ε follows from the ledger alone" not in page
    assert "wrongly suspects" not in page


def test_a_ledger_elsewhere_is_not_in_this_folder(tmp_path: Path) -> None:
    _, own = told(tmp_path)
    assert "this folder: the model, the ledger, this page" in own
    assert "ledger privacy-ledger.jsonl --delta" in own
    privacy, shared = told(tmp_path, ledger="/srv/all-runs.jsonl")
    assert privacy["client_level"]["covers"] == "all runs that share the ledger"
    assert "this folder: the model, this page" in shared
    assert "ledger /srv/all-runs.jsonl --delta" in shared


def test_a_deployment_is_no_simulation(tmp_path: Path) -> None:
    _, simulated = told(tmp_path)
    assert "in this simulation" in simulated
    assert "picture of who holds what" in simulated
    assert "seconds of the whole simulation" in simulated
    _, deployed = told(tmp_path, deployed=True, population=1000)
    assert "simulation" not in deployed.split("All ")[0]
    assert "picture of who holds what" not in deployed


def test_record_level_says_whose_limit_it_is(tmp_path: Path) -> None:
    privacy, page = told(tmp_path, **{"record-epsilon": 2.0})
    assert "every client keeps in its own ledger" in privacy["record_level"]["note"]
    assert "ε ≤ 2 at δ = 1e-05" in page
    privacy, page = told(tmp_path, deployed=True, population=1000, **{"record-epsilon": 2.0})
    assert "the node's owner's" in privacy["record_level"]["note"]
    assert "every client keeps" not in page
    privacy, page = told(tmp_path)
    assert "Record-level differential privacy: not in this run" in page


@pytest.mark.parametrize("server", ["honest-but-curious", "malicious"])
def test_with_secure_aggregation_the_server_sees_sums(tmp_path: Path, server: str) -> None:
    report = a_report(secure_aggregation=replace(SECURE, server=server))
    config = {"secure-aggregation": server, "deployed": True, "population": 1000}
    _, page = told(tmp_path, report, **config)
    assert f"a server that is {server}" in page
    assert "update in the clear" not in page
    assert "sees the sum without it" in page
    assert "nothing towards others" not in page
    assert "bound its own update" in page
    # The costs of other settings leave out what each round is charged besides.
    assert "What other settings would have cost" not in page


def test_with_distributed_noise_nobody_sees_the_sum_without_it(tmp_path: Path) -> None:
    secure = replace(SECURE, noise_placement="distributed", epsilon_against_server=30.0)
    report = a_report(secure_aggregation=secure, mechanism="distributed-discrete-gaussian")
    config = {"secure-aggregation": "honest-but-curious", "noise-placement": "distributed"}
    privacy, page = told(tmp_path, report, **config)
    assert "Clients add the noise: ε = 30 against the server" in page
    assert "bring each sum's noise to its full amount" in privacy["client_level"]["trusted"]
    assert "sees the sum without it" not in page


def test_a_noised_encrypted_round_is_named_in_each_part_of_the_report(tmp_path: Path) -> None:
    _, page = told(tmp_path, nodes_tested=NODES_TESTED, **{"encrypted-test-images": 0})
    assert "came after it and is in the total" in page
    assert "sees all models and the accuracy that nodes measured, knows" in page
    assert "or at the end, and the accuracy that nodes measured" in page
    assert "the nodes asked about their own, see below" in page
    assert "no encrypted questions were asked" not in page
    assert "each node's report, with the node's own noise" in page
    assert "± " not in page
    assert "The nodes' reports of the encrypted test-time round:" not in page

    # Too few may answer to tell an accuracy: it was paid for all the same.
    few = NODES_TESTED | {"accuracy": None, "accuracy_noise": None}
    _, page = told(tmp_path, nodes_tested=few)
    assert "too few answered to tell" in page
    assert "came after it and is in the total" in page
    assert "The nodes' reports of the encrypted test-time round:" not in page

    lost = {"skipped": "it was paid for, and is lost", "counted": True}
    _, page = told(tmp_path, nodes_tested=lost)
    assert "Held, and lost: it was paid for" in page
    assert "came after it and is in the total" in page

    skipped = {"skipped": "the budget is spent", "counted": False}
    _, page = told(tmp_path, nodes_tested=skipped, **{"encrypted-test-images": 0})
    assert "Not held: the budget is spent" in page
    assert "came after it" not in page
    assert "each node's report" not in page
    assert "no encrypted questions were asked (encrypted-test-images = 0)" in page


def test_a_public_encrypted_round_is_not_counted(tmp_path: Path) -> None:
    public = NODES_TESTED | {"counted": False, "accuracy_noise": 0.0, "release": "all agreed"}
    _, page = told(tmp_path, nodes_tested=public)
    assert "came after it" not in page
    assert "The nodes' reports of the encrypted test-time round: all agreed" in page
    assert "each node's report, with the node's own noise" in page


def test_epsilon_against_the_server_is_of_training_where_reports_are_public(
    tmp_path: Path,
) -> None:
    secure = replace(SECURE, noise_placement="distributed", epsilon_against_server=30.0)
    report = a_report(secure_aggregation=secure, mechanism="distributed-discrete-gaussian")
    config = {"secure-aggregation": "honest-but-curious", "noise-placement": "distributed"}
    public = NODES_TESTED | {"counted": False, "release": "all agreed"}
    _, page = told(tmp_path, report, public, **config)
    assert "ε = 30 against the server, for what a client holds, its report" in page


def test_a_resumed_run_says_what_holds_of_it_since(tmp_path: Path) -> None:
    _, whole = told(tmp_path)
    assert "resumed" not in whole.split("All ")[0]
    (tmp_path / "run").mkdir()
    _, page = told(tmp_path, resume=str(tmp_path / "run"))
    assert "resumed after it had broken off" in page
    assert "seconds of the whole simulation, since it was resumed, are in" in page
    # A round that is played again is paid again: this is no part of what it says of the training.
    assert "by itself and every round played once" in page


def test_a_run_that_was_resumed_under_other_free_settings_says_which_it_ended_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"rounds": 2, "sampling_rate": 0.5, "encrypted_test_images": 3}
    with monkeypatch.context() as patched:

        def broken(*args: Any, **kw: Any) -> None:
            raise InterruptedError

        patched.setattr(server_app, "finish", broken)
        with pytest.raises(InterruptedError):
            run_app(tmp_path, nodes=20, **small)
    folder = (tmp_path / "latest").resolve()
    kept = json.loads((folder / "config.json").read_text())
    another = {**kept["software"], "version": "0.0.1", "source_sha256": "ab" * 32}
    (folder / "config.json").write_text(json.dumps({**kept, "software": another}))

    given = with_settings_of_run({"resume": str(folder), "encrypted-test-images": 0})
    run = run_app(tmp_path, nodes=20, **given)
    assert run.folder == folder
    config = json.loads((folder / "config.json").read_text())
    assert config["encrypted-test-images"] == 0
    assert config["population"] == 20
    assert config["software"] == another
    assert run.metrics["resumed"] is True
    assert run.metrics["begun_with"] == another
    assert run.metrics["software"] == software()
    page = words(folder)
    assert "the code that it was begun with: bloomseal 0.0.1" in page
    assert "population20 " in page
    assert "encrypted-test-images0 " in page
    assert "no encrypted questions were asked (encrypted-test-images = 0)" in page


def test_a_population_file_is_a_deployments_list_of_clients(tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    Population(tuple(f"node {number}" for number in range(50))).save(clients)
    config = {"deployed": True, "population-file": str(clients)}
    privacy, page = told(tmp_path, a_report(population=50, delta=0.05), **config)
    assert "50 clients" in page
    assert "N = 50 registered clients is public" in page
    assert "one over the population of 50" in page
    assert "simulation" not in page.split("All ")[0]
    assert "node 7" not in page
    assert privacy["client_level"]["population"] == 50
    assert f"population-file{clients}" in page


def test_a_delta_of_one_over_the_population_is_warned_of(tmp_path: Path) -> None:
    _, page = told(tmp_path, a_report(delta=1e-3))
    assert "δ is too large" in page
    _, page = told(tmp_path)
    assert "δ is too large" not in page
    assert large_delta(1e-3, 1000) is not None
    assert large_delta(0.99e-3, 1000) is None


def test_no_file_of_a_folder_tells_when_rounds_were(tmp_path: Path) -> None:
    for name in ("config.json", "privacy-ledger.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "latest").symlink_to("config.json")
    ResultsFolder(tmp_path).finish({"accuracy": 0.9})
    assert (tmp_path / "metrics.json").is_file()
    stamps = {path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(stamps) == 1


def test_the_page_says_who_why_how_long_and_what_was_spent_before(tmp_path: Path) -> None:
    _, page = told(tmp_path, about={"controller": "A hospital", "purpose": "To <b>test</b>"})
    assert "Responsible A hospital" in page.replace("Responsible", "Responsible ")
    assert "To <b>test</b>" in page  # escaped
    assert "1 min 15 s" in page
    assert "none in this ledger" in page
    _, page = told(tmp_path, deployed=True, population=1000)
    assert "it would show how long clients took" in page
    privacy, page = told(tmp_path, a_report(run="later"), before=2)
    spent = epsilon({EVENT: 2}, delta=1e-5)
    assert privacy["client_level"]["earlier"] == {"runs": 1, "epsilon": spent}
    assert "1 run before this one paid from the same ledger: ε = " in page


def test_another_runs_accuracy_is_what_privacy_cost(tmp_path: Path) -> None:
    other = {"folder": "x", "accuracy": 0.95, "epsilon": 1000.0}
    _, page = told(tmp_path, accuracy={"compared": other})
    assert "with ε = 1e+03 reached 95.00 %: privacy cost 5.00 percentage points" in page
    _, page = told(tmp_path, accuracy={"compared": {**other, "accuracy": 0.9, "epsilon": None}})
    assert "with no limit on ε reached 90.00 %: privacy cost no accuracy here" in page
    _, page = told(tmp_path)
    assert "what privacy cost of the accuracy is not known here" in page


def test_only_a_finished_run_of_the_same_data_and_model_is_compared_with(tmp_path: Path) -> None:
    settings = Settings.from_config({"compare-with": str(tmp_path)})
    with pytest.raises(SettingError, match="not the folder of a finished run"):
        compared_run(settings)
    level = {"client_level": {"epsilon": 9.0}}
    metrics = {"accuracy": {"test": 0.9}, "privacy": level, "dataset": "mnist", "model": "cnn"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SettingError, match="that run's model is 'cnn', and this one's 'hog-linear"):
        compared_run(settings)
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "model": "hog-linear"}))
    found = compared_run(settings)
    assert found == {"folder": tmp_path.name, "accuracy": 0.9, "epsilon": 9.0}
    assert compared_run(Settings()) is None


@pytest.mark.parametrize(
    ("wrong", "same", "words_of_it"),
    [
        (0, 0, "No answer is wrong."),
        (3, 3, "they are the model's errors, none is encryption's"),
        (3, 1, "2 are wrong because of encryption"),
    ],
)
def test_wrong_encrypted_answers_are_told_as_whose_they_are(
    tmp_path: Path, wrong: int, same: int, words_of_it: str
) -> None:
    encrypted = {
        **dict.fromkeys(("agreement", "accuracy", "max_logit_error", "ms_per_image"), 0.5),
        **dict.fromkeys(("query_bytes", "answer_bytes", "public_key_bytes"), 10),
        **{"images": 20, "wrong": wrong, "wrong_as_in_the_clear": same},
        **{"security_bits": 128, "release": "x", "backend": "ckks"},
    }
    assert words_of_it in told(tmp_path, encrypted=encrypted)[1]
