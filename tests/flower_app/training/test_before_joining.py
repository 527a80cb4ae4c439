"""Whoever cannot do a masked round's part declines before it is counted on, and never adds zero.

A deployed node knows from the invitation all that a round asks but the model: another task, a spent
budget and a ledger that cannot be kept are said then, to the server's operator, by node and reason.
"""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message

from flower_app import client_app
from flower_app.tasks import build_for, read_task
from flower_app.training.work import TASK as DIGEST
from privacy.accounting import Full, GaussianRelease
from privacy.training import ClientLedger
from strategies import Budget, DPFedAvg, InProcessGrid, PrivateResult, SecureAggregation
from strategies.errors import NoUsableReplyError
from tests.flower_app.tasks.projects import TASK, project

NODES = 8
RECORD_BUDGET = Budget(1.0, 1e-5)
ROWS = "age,sex,visit\n20,male,0\n80,female,1\n75,male,1\n31,female,0\n"


class Clients:
    """Deployed clients with a table each, and the server's copy of their task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = project(folder / "server", task=TASK, lines=[])
        self.config: list[dict[str, Any]] = []
        for place in range(NODES):
            home = folder / str(place)
            own = project(home, task=TASK, lines=[])
            (home / "data").mkdir()
            (home / "data" / "rows.csv").write_text(ROWS)
            self.config.append(
                {
                    "task": str(own),
                    "data-dir": str(home / "data"),
                    "state-dir": str(home / "state"),
                    "min-clients": 3,
                }
            )

    def run(self, *, rounds: int = 1, min_clients: int = 3) -> tuple[PrivateResult, list[str]]:
        """A run over them; its result, and every error that came back, by the stage that asked."""
        said: list[str] = []

        class Listening(InProcessGrid):
            def _work(self, message: Message) -> Message:
                reply = super()._work(message)
                if reply.has_error():
                    stage = "update" if message.content.array_records else "invitation"
                    node = message.metadata.dst_node_id
                    said.append(f"{stage} {node}: {reply.error.reason}")
                return reply

        grid = Listening(
            client_app.app,
            NODES,
            run_config={
                "deployed": True,
                "task": str(self.task),
                "secure-aggregation": "honest-but-curious",
                "record-epsilon": RECORD_BUDGET.epsilon,
                "rounds": 2,
                "sampling-rate": 1.0,
                "local-steps": 1,
            },
            node_config=lambda place: self.config[place],
        )
        strategy = DPFedAvg(
            population=NODES,
            sampling=Full(),
            clipping=1.0,
            noise_multiplier=0.0,
            budget=Budget(math.inf, 1e-5),
            ledger=self.folder / "ledger.jsonl",
            secure_aggregation=SecureAggregation(
                min_clients=min_clients, max_dropout_fraction=0.25, dropout_probability=0.0
            ),
        )
        task = read_task(self.task)
        result = strategy.start(
            grid,
            ArrayRecord(build_for(task).state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({DIGEST: task.digest}),
        )
        return result, said


def another_task(clients: Clients, place: int) -> None:
    path = Path(clients.config[place]["task"])
    path.write_text(path.read_text().replace("age = [0, 110]", "age = [0, 99]"))


def a_spent_budget(clients: Clients, place: int) -> None:
    """Of another run's, on the same records."""
    config = clients.config[place]
    path = Path(config["state-dir"]) / "record-ledger.jsonl"
    other = ClientLedger(dataset=config["data-dir"], path=path)
    other.charge(GaussianRelease(0.5, Full()))


def a_broken_ledger(clients: Clients, place: int) -> None:
    state = Path(clients.config[place]["state-dir"])
    state.mkdir(parents=True)
    (state / "record-ledger.jsonl").write_text("no ledger\n")


def test_each_node_declines_at_the_invitation_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clients = Clients(tmp_path)
    another_task(clients, 0)
    a_spent_budget(clients, 1)
    a_broken_ledger(clients, 2)
    logging.getLogger("bloomseal.operator").addHandler(caplog.handler)
    result, said = clients.run(rounds=2)
    reasons = [
        "invitation 1: this node's task differs from the run's: columns, ranges, classes, model",
        "invitation 2: the local privacy budget does not allow this training",
        "invitation 3: this node cannot keep its own ledger, and trains nothing",
    ]
    assert [words[: len(each)] for words, each in zip(sorted(said[:3]), reasons, strict=True)] == (
        reasons
    )
    assert len(said) == 6
    assert any("reply of node 1: the node declined" in line for line in caplog.messages)
    assert sum("whose they are stands in the log" in line for line in caplog.messages) == 1
    privacy = result.privacy
    assert privacy is not None
    assert privacy.secure_aggregation is not None
    assert (privacy.rounds, privacy.secure_aggregation.aborted_rounds) == (2, ())


def test_where_too_few_are_left_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    """Five of eight would do for no round to come: nobody else is asked to train."""
    clients = Clients(tmp_path)
    for place in (0, 1, 2):
        another_task(clients, place)
    result, said = clients.run(rounds=5, min_clients=6)
    assert len(said) == 3
    assert result.privacy is not None
    assert result.privacy.rounds == 1
    assert "too few clients joined (the node declines" in str(result.privacy.stopped)


def test_where_all_decline_nothing_is_paid(tmp_path: Path) -> None:
    clients = Clients(tmp_path)
    for place in range(NODES):
        another_task(clients, place)
    with pytest.raises(NoUsableReplyError, match="it was not paid for"):
        clients.run()


def test_a_model_that_is_not_the_nodes_own_is_declined_where_it_comes(tmp_path: Path) -> None:
    """It comes with the request for updates: the node drops out of the round, aloud."""
    clients = Clients(tmp_path)
    home = Path(clients.config[0]["task"]).parent
    task = TASK.replace('"logistic"', '"bedside:model"')
    module = (
        "from torch import nn\n\n"
        "def model(inputs, classes):\n    return nn.Sequential(nn.Linear(inputs, {}))\n"
    )
    for place in ("server", *map(str, range(NODES))):
        (tmp_path / place / "task.toml").write_text(task)
        (tmp_path / place / "bedside.py").write_text(module.format("classes"))
    (home / "bedside.py").write_text(module.format("classes, bias=False"))
    result, said = clients.run()
    assert len(said) == 1
    assert said[0].startswith("update 1: this node's model is not the run's")
    privacy = result.privacy
    assert privacy is not None
    assert privacy.secure_aggregation is not None
    assert privacy.secure_aggregation.aborted_rounds == ()
