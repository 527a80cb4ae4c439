"""What docs/how-to/silos.md shows runs as it stands, policy included."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from torch import nn

from privacy.accounting import read_ledger
from strategies import run_in_process

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "silos.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_pages_server_silos_and_policy_play_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server, silo, _, hashed = blocks("python")
    (policy,) = blocks("toml")
    for number in range(10):
        folder = tmp_path / f"silo-{number}"
        folder.mkdir()
        (folder / "policy.toml").write_text(policy.replace("/srv/cardiology", str(folder)))
    numbers = {"insurance_numbers": torch.arange(40) // 2, "key": bytes(32)}
    names: dict[str, Any] = numbers | {"load_my_table": lambda: table}
    for number, program in enumerate((hashed, silo, server)):
        path = tmp_path / f"program-{number}.py"
        path.write_text(program)
        names = runpy.run_path(str(path), init_globals=names)
        table = torch.randn(40, 24), torch.arange(40) % 2, names["names"]
    results = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(nn.Linear(24, 2).state_dict())
        results.append(names["strategy"].start(grid, arrays, num_rounds=2))

    run_in_process(
        app,
        names["app"],
        num_nodes=10,
        node_config=lambda place: {"policy": str(tmp_path / f"silo-{place}" / "policy.toml")},
    )
    (result,) = results
    assert result.privacy.stopped is None
    assert result.privacy.rounds == 2
    spent = read_ledger(tmp_path / "silo-3" / "ledger.jsonl")
    assert spent.population == "st-anna/cardiology/2025"
    assert spent.epsilon(1e-5) == result.privacy.epsilon <= 3.0
    assert read_ledger(tmp_path / "silos-ledger.jsonl").epsilon(1e-5) == result.privacy.epsilon
