"""A task as ``deploy-demo`` divides it among a server and silos."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower_app import client_app, server_app
from flower_app.__main__ import main
from flower_app.commands import deploy_demo
from flower_app.commands.demo_task import divide_task
from flower_app.errors import SettingError
from flower_app.settings import Settings
from flower_app.tasks import node_examples, read_task, server_test_data
from flower_app.training.assembly import check_run
from strategies import run_in_process
from strategies.errors import NoUsableReplyError
from tests.flower_app.tasks.projects import TASK, project

SILOS = TASK.replace("[privacy]", '[privacy]\nmode = "silos"\nsilos = 4\npersons = 60')
SILOS = SILOS.replace("test-share", 'person-column = "person"\ntest-share')


def lines() -> list[str]:
    """Twenty persons of each of four silos, of three rows each."""
    return [
        f"s{silo}/east,p{silo}-{person},{20 + person + row},{'fe' * (row % 2)}male,{person % 2}"
        for silo in range(4)
        for person in range(20)
        for row in range(3)
    ]


def persons(path: Path) -> set[str]:
    with path.open() as file:
        return {row["person"] for row in csv.DictReader(file)}


def test_no_person_is_at_two_parties_and_all_mean_the_same_task(tmp_path: Path) -> None:
    own = read_task(project(tmp_path / "project", task=SILOS, lines=lines()))
    divided = divide_task(own, tmp_path / "made")
    server = read_task(divided.server)
    assert server.test is not None
    tables = [server.test, *(data / "rows.csv" for data, _ in divided.nodes.values())]
    parties = [persons(table) for table in tables]
    assert [len(each) for each in parties] == [16, 16, 16, 16, 16]
    assert len(set().union(*parties)) == 80
    assert len(server_test_data(server).test) + len(server_test_data(server).validation) == 48
    assert divided.names == ("s0/east", "s1/east", "s2/east", "s3/east")
    for data, file in divided.nodes.values():
        node = read_task(file)
        assert node.digest == server.digest == own.digest
        halves = [node_examples(node, data, apart=True, test=test) for test in (False, True)]
        assert sum(map(len, halves)) == 48


def test_numbers_with_decimal_commas_are_divided_as_they_are(tmp_path: Path) -> None:
    task = project(tmp_path / "project", task=SILOS, lines=lines())
    table = task.parent / "visits.csv"
    whole = node_examples(read_task(task), table)
    table.write_text(
        re.sub(r",(\d+),", r",\1#0,", table.read_text()).replace(",", ";").replace("#", ",")
    )
    divided = divide_task(read_task(task), tmp_path / "made")
    ages = [
        node_examples(read_task(file), data).inputs[:, 0] for data, file in divided.nodes.values()
    ]
    assert set(np.concatenate(ages)) <= set(whole.inputs[:, 0])
    assert len(set(np.concatenate(ages))) > 10


def test_test_data_that_the_task_names_are_the_servers(tmp_path: Path) -> None:
    named = SILOS.replace("test-share = 0.2", 'test = "public.csv"')
    task = project(tmp_path / "project", task=named, lines=lines())
    (task.parent / "public.csv").write_text("person,age,sex,visit\np,30,male,1\nq,40,male,0\n")
    divided = divide_task(read_task(task), tmp_path / "made")
    assert read_task(divided.server).test == task.parent / "public.csv"
    assert all(len(persons(data / "rows.csv")) == 20 for data, _ in divided.nodes.values())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("silos = 4", "silos = 5", "says silos = 5, and there are data of 4"),
        ("silos = 4", "silos = 9", "deploy-demo starts at most 8"),
        ('mode = "silos"\nsilos = 4\npersons = 60', "", "is over clients, of which a few"),
    ],
)
def test_what_cannot_be_deployed_here_is_refused_before_anything_starts(
    old: str, new: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = project(tmp_path / "project", task=SILOS.replace(old, new), lines=lines())
    assert main(["deploy-demo", f"task={task}"]) == 1
    assert words in capsys.readouterr().err


def test_every_deployed_silo_trains_the_same_task_and_one_with_another_declines_in_words(
    tmp_path: Path,
) -> None:
    own = read_task(project(tmp_path / "project", task=SILOS, lines=lines()))
    divided = divide_task(own, tmp_path / "made")
    nodes = []
    for name, (data, task) in divided.nodes.items():
        policy = data.parent / "policy.toml"
        policy.write_text(
            f'dataset = "{name}"\nledger = "{data.parent}/ledger.jsonl"\nunit = "person"\n'
            "max-epsilon = 3.0\nmax-delta = 1e-3\n"
        )
        nodes.append({"data-dir": str(data), "task": str(task), "policy": str(policy)})
    arguments: dict[str, Any] = {
        "num_nodes": 4,
        "node_config": lambda silo: nodes[silo],
        "run_config": {
            "task": str(divided.server),
            "deployed": True,
            "rounds": 2,
            "evaluate-every": 0,
            "encrypted-test-images": 0,
            "results-dir": str(tmp_path / "results"),
        },
    }
    run_in_process(server_app.app, client_app.app, **arguments)
    metrics = json.loads((tmp_path / "results" / "latest" / "metrics.json").read_text())
    assert metrics["privacy"]["record_level"]["rounds"] == 2
    assert metrics["privacy"]["record_level"]["epsilon"] <= 2.0
    for _, task in divided.nodes.values():
        task.write_text(task.read_text().replace("age = [0, 110]", "age = [0, 99]"))
    with pytest.raises(NoUsableReplyError, match="it was not paid for"):
        run_in_process(server_app.app, client_app.app, **arguments)
    *_, log = sorted((tmp_path / "results" / "operator-logs").iterdir())
    assert "this node's task differs from the run's: columns, ranges" in log.read_text()


def test_the_demonstration_with_secure_sums_can_begin_and_its_owners_take_part(
    tmp_path: Path,
) -> None:
    """With a node fewer, one node's presence would decide whether a round opens: δ has no room."""
    usual = deploy_demo._CLIENTS | deploy_demo._SECURE | {"results-dir": str(tmp_path)}
    usual |= {"deployed": True, "secure-aggregation": "honest-but-curious"}
    settings, nodes = Settings.from_config(usual), deploy_demo.NODES_OF_SECURE_SUMS
    assert check_run(settings, nodes=nodes).size == nodes
    assert "min-clients=3" in deploy_demo._owners_word(settings)
    with pytest.raises(SettingError, match="one client's presence can decide"):
        check_run(replace(settings, population=nodes - 1), nodes=nodes - 1)
