"""The encrypted test-time round in whole runs of the app, and what a deployed node decides."""

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import save_file

from flower_app import client_app, server_app
from flower_app.encrypted.evaluator import start_evaluator
from flower_app.encrypted.model import compile_named, compiled_file
from flower_app.encrypted.node import simulated_secrets
from flower_app.encrypted.round import hold_encrypted_round
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.report.results_folder import ResultsFolder
from flower_app.settings import Settings
from flower_app.training.assembly import round_cost
from flower_app.training.resumption import with_settings_of_run
from privacy.accounting import Full, GaussianRelease, read_ledger
from privacy.inference import MeasurementOwner
from privacy.inference.errors import EvaluatorFailedError
from strategies import InProcessGrid
from tests.flower_app.app_runs import Run, run_app

RECORD, TYPE = "encrypted-round", "query.encrypted_round"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_app(
        tmp_path_factory.mktemp("results"),
        nodes=20,
        rounds=2,
        sampling_rate=0.5,
        encrypted_test_images=0,
        encrypted_round_images=3,
        epsilon=20.0,
        encrypted_round_noise_multiplier=0.5,
    )


def save_random_model(file: Path) -> None:
    torch.manual_seed(0)
    zeros = build_model("hog-linear").state_dict()
    save_file({name: torch.randn(w.shape) for name, w in zeros.items()}, file)


def test_metrics_and_report_tell_of_the_round(run: Run) -> None:
    metrics = run.metrics["encrypted_round"]
    assert metrics["nodes_asked"] == 20
    # Eight standard deviations of the noise on the count, z·√2: false alarm below 1e-14.
    assert metrics["nodes_answered"] == pytest.approx(20, abs=8 * 0.5 * 2**0.5)
    assert metrics["accuracy_noise"] > 0
    assert metrics["images_per_node"] == 3
    assert metrics["ms_per_image"] > 0
    plan = compile_named("hog-linear", run.folder / "model.safetensors").plan
    assert metrics["bytes_from_node"] == plan.public_bytes + 3 * plan.query_bytes
    assert metrics["bytes_to_node"] == 3 * plan.answer_bytes
    assert metrics["security_bits"] == 128
    page = (run.folder / "report.html").read_text()
    assert "Encrypted test-time round over the nodes" in page
    assert "counted in ε" in page
    assert metrics["counted"] is True
    assert "came after it and is in the" in page
    assert "no encrypted\nquestions were asked" not in page


def test_the_round_is_paid_from_the_runs_own_budget(run: Run) -> None:
    ledger = read_ledger(run.folder / "privacy-ledger.jsonl")
    assert ledger.records[-1].event == GaussianRelease(0.5, Full())
    assert len(ledger.records) == 3
    client_level = run.metrics["privacy"]["client_level"]
    assert client_level["epsilon"] == ledger.epsilon(1e-5)
    assert 19.9 < client_level["epsilon"] <= 20.0
    assert ledger.epsilon(1e-5) > client_level["epsilon_by_round"]["2"]


def test_who_answered_is_for_the_operator_only(run: Run) -> None:
    log = run.folder.parent / "operator-logs" / f"{run.folder.name}.log"
    assert "20 reports" in log.read_text()
    assert "20 reports" not in (run.folder / "report.html").read_text()


def test_no_secret_of_a_simulated_node_outlives_the_round(run: Run) -> None:
    assert not simulated_secrets(run.grid.run_id).exists()
    assert str(simulated_secrets(run.grid.run_id)).startswith(tempfile.gettempdir())


def test_a_round_declared_public_is_not_charged(tmp_path: Path) -> None:
    config = {"encrypted-round-release": "public"}
    settings = Settings.from_config(config | {"encrypted-round-images": 2})
    grid = InProcessGrid(client_app.app, 5, run_config=config)
    save_random_model(tmp_path / "model.safetensors")
    metrics = hold_encrypted_round(
        grid,
        settings,
        ResultsFolder(tmp_path),
        population=5,
        ledger=tmp_path / "ledger",
        run_id=grid.run_id,
    )
    assert (metrics["nodes_asked"], metrics["nodes_answered"]) == (5, 5)
    assert metrics["accuracy_noise"] == 0
    assert "ε does not cover it" in metrics["release"]
    assert round_cost(settings) == []
    assert not (tmp_path / "ledger").exists()
    assert round_cost(Settings.from_config({"encrypted-round-images": 100}))
    assert round_cost(Settings.from_config({})) == []


