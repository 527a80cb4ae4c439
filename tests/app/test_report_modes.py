"""Every sentence of metrics and report is true of the run that it describes, in each mode."""

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flower_app.privacy_metrics import privacy_metrics
from flower_app.report import write_report
from flower_app.results import ResultsFolder
from flower_app.resumption import SOFTWARE
from flower_app.settings import Settings
from flower_app.software import software
from privacy.accounting import GaussianRelease, LedgerText, Poisson, large_delta
from strategies import PrivacyReport, SecureAggregationReport

EVENT = GaussianRelease(3.0, Poisson(0.1))
SECURE = SecureAggregationReport(
    server="honest-but-curious",
    corrupt=0.1,
    minimum=40,
    dropout=0.2,
    noise="central",
    epsilon_against_server=float("inf"),
    client_dropout=0.02,
    presence_delta=1e-9,
    aborted_rounds=(),
)


def a_report(**changes: Any) -> PrivacyReport:
    kept = PrivacyReport(
        epsilon=0.2,
        delta=1e-5,
        noise_multiplier=3.0,
        clipping_norm=0.02,
        sampling="poisson",
        sampling_rate=0.1,
        rounds=3,
        population=1000,
        adjacency="add-or-remove-one",
        accountant="pld",
        mechanism="lattice-gaussian",
        private=True,
        stopped=None,
        epsilon_by_round={1: 0.1, 2: 0.15, 3: 0.2},
        epsilon_without_amplification=2.5,
    )
    return replace(kept, **changes)


def told(
    folder: Path, report: PrivacyReport | None = None, **config: Any
) -> tuple[dict[str, Any], str]:
    """The metrics, and the words of the page, of a run with these settings."""
    settings = Settings.from_config(config)
    paid = LedgerText.start("p")
    for number in range(1, 4):
        paid = paid.plus(EVENT, run="r", round=number)
    privacy = privacy_metrics(settings, report or a_report(), paid.contents)
    metrics = {
        SOFTWARE: software(),
        "model": settings.model,
        "dataset": settings.dataset,
        "deployed": settings.deployed,
        "accuracy": {"test": 0.9},
        "privacy": privacy,
        "encrypted": None,
        "encrypted_round": None,
    }
    write_report(ResultsFolder(folder), metrics, settings.as_config(), {})
    page = (folder / "report.html").read_text()
    body = re.sub(r"<[^>]+>", "", page[page.index("<body>") :])
    return privacy, " ".join(html.unescape(body).split())


def test_epsilon_is_told_in_every_way_that_it_is_asked(tmp_path: Path) -> None:
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
        {"weighting": "capped", "weight-cap": 9.0, "total-weight": 99.0},
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
    secure = replace(SECURE, noise="distributed", epsilon_against_server=30.0)
    report = a_report(secure_aggregation=secure, mechanism="distributed-discrete-gaussian")
    config = {"secure-aggregation": "honest-but-curious", "noise": "distributed"}
    privacy, page = told(tmp_path, report, **config)
    assert "Clients add the noise: ε = 30 against the server" in page
    assert "bring each sum's noise to its full amount" in privacy["client_level"]["trusted"]
    assert "sees the sum without it" not in page


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
