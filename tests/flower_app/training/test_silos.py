"""A run over silos: what it promises each record, whom it asks, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from flower_app import client_app, server_app
from flower_app.data import load_dataset, load_partitions
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.report.classes import commonest_class
from flower_app.report.report import write_report
from flower_app.report.results_folder import ResultsFolder, closing_lines, trained_model
from flower_app.settings import Settings
from flower_app.training.assembly import check_run
from flower_app.training.resumption import with_settings_of_run
from flower_app.training.silo_records import records
from flower_app.training.silos import number_of_records, number_of_test_records
from privacy.accounting.__main__ import main as accounting
from strategies import InProcessGrid, run_in_process
from strategies.errors import NoUsableReplyError
from tests.flower_app.app_runs import Run, run_app
from tests.flower_app.report.test_report import faults
from tests.flower_app.report.test_report_modes import words
from tests.flower_app.tasks.projects import TASK, project

SILOS = 3
SMALL: dict[str, Any] = {
    "mode": "silos",
    "silos": SILOS,
    "rounds": 2,
    "noise-multiplier": 1.0,
    "evaluate-every": 2,
    "record-sampling-rate": 0.005,
    "encrypted-test-images": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("silos")
    return run_app(folder, nodes=SILOS, **(SMALL | {"encrypted-test-images": 4}))


def test_it_promises_every_record_what_the_ledger_says_against_each_observer(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = run.folder / "privacy-ledger.jsonl"
    assert accounting(["ledger", str(ledger), "--delta", "1e-5"]) == 0
    derived = json.loads(capsys.readouterr().out)
    level = run.metrics["privacy"]["record_level"]
    assert "client_level" not in run.metrics["privacy"]
    assert derived["epsilon"]["pld"] == level["epsilon"] <= 3.0
    assert derived["epsilon_by_observer"] == level["epsilon_by_observer"]
    assert level["epsilon_by_observer"]["server"] < level["epsilon"]
    assert (level["honest"], level["population"], level["rounds"]) == (2, 45_000, 2)
    curator, ours, alone = level["noise_of_average"].values()
    assert curator == pytest.approx(1.0 / (0.005 * 45_000))
    assert ours == pytest.approx(curator * 1.5**0.5)
    assert alone == pytest.approx(curator * 3**0.5)


def test_the_silos_test_the_model_on_records_of_their_own(run: Run) -> None:
    (told,) = run.metrics["accuracy"]["silos"].values()
    assert told["persons"] == pytest.approx(5_000, abs=300)  # noise of z = 25
    assert told["accuracy"] == pytest.approx(run.metrics["accuracy"]["validation"], abs=0.1)


def test_every_silo_has_paid_for_its_records(run: Run) -> None:
    for node in range(1, SILOS + 1):
        state = run.grid.context(node).state.config_records
        assert any("ledger" in name for name in state)


def test_its_page_is_valid_and_speaks_of_records_and_silos(run: Run) -> None:
    assert not faults((run.folder / "report.html").read_text())
    page = words(run.folder)
    for sentence in (
        "Protected is one record of one silo",
        "ε against whom",
        "the server with one silo",
        "Any 2 shares make up the noise that was promised",
        "a server that is honest-but-curious, together with one silo that pools what it knows",
        "A malicious server, which plays other silos itself",
        "as in the clear",
        "After step",
    ):
        assert sentence in page
    settings = page.index("settings of this run")
    assert "client" not in page[:settings].replace("sampling client", "")
    assert {path.name for path in run.folder.glob("*.png")} == {
        "training.png",
        "encrypted.png",
        "holdings.png",
    }


def test_a_run_that_protects_persons_says_so_everywhere(run: Run, tmp_path: Path) -> None:
    task = {"unit": "person", "things": ["row", "rows"], "inputs": ["age"], "target": "visit"}
    task |= {"classes": ["no", "yes"], "test": None, "test_share": 0.2}
    config = json.loads((run.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_report(ResultsFolder(tmp_path), run.metrics | {"task": task}, config, {})
    page = words(tmp_path)
    for sentence in (
        "45,000 persons in all",
        "Person-level differential privacy",
        "No person moves a step's sum",
        "of one person's gradient",
        "The rows kept for testing: the accuracies and tables of this page count them exactly",
        "One person in two silos counts as two",
        "a person in two silos counts as two",
    ):
        assert sentence in page
    for wrong in ("Record-level", "one record", "records in all"):
        assert wrong not in page.replace(run.metrics["privacy"]["record_level"]["unit"], "")
    commonest = f"{100 * commonest_class(run.metrics['accuracy']['confusion']):.2f} %"
    assert f"{commonest} by always answering the commonest class" in page
    (tmp_path / "metrics.json").write_text(json.dumps(run.metrics | {"task": task}))
    told = closing_lines(tmp_path)
    assert any("person-level" in line for line in told)
    assert told[0].endswith(f", and {commonest} by always answering the commonest class")


def test_its_model_can_be_asked_and_its_end_is_told_like_any_other(run: Run) -> None:
    name, weights = trained_model(run.folder)
    assert name == "hog-linear"
    assert weights.is_file()
    assert run.metrics["encrypted"]["agreement"] == 1.0
    assert any("record-level" in line for line in closing_lines(run.folder))


def test_it_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    class BrokenError(Exception):
        """What ends a run in its middle."""

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        push = grid.push_messages

        def push_or_break(messages: Any) -> Any:
            progress = next(tmp_path.glob("*/progress.json"), None)
            if progress and "1" in json.loads(progress.read_text())["accuracy"]:
                raise BrokenError
            return push(messages)

        grid.push_messages = push_or_break  # type: ignore[method-assign]
        server_app.app(grid, context)

    config = SMALL | {"evaluate-every": 0, "results-dir": str(tmp_path), "partition": "iid"}
    with pytest.raises(BrokenError):
        run_in_process(app, client_app.app, num_nodes=SILOS, run_config=config)
    (folder,) = (f for f in tmp_path.iterdir() if f.name not in {"operator-logs", "latest"})
    given = with_settings_of_run({"resume": str(folder)})
    resumed = run_app(tmp_path, nodes=given["silos"], **given)
    assert resumed.folder == folder
    assert resumed.metrics["resumed"]
    assert resumed.metrics["privacy"]["record_level"]["rounds"] == 2
    assert resumed.metrics["accuracy"]["validation_by_round"].keys() == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"secure-aggregation": "malicious"}, "'malicious' is refused; it belongs to mode = 'cl"),
        ({"sampling-rate": 0.2}, "sampling-rate = 0.2 is refused.*record-sampling-rate says"),
        ({"record-epsilon": 1.0}, "epsilon is of a record already"),
        ({"population": 10}, "silos says how many there are"),
        ({"mode": "clients"}, "silos = 3 is refused; it belongs to mode = 'silos'"),
        ({"mode": "hospitals"}, "mode = 'hospitals' is unknown; choose clients or silos"),
        ({"silos": 2}, "silos = 2 is wrong; it must be at least 3: of two, each learns the other"),
    ],
)
def test_a_setting_of_the_other_mode_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        Settings.from_config({"mode": "silos", "silos": SILOS, **given})


@pytest.mark.parametrize(
    ("given", "nodes", "told"),
    [
        ({}, 4, "silos = 3 is wrong; 4 nodes are connected"),
        ({}, 2, "silos = 3 is larger than the 2 simulated nodes; run with --nodes 3"),
        ({"colluders": 2}, 3, "colluders = 2 is wrong"),
        ({"deployed": True}, 3, "records = 0 is wrong; a deployment must declare"),
        ({"noise-multiplier": 0.01}, 3, "noise-multiplier"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(
    tmp_path: Path, given: dict[str, Any], nodes: int, told: str
) -> None:
    settings = Settings.from_config(SMALL | {"results-dir": str(tmp_path)} | given)
    with pytest.raises(SettingError, match=told):
        check_run(settings, nodes=nodes)


def test_no_image_is_trained_on_and_tested_on_and_none_is_left_out() -> None:
    config = SMALL | {"silos": 10}
    settings = Settings.from_config(config)
    grid = InProcessGrid(client_app.app, 10, run_config=config)
    held = np.array(
        [
            [len(records(settings, grid.context(node), test=t)) for t in (False, True)]
            for node in range(1, 11)
        ]
    )
    numbers = [number_of_records(settings), number_of_test_records(settings)]
    assert held.sum(axis=0).tolist() == numbers == [45_000, 5_000]
    sizes = load_partitions(settings.partition_spec(10), load_dataset("mnist")).sizes
    assert np.array_equal(held.sum(axis=1), sizes)
    assert np.ptp(sizes) == 0


def test_the_public_number_of_test_records_is_declared_or_a_simulations_own(tmp_path: Path) -> None:
    def number(**given: Any) -> int | None:
        return number_of_test_records(Settings.from_config({"mode": "silos", **given}))

    assert number(deployed=True, records=20_000) is None
    assert number(deployed=True, records=20_000, **{"test-records": 4_000}) == 4_000
    task = TASK.replace("epsilon", 'mode = "silos"\nsilos = 4\npersons = 160\nepsilon')
    assert number(task=str(project(tmp_path, task=task))) == 40  # a share of 0.2


# The owners of deployed silos --------------------------------------------------------------------


def deployed(tmp_path: Path, rules: str = "", **node: Any) -> InProcessGrid:
    """A deployed silo with images and a policy."""
    images = load_dataset("mnist").train
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "own.npz", images=images.images[:50], labels=images.labels[:50])
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'dataset = "ward"\nledger = "{tmp_path}/ledger.jsonl"\nunit = "row"\n'
        f"max-epsilon = 3.0\nmax-delta = 1e-5\n{rules}"
    )
    own = {"data-dir": str(tmp_path / "data"), "policy": str(policy), **node}
    run_config = SMALL | {"deployed": True, "records": 150}
    return InProcessGrid(
        client_app.app,
        SILOS,
        run_config=run_config,
        node_config=lambda _: {name: value for name, value in own.items() if value is not None},
    )


def answer_to(grid: InProcessGrid, kind: str = MessageType.TRAIN) -> str:
    """Why the first node declines."""
    arrays = ArrayRecord(build_model("hog-linear").state_dict())
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": arrays}), 1, kind)])
    assert reply.has_error()
    return str(reply.error.reason)


def test_an_owner_chooses_the_mode_and_no_run_another(tmp_path: Path) -> None:
    grid = deployed(tmp_path)
    grid.context(1).run_config = {"deployed": True, "record-epsilon": 1.0}
    assert "takes part in runs with mode = 'silos' alone" in answer_to(grid)
    assert "takes part in runs with mode = 'silos' alone" in answer_to(
        grid, "query.encrypted_round"
    )


def test_a_node_without_a_policy_is_no_silo(tmp_path: Path) -> None:
    grid = deployed(tmp_path, policy=None)
    assert "takes part in runs with mode = 'clients' alone" in answer_to(grid)


def test_a_silo_answers_no_queries(tmp_path: Path) -> None:
    assert "takes part in steps alone" in answer_to(deployed(tmp_path), "query.encrypted_round")


def test_a_limit_that_nobody_would_enforce_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = deployed(tmp_path, **{"max-record-epsilon": 0.1})
    assert "0.1" not in answer_to(grid)
    assert (
        "max-record-epsilon = 0.1 in this node's --node-config is wrong; it must be left out"
        in (caplog.text)
    )


def test_deployed_silos_play_a_run_within_their_policies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / str(silo) for silo in range(SILOS)]
    nodes = []
    for folder in folders:
        folder.mkdir()
        grid = deployed(folder)
        nodes.append(dict(grid.context(1).node_config))
    config = SMALL | {"deployed": True, "records": 150, "evaluate-every": 0}
    arguments: dict[str, Any] = {
        "num_nodes": SILOS,
        "run_config": config | {"results-dir": str(tmp_path), "record-sampling-rate": 0.5},
        "node_config": lambda silo: nodes[silo],
    }
    generous = arguments["run_config"] | {"noise-multiplier": 8.0}
    run_in_process(server_app.app, client_app.app, **(arguments | {"run_config": generous}))
    metrics = json.loads((tmp_path / "latest" / "metrics.json").read_text())
    assert metrics["privacy"]["record_level"]["rounds"] == 2
    assert metrics["deployed"]
    for folder in folders:
        assert (folder / "ledger.jsonl").exists()
        (folder / "policy.toml").write_text(
            (folder / "policy.toml").read_text() + "max-sampling-rate = 0.01\n"
        )
    with pytest.raises(NoUsableReplyError, match="the node declines"):
        run_in_process(server_app.app, client_app.app, **(arguments | {"run_config": generous}))
    assert "the owner of the data does not allow it: max-sampling-rate" in caplog.text
