"""The app with secure aggregation: settings, whole small runs, what a deployed node insists on."""

from pathlib import Path
from typing import Any

import pytest
from app_runs import run_app
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict

from flower_app import client_app
from flower_app.models import build_model
from flower_app.secure import simulated_identity
from flower_app.settings import SettingError, Settings
from strategies import InProcessGrid


def test_a_run_says_what_its_server_was_kept_from(tmp_path: Path) -> None:
    run = run_app(
        tmp_path,
        nodes=20,
        rounds=2,
        sampling_rate=1.0,
        encrypted_images=0,
        secure_aggregation="malicious",
        minimum_cohort=5,
        client_dropout=0.0,
    )
    client_level = run.metrics["privacy"]["client_level"]
    told = client_level["secure_aggregation"]
    assert (told["server"], told["minimum"], told["noise"]) == ("malicious", 5, "central")
    assert told["aborted_rounds"] == []
    assert "sees no single update" in client_level["trusted"]
    page = (run.folder / "report.html").read_text()
    assert "Secure aggregation: the sum of at least" in page
    assert "The server adds the noise, and sees the sum without it" in page
    assert "The server sees each client's update in the clear" not in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secure-aggregation": "on"}, ["secure-aggregation", "'on'", "malicious"]),
        ({"minimum-cohort": 2}, ["minimum-cohort", "2", "at least 3"]),
        ({"corrupt": 0.5}, ["corrupt", "0.5"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"client-dropout": -0.1}, ["client-dropout", "-0.1"]),
        ({"noise": "distributed"}, ["noise", "'distributed'", "honest-but-curious"]),
    ],
    ids=str,
)
def test_wrong_settings_are_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        Settings.from_config(change)
    assert all(word in str(error.value) for word in words)


def ask(run_config: dict[str, Any], node_config: dict[str, Any]) -> str:
    """Why a deployed node does not train when it is asked to in the clear."""
    content = RecordDict({"arrays": ArrayRecord(build_model("hog-linear").state_dict())})
    InProcessGrid(client_app.app, 1)  # a message needs a run
    message = Message(content, 1, MessageType.TRAIN)
    context = Context(1, 1, node_config, RecordDict(), {"deployed": True, **run_config})
    try:
        reply = client_app.app(message, context)
    except SettingError as error:
        return str(error)
    return reply.error.reason


def test_a_deployed_node_says_itself_what_it_insists_on(tmp_path: Path) -> None:
    """The run's own minimum is the server's word, and does not count."""
    run: dict[str, Any] = {"secure-aggregation": "honest-but-curious", "minimum-cohort": 3}
    node: dict[str, Any] = {"data-dir": str(tmp_path)}
    assert "minimum-cohort = '' is wrong" in ask(run, node)
    node["minimum-cohort"] = 50
    assert "state-dir = '' is wrong" in ask(run, node)
    node["state-dir"] = str(tmp_path / "state")
    assert ask(run, node).startswith("UnprotectedRequest")


def test_a_deployed_node_that_insists_is_not_talked_out_of_it(tmp_path: Path) -> None:
    node = {
        "data-dir": str(tmp_path),
        "secure-aggregation": "honest-but-curious",
        "minimum-cohort": 50,
        "state-dir": str(tmp_path / "state"),
    }
    assert ask({"secure-aggregation": "off"}, node).startswith("UnprotectedRequest")


def test_a_deployed_node_reads_its_identity_and_those_it_pins(tmp_path: Path) -> None:
    own, other = simulated_identity(0), simulated_identity(1)
    (tmp_path / "own.key").write_text(own.private.hex())
    (tmp_path / "all.keys").write_text(f"{own.public.hex()}\n{other.public.hex()}\n")
    node = {
        "data-dir": str(tmp_path),
        "minimum-cohort": 50,
        "state-dir": str(tmp_path / "state"),
    }
    run = {"secure-aggregation": "malicious"}
    assert "identity = '' is wrong" in ask(run, node)
    node["identity"] = str(tmp_path / "own.key")
    assert "identities = '' is wrong" in ask(run, node)
    node["identities"] = str(tmp_path / "all.keys")
    assert ask(run, node).startswith("UnprotectedRequest")
    (tmp_path / "all.keys").write_text("abcd")
    assert "must hold keys of 32 bytes" in ask(run, node)
