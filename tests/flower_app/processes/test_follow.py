"""What a run ends with is told, whatever Flower's log stream does."""

import json
import sys
from pathlib import Path

import pytest

from flower_app.errors import RunFailedError, SettingError
from flower_app.processes import follow as following
from flower_app.processes.follow import follow
from flower_app.report.outcome import FOLDER_VARIABLE, OutcomeFile, read_outcome
from flower_app.training.resumption import with_settings_of_run

RUN_ID = 4711
STARTED = f"Successfully started run {RUN_ID}"


@pytest.fixture(autouse=True)
def does_not_ask_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower could not answer here, and each question takes seconds."""
    monkeypatch.setattr(following, "_STATUS_TRIES", 0)


@pytest.fixture
def outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "outcomes"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"epsilon": 3.0}))
    metrics = {
        "accuracy": {"test": 0.985},
        "privacy": {"client_level": {"epsilon": 2.5, "delta": 1e-5}},
        "encrypted": {
            "images": 200,
            "accuracy": 0.99,
            "agreement": 1.0,
            "ms_per_image": 1.5,
            "security_bits": 128,
        },
        "task": None,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def stream(
    tmp_path: Path, outcomes: Path, *lines: str, resumable: bool = True, then: str = ""
) -> int:
    """Follow a stand-in for Flower's log stream that prints these lines."""
    program = f"for line in {lines!r}: print(line, flush=True)\n{then}"
    environment = {FOLDER_VARIABLE: str(outcomes), "FLWR_HOME": str(tmp_path / "home"), "PATH": ""}
    return follow(
        [sys.executable, "-c", program], environment, connection="none", resumable=resumable
    )


def finish(folder: Path) -> None:
    outcome = OutcomeFile(RUN_ID)
    outcome.tell(folder=str(folder))
    with outcome.told():
        pass


CLOSING = [
    "Test accuracy 98.50 %",
    "ε = 2.5000 of 3 at δ = 1e-05, client-level",
    "Encrypted inference: 200 images, 99.00 % right, 100.00 % as in the clear, 1.5 ms an image, "
    "128 bits",
]


def test_nothing_stands_below_the_results(
    tmp_path: Path, outcomes: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(results)
    last = f"Open {results / 'report.html'}"
    chatter = "(ClientAppActor pid=7) WARNING: Manually terminating ClientAppActor"
    assert stream(tmp_path, outcomes, STARTED, chatter, f"INFO : {last}", chatter) == 0
    assert capsys.readouterr().out.splitlines() == [STARTED, chatter, f"INFO : {last}"]


def test_a_stream_that_breaks_off_is_followed_by_what_came_out(
    tmp_path: Path, outcomes: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(results)
    assert stream(tmp_path, outcomes, STARTED, "round 68/75") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [*CLOSING, f"Results: {results}", f"Open {results / 'report.html'}"]
    assert "round 68/75" in lines


def test_a_stream_that_hangs_is_left(
    tmp_path: Path,
    outcomes: Path,
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "_STREAM_SECONDS", 0.0)
    finish(results)
    assert stream(tmp_path, outcomes, STARTED, then="import time; time.sleep(1000)") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Open {results / 'report.html'}"


def test_a_whole_stream_is_not_repeated_and_not_waited_for(
    tmp_path: Path, outcomes: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(results)
    told = [STARTED, *CLOSING, f"Results: {results}", f"INFO : Open {results / 'report.html'}"]
    assert stream(tmp_path, outcomes, *told, then="import time; time.sleep(1000)") == 0
    assert capsys.readouterr().out.splitlines() == told


def test_the_reason_of_a_failed_run_is_one_sentence(tmp_path: Path, outcomes: Path) -> None:
    outcome = OutcomeFile(RUN_ID)
    with pytest.raises(SettingError), outcome.told():
        raise SettingError("epsilon = 9 is wrong;\n    it must not")
    with pytest.raises(RunFailedError) as caught:
        stream(tmp_path, outcomes, STARTED)
    assert str(caught.value) == "epsilon = 9 is wrong; it must not"


def broken_off(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint.safetensors").write_bytes(b"")
    (folder / "privacy-ledger.jsonl").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "lacks", ["config.json", "checkpoint.safetensors", "privacy-ledger.jsonl", "nothing"]
)
def test_no_advice_to_resume_names_a_run_that_cannot_be_resumed(
    tmp_path: Path, outcomes: Path, lacks: str
) -> None:
    folder = broken_off(tmp_path / "folder")
    (folder / lacks).unlink(missing_ok=True)
    OutcomeFile(RUN_ID).tell(folder=str(folder), begun=True)
    with pytest.raises(RunFailedError) as caught:
        stream(tmp_path, outcomes, STARTED)
    assert ("To go on" in str(caught.value)) is (lacks == "nothing")
    if lacks == "nothing":
        assert with_settings_of_run({"resume": str(folder)})
    else:
        with pytest.raises(SettingError, match="resume = "):
            with_settings_of_run({"resume": str(folder)})


@pytest.mark.parametrize("resumable", [True, False])
def test_a_run_that_breaks_off_says_how_to_go_on_where_one_can(
    tmp_path: Path, outcomes: Path, resumable: bool
) -> None:
    folder = broken_off(tmp_path / "my results")
    OutcomeFile(RUN_ID).tell(folder=str(folder), begun=True)
    with pytest.raises(RunFailedError, match="broke off without results") as caught:
        stream(tmp_path, outcomes, STARTED, resumable=resumable)
    assert (f"flower_app run 'resume={folder}'" in str(caught.value)) is resumable


def test_a_run_that_had_not_begun_is_not_to_be_gone_on_with(tmp_path: Path, outcomes: Path) -> None:
    """Its folder may hold a checkpoint of another run, which holds the ledger."""
    OutcomeFile(RUN_ID).tell(folder=str(broken_off(tmp_path)))
    with pytest.raises(RunFailedError) as caught:
        stream(tmp_path, outcomes, STARTED)
    assert "resume=" not in str(caught.value)


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_stream_that_hangs_over_a_run_that_is_over_is_left(
    tmp_path: Path, outcomes: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Flower cannot say any more that the run goes on."""
    for name in ("_STREAM_SECONDS", "_SILENCE_SECONDS", "_STATUS_SECONDS"):
        monkeypatch.setattr(following, name, 0.0)
    monkeypatch.setattr(following, "_STATUS_TRIES", 1)
    OutcomeFile(RUN_ID).tell(state=state, reason="so it is" if state == "failed" else "")
    with pytest.raises(RunFailedError, match="so it is" if state == "failed" else "broke off"):
        stream(tmp_path, outcomes, STARTED, then="import time; time.sleep(1000)")


def test_a_run_that_never_starts_is_given_up(
    tmp_path: Path, outcomes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_START_SECONDS", 0.0)
    with pytest.raises(RunFailedError, match="did not start the run"):
        stream(tmp_path, outcomes, then="import time; time.sleep(1000)")


def test_a_run_that_flower_did_not_start_says_so(tmp_path: Path, outcomes: Path) -> None:
    with pytest.raises(RunFailedError, match="did not start the run"):
        stream(tmp_path, outcomes, "Error: no such app")


def test_without_a_launcher_no_outcome_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    finish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_outcome_is_read_as_it_was_written(outcomes: Path) -> None:
    assert read_outcome(outcomes, RUN_ID) is None
    OutcomeFile(RUN_ID).tell(folder="/somewhere", begun=True)
    told = read_outcome(outcomes, RUN_ID)
    assert told is not None
    assert (told.state, told.folder, told.begun) == ("running", "/somewhere", True)
