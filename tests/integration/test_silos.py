"""Silos on a real SuperLink: one declines, one is killed in mid-step and comes back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flower_app.processes.deployment import CONNECTION, Deployment, Node
from privacy.accounting import LedgerContents, Repeated, read_ledger
from tests.integration.app_commands import PATIENCE, ROOT, wait_until
from tests.integration.deployed_runs import apps_of, forking, start_superlink

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

NAMES = ["steady", "usual", "mortal", "strict"]

PROJECT = """
[project]
name = "silos"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "story.server_app:app"
clientapp = "story.client_app:app"

[tool.flwr.app.config]
folder = ""
"""

SERVER = f"""
import json, logging, math
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp

from privacy.secure_aggregation import FewSilos
from strategies import Budget, DistributedDPSGD

app = ServerApp()

@app.main()
def main(grid, context):
    folder = Path(context.run_config["folder"])
    logging.getLogger("bloomseal.operator").addHandler(logging.FileHandler(folder / "operator.log"))
    strategy = DistributedDPSGD(
        silos=FewSilos(4, absent=1),
        persons=80,
        sampling_rate=0.5,
        clipping_norm=1.0,
        budget=Budget(math.inf, 1e-5),
        noise_multiplier=1.0,
        ledger=folder / "ledger.jsonl",
        stage_timeout={PATIENCE},
    )
    zeros = {{"weight": np.zeros((3, 8), np.float32), "bias": np.zeros(3, np.float32)}}
    arrays = ArrayRecord({{name: Array(array) for name, array in zeros.items()}})
    result = strategy.start(grid, arrays, num_rounds=2, timeout={PATIENCE})
    (folder / "ended.json").write_text(json.dumps(result.privacy.as_dict()))
"""

CLIENT = """
from pathlib import Path

from flwr.clientapp import ClientApp

from strategies import SiloTask, answer_silo

app = ClientApp()

def describe_task(data):
    import time
    import numpy as np
    import torch

    from privacy.training import Persons

    def persons():
        # A silo with a gate has paid for its sum, and stands before it.
        while (data / "gate").exists() and (data / "ledger.jsonl").exists():
            (data / "at-the-gate").touch()
            time.sleep(0.1)
        x = torch.randn(40, 8)
        return Persons((x, x[:, :3].argmax(dim=1)), np.arange(40) // 2)

    loss = torch.nn.functional.cross_entropy
    return SiloTask(model=torch.nn.Linear(8, 3), loss=loss, persons=persons)

@app.train()
def take_part(message, context):
    data = Path(context.node_config["data-dir"])
    task = lambda: describe_task(data)
    return answer_silo(message, context, task=task, policy=data / "policy.toml")
"""


@dataclass(frozen=True)
class Story:
    """A run of two steps.

    Attributes
    ----------
    folder : Path
        What the server wrote.
    data : Path
        The silos' own folders, by name.
    node_ids : dict of str to int
    paid_then : bytes
        The mortal silo's ledger when it was killed.
    """

    folder: Path
    data: Path
    node_ids: dict[str, int]
    paid_then: bytes

    @property
    def privacy(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "ended.json").read_text())
        return report

    def lines(self, *words: str) -> list[str]:
        """The operator's log, those lines that hold all of these words."""
        log = (self.folder / "operator.log").read_text().splitlines()
        return [line for line in log if all(word in line for word in words)]

    def ledger(self, name: str) -> LedgerContents:
        return read_ledger(self.data / name / "ledger.jsonl")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The mortal silo is killed in step 1; the steady one's gate holds that until it is back."""
    base = tmp_path_factory.mktemp("silos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with Deployment(base / "deployment") as deployment:
            yield played(deployment, base)


def played(deployment: Deployment, base: Path) -> Story:
    app = base / "app"
    (app / "story").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in (("__init__", ""), ("server_app", SERVER), ("client_app", CLIENT)):
        (app / "story" / f"{name}.py").write_text(text)
    folder = base / "server"
    folder.mkdir()
    config = base / "run.toml"
    config.write_text(f'folder = "{folder}"\n')

    start_superlink(deployment)
    gated = {name: base / "data" / name for name in ("steady", "mortal")}
    nodes, running, forked = {}, {}, forking(base / "forking")
    for name in NAMES:  # one starts while the next is registered: each takes a processor seconds
        nodes[name] = new_silo(deployment, name, base / "data" / name)
        if name in gated:
            (gated[name] / "gate").touch()
        running[name] = deployment.start_node(nodes[name], variables=forked)
    deployment.wait_until_online(*NAMES)
    deployment.ask("run", str(app), CONNECTION, "--run-config", str(config))

    wait_until(lambda: all((data / "at-the-gate").exists() for data in gated.values()))
    (client_app,) = apps_of(deployment, "mortal")
    client_app.kill()
    running["mortal"].terminate()
    running["mortal"].wait()
    (gated["mortal"] / "gate").unlink()
    paid_then = (gated["mortal"] / "ledger.jsonl").read_bytes()
    deployment.start_node(nodes["mortal"], variables=forked)
    deployment.wait_until_online("mortal")
    (gated["steady"] / "gate").unlink()
    wait_until((folder / "ended.json").exists)
    return Story(folder, base / "data", dict(deployment.node_ids), paid_then)


def new_silo(deployment: Deployment, name: str, data: Path) -> Node:
    """A registered SuperNode with a policy; the strict one's allows less than the run asks for."""
    data.mkdir(parents=True)
    norm = 0.5 if name == "strict" else 1.0
    (data / "policy.toml").write_text(
        f'dataset = "{name}"\nledger = "{data}/ledger.jsonl"\nmax-epsilon = 100.0\n'
        f"max-delta = 1e-5\nmax-clipping-norm = {norm}\n"
    )
    node = deployment.new_node(name, data)
    deployment.register(node)
    return node


def test_a_silo_declines_by_its_owners_rule_and_the_others_go_on(story: Story) -> None:
    strict = story.node_ids["strict"]
    (declined,) = story.lines("step 2", f"node {strict}")
    assert "the owner of the data does not allow it: max-clipping-norm" in declined
    assert not (story.data / "strict" / "ledger.jsonl").exists()
    assert story.lines("step 2: opened the sum of 3 clients")


def test_a_silo_killed_in_mid_step_leaves_too_few_and_nothing_is_opened(story: Story) -> None:
    assert story.privacy["secure_aggregation"]["aborted_rounds"] == [1]
    assert story.lines("step 1: aborted, nothing is opened")
    assert not story.lines("step 1: opened")


def test_a_restarted_silo_goes_on_with_its_ledger_and_what_it_paid_ahead(story: Story) -> None:
    assert story.lines("step 2: opened the sum of 3 clients")
    ledger = story.data / "mortal" / "ledger.jsonl"
    assert ledger.read_bytes() == story.paid_then, "both steps were paid, in the first"
    (paid,) = story.ledger("mortal").events
    assert isinstance(paid, Repeated)
    assert paid.times == 2


def test_all_ledgers_hold_what_was_opened(story: Story) -> None:
    server = read_ledger(story.folder / "ledger.jsonl")
    assert [record.round for record in server.records] == [1, 2], "sums were asked for in both"
    assert story.privacy["epsilon"] == server.epsilon(1e-5)
    for name in ("steady", "usual", "mortal"):
        assert story.ledger(name).epsilon(1e-5) >= server.epsilon(1e-5)
