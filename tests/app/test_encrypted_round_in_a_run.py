"""The encrypted test-time round as a part of a run: whom it asks, and what is told of its cost."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from app_runs import Run, run_app

from privacy.accounting import read_ledger

SMALL: dict[str, Any] = {
    "rounds": 2,
    "sampling_rate": 1.0,
    "encrypted_images": 0,
    "encrypted_round": True,
    "encrypted_round_images": 1,
    "encrypted_round_noise": 20.0,
}
DISTRIBUTED: dict[str, Any] = {
    "secure_aggregation": "honest-but-curious",
    "noise": "distributed",
    "minimum_cohort": 5,
    "largest_cohort": 8,
    "client_dropout": 0.0,
}


def page_of(run: Run) -> str:
    page = (run.folder / "report.html").read_text()
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page[page.index("<body>") :])).split())


def test_what_the_server_noises_itself_it_saw_also_where_clients_noise_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_app(tmp_path, nodes=8, **SMALL, **DISTRIBUTED)
    paid = read_ledger(run.folder / "privacy-ledger.jsonl")
    client_level = run.metrics["privacy"]["client_level"]
    assert client_level["secure_aggregation"]["epsilon_against_server"] is None
    assert paid.epsilon_against_server(1e-5) == float("inf")
    assert client_level["epsilon"] == paid.epsilon(1e-5)
    assert "reports of encrypted test-time rounds" in client_level["trusted"]
    page = page_of(run)
    assert "Against the server ε = ∞ all the same" in page
    assert "Clients add the noise: ε =" not in page
    assert "sees the sum without it" not in page
    assert "ε against the server is infinite once the round is paid" in caplog.text