def test_a_round_that_was_paid_is_not_lost_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept as soon as it is released; where it could not be kept, the result says what is lost."""

    def broken(*args: Any, **kw: Any) -> None:
        raise InterruptedError

    small = {
        "rounds": 1,
        "sampling_rate": 1.0,
        "encrypted_test_images": 0,
        "encrypted_round_images": 1,
    }
    with monkeypatch.context() as patched:
        patched.setattr(server_app, "finish", broken)
        with pytest.raises(InterruptedError):
            run_app(tmp_path / "whole", nodes=4, **small)
    folder = (tmp_path / "whole" / "latest").resolve()
    ledger = (folder / "privacy-ledger.jsonl").read_text()
    released = json.loads((folder / "encrypted-round.json").read_text())["released"]
    copy = tmp_path / "lost" / folder.name
    shutil.copytree(folder, copy)
    (copy / "encrypted-round.json").unlink()

    for which, results in ((folder, tmp_path / "whole"), (copy, tmp_path / "lost")):
        settings = with_settings_of_run({"resume": str(which), "results-dir": str(results)})
        metrics = run_app(results, nodes=4, **settings).metrics["encrypted_round"]
        assert (which / "privacy-ledger.jsonl").read_text() == ledger
        if which == folder:
            assert metrics == released
            assert "The nodes tested the model before the run broke off" in caplog.text
        else:
            assert "was paid for, but the run broke off before" in metrics["skipped"]
            assert "reserve" not in metrics["skipped"]


def test_a_round_on_another_model_is_not_taken_for_one_on_this(tmp_path: Path) -> None:
    """A run that ended early and is resumed trains on: what was kept is of the model before."""
    (tmp_path / "model.safetensors").write_bytes(b"one model")
    document = {"model_sha256": sha256(b"another").hexdigest(), "released": {"accuracy": 1.0}}
    (tmp_path / "encrypted-round.json").write_text(json.dumps(document))
    settings = Settings.from_config({"encrypted-round-images": 100})
    with pytest.raises(SettingError, match="cannot be read"):  # it would be asked: no such model
        hold_encrypted_round(
            InProcessGrid(client_app.app, 2),
            settings,
            ResultsFolder(tmp_path),
            population=2,
            ledger=tmp_path / "ledger",
            run_id=1,
        )


def test_a_model_that_cannot_be_evaluated_fails_before_anyone_is_asked(tmp_path: Path) -> None:
    save_file(build_model("hog-linear").state_dict(), tmp_path / "zeros")
    with (
        compiled_file("hog-linear", tmp_path / "zeros") as file,
        pytest.raises(EvaluatorFailedError, match="are all zero"),
    ):
        start_evaluator(file)


def test_an_evaluator_loads_no_pytorch_and_outlives_its_models_file(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model")
    with compiled_file("hog-linear", tmp_path / "model") as file:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        evaluator = start_evaluator(file)
    with evaluator:
        assert not file.parent.exists()
        loaded = [area.path for area in psutil.Process(evaluator.pid).memory_maps()]
        assert any("python" in path for path in loaded)
        assert not [path for path in loaded if "torch" in path]
        owner = MeasurementOwner(evaluator.plan)
        evaluator.use_keys(owner.public_material())
        answer, _ = evaluator.evaluate(owner.encrypt(np.zeros(evaluator.plan.input_shape)))
        assert owner.logits(answer).shape == (1, 10)


# A deployed node ----------------------------------------------------------------------------------


def _ask(config: dict[str, Any], *, public: bool = False) -> Message:
    """Send a plan of an untrained model to a node with this configuration."""
    grid = InProcessGrid(
        client_app.app, 1, run_config={"deployed": True}, node_config=lambda _: config
    )
    with tempfile.TemporaryDirectory() as folder:
        save_file(build_model("hog-linear").state_dict(), Path(folder) / "model")
        plan = compile_named("hog-linear", Path(folder) / "model").plan
    record = {"stage": "plan", "plan": plan.to_json(), "images": 2, "public-release": public}
    sent = Message(RecordDict({RECORD: ConfigRecord(record)}), 1, TYPE)
    (reply,) = grid.send_and_receive([sent])
    return reply


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "test").mkdir()
    (tmp_path / "state").mkdir(mode=0o700)
    images = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "test" / "mine.npz", images=images, labels=np.arange(5))
    return {"test-dir": str(tmp_path / "test"), "state-dir": str(tmp_path / "state")}


def test_a_deployed_node_keeps_its_secrets_in_its_own_folder(folders: dict[str, Any]) -> None:
    reply = _ask(folders)
    assert len(reply.content.config_records[RECORD]["queries"]) == 2  # type: ignore[arg-type]
    (secrets,) = Path(folders["state-dir"]).glob("*.secrets")
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert len(json.loads(secrets.read_text())["labels"]) == 2


@pytest.mark.parametrize("missing", ["test-dir", "state-dir"])
def test_a_node_without_a_folder_says_which(folders: dict[str, Any], missing: str) -> None:
    del folders[missing]
    assert f"no {missing}" in str(_ask(folders).error.reason)


def test_a_deployed_node_agrees_to_publication_or_not(folders: dict[str, Any]) -> None:
    assert "has not agreed" in str(_ask(folders, public=True).error.reason)
    assert not _ask(folders | {"publish-report": True}, public=True).has_error()


def test_a_deployed_nodes_owner_sets_the_cost_of_a_report(
    folders: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"report-epsilon": 5.0, "report-total-epsilon": 4.0}
    reason = str(_ask(folders | limits).error.reason)
    assert reason == "this node could not do its part; its owner finds why in its log"
    assert "report-epsilon = 5.0 in this node's --node-config is wrong" in caplog.text
    assert "at most report-total-epsilon, which is 4.0" in caplog.text
    assert not _ask(folders | {"report-epsilon": 4, "report-total-epsilon": 4}).has_error()


def test_settings_of_the_round_are_checked() -> None:
    for name, value in (
        ("encrypted-round-images", -1),
        ("encrypted-round-noise-multiplier", 0.0),
        ("encrypted-round-release", "loud"),
    ):
        with pytest.raises(SettingError, match=name):
            Settings.from_config({name: value})
