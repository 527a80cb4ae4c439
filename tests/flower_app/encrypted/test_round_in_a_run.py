"""The encrypted test-time round as a part of a run: whom it asks, and what is told of its cost."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_app import server_app
from privacy.accounting import Full, GaussianRelease, read_ledger
from strategies import ENCRYPTED_ROUND, InProcessGrid, Population
from strategies.in_process import SUPERLINK_NODE_ID
from tests.flower_app.app_runs import Run, run_app

SMALL: dict[str, Any] = {
    "rounds": 1,
    "sampling_rate": 1.0,
    "encrypted_test_images": 0,
    "encrypted_round_images": 1,
    "encrypted_round_noise_multiplier": 20.0,
}
DISTRIBUTED: dict[str, Any] = {
    "secure_aggregation": "honest-but-curious",
    "noise_placement": "distributed",
    "min_clients": 5,
    "max_clients": 8,
    "dropout_probability": 0.0,
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


def asking(asked: dict[str, set[int]]) -> ClientApp:
    """Nodes that note who was asked what, learn nothing, and ask nothing."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        asked.setdefault("train", set()).add(context.node_id)
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    @app.query(ENCRYPTED_ROUND)
    def query(message: Message, context: Context) -> Message:
        asked.setdefault("test", set()).add(context.node_id)
        raise ValueError

    return app


@pytest.mark.parametrize("absent", [set(), {1}], ids=["all there", "one away"])
def test_it_asks_whom_training_asked_of_a_listed_population(
    tmp_path: Path, absent: set[int]
) -> None:
    """Nodes 1 to 3 are listed, node 4 is not: whether the round is held hangs on none of them."""
    listed = Population(tuple(f"node:{number}" for number in (1, 2, 3)), name="hospitals")
    listed.save(tmp_path / "clients.json")
    asked: dict[str, set[int]] = {}
    grid = InProcessGrid(asking(asked), 4)
    grid.offline = absent
    config = {name.replace("_", "-"): value for name, value in SMALL.items()} | {
        "deployed": True,
        "population-file": str(tmp_path / "clients.json"),
        "ledger": str(tmp_path / "ledger.jsonl"),
        "results-dir": str(tmp_path / "results"),
        "delta": 1e-3,
    }
    server_app.app(grid, Context(grid.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), config))
    assert asked == {"train": {1, 2, 3} - absent, "test": {1, 2, 3} - absent}
    paid = read_ledger(tmp_path / "ledger.jsonl")
    assert paid.population == "hospitals, 3 clients"
    assert paid.records[-1].event == GaussianRelease(20.0, Full())
    metrics = json.loads((tmp_path / "results" / "latest" / "metrics.json").read_text())
    assert metrics["encrypted_round"]["nodes_asked"] == 3
