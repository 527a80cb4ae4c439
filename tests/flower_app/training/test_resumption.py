"""A run that breaks off, and goes on under its own settings only."""

import errno
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context
from flwr.common.config import parse_config_args
from flwr.serverapp import Grid, ServerApp

from flower_app import client_app, server_app
from flower_app.errors import SettingError
from flower_app.settings import Settings
from flower_app.training.resumption import can_go_on, check_resumed, with_settings_of_run
from strategies import run_in_process
from tests.flower_app.app_runs import run_app

SMALL: dict[str, Any] = {
    "rounds": 4,
    "sampling-rate": 0.5,
    "encrypted-test-images": 0,
    "partition-seed": 3,
    "partition": "iid",
}
NODES = 20


class BrokenError(Exception):
    """What ends a run in its middle."""


def broken_run(results: Path, *, after: int, **more: Any) -> Path:
    """The folder of a run that broke off after so many rounds."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        push, left = grid.push_messages, iter(range(after))

        def push_or_break(messages: Any) -> Any:
            messages = list(messages)
            if messages and next(left, None) is None:
                raise BrokenError
            return push(messages)

        grid.push_messages = push_or_break  # type: ignore[method-assign]
        server_app.app(grid, context)

    config = {"results-dir": str(results), **SMALL, **more}
    with pytest.raises(BrokenError):
        run_in_process(app, client_app.app, num_nodes=NODES, run_config=config)
    (folder,) = (f for f in results.iterdir() if f.name not in {"operator-logs", "latest"})
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken_run(tmp_path_factory.mktemp("broken"), after=2)


def resume(folder: Path, **given: Any) -> Any:
    settings = with_settings_of_run({"resume": str(folder), **given})
    return run_app(folder.parent, nodes=settings["population"], **settings)


def test_it_goes_on_in_its_folder_and_pays_the_interrupted_round_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path = tmp_path / "my results"
    tmp_path.mkdir()
    folder = broken_run(tmp_path, after=2)
    command = shlex.join([*["python", "-m", "flower_app", "run"], f"resume={folder}"])
    assert command in caplog.text
    assert (tmp_path / "latest").resolve() == folder
    before = json.loads((folder / "progress.json").read_text())["accuracy"]

    run = resume(tmp_path / "latest")
    assert run.folder == folder
    client_level = run.metrics["privacy"]["client_level"]
    assert client_level["rounds"] == 4
    lines = (folder / "privacy-ledger.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 4
    by_round = run.metrics["accuracy"]["validation_by_round"]
    assert list(by_round) == ["0", "1", "2", "3", "4"]
    assert {number: by_round[number] for number in before} == before
    operator_log = (tmp_path / "operator-logs" / f"{folder.name}.log").read_text()
    assert "round 1" in operator_log
    assert "round 4" in operator_log


def test_its_settings_are_the_runs_own(broken: Path) -> None:
    settings = Settings.from_config(with_settings_of_run({"resume": str(broken)}))
    assert settings.partition_seed == 3
    assert settings.rounds == 4
    assert settings.partition == "iid"


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("partition-seed", 4, 3),
        ("rounds", 6, 4),
        ("partition", "shards", "iid"),
        ("model", "mlp", "hog-linear"),
        ("record-epsilon", 3.0, 0.0),
        ("local-steps", 2, 1),
    ],
)
def test_another_setting_is_refused_by_name(
    broken: Path, name: str, value: object, was: object
) -> None:
    expected = f"{name} = {value!r} is wrong; the run in {broken} has {was!r}"
    with pytest.raises(SettingError) as on_the_command_line:
        with_settings_of_run({"resume": str(broken), name: value})
    assert expected in str(on_the_command_line.value)
    assert "leave it out" in str(on_the_command_line.value)
    # Under Flower's own command the run itself sees to it.
    with pytest.raises(SettingError) as in_the_run:
        run_app(broken.parent, nodes=NODES, **{**SMALL, "resume": str(broken), name: value})
    assert expected in str(in_the_run.value)
    assert str(broken / "resume.toml") in str(in_the_run.value)


def test_what_only_says_how_long_to_wait_may_differ(broken: Path) -> None:
    given = {"resume": str(broken), "round-timeout": 7.0, "encrypted-test-images": 3}
    settings = Settings.from_config(with_settings_of_run(given))
    assert (settings.round_timeout, settings.encrypted_test_images) == (7.0, 3)


def test_flowers_own_command_is_given_a_file_with_all_settings(broken: Path) -> None:
    import tomllib

    config = tomllib.loads((broken / "resume.toml").read_text())
    settings = Settings.from_config(config)
    assert settings.resume == str(broken)
    assert settings.population == NODES
    assert settings.as_config() | {"resume": ""} == {
        name: value
        for name, value in json.loads((broken / "config.json").read_text()).items()
        if name != "software"
    }


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("privacy-ledger.jsonl", "is missing: put it back"),
        ("checkpoint.safetensors", "before its first checkpoint"),
        ("config.json", "not the results folder of a run"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    tmp_path: Path, broken: Path, harm: str, words: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in broken.iterdir():
        if path.name != harm:
            (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SettingError, match=words):
        with_settings_of_run({"resume": str(copy)})


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    run = run_app(tmp_path, nodes=NODES, **{k.replace("-", "_"): v for k, v in SMALL.items()})
    with pytest.raises(SettingError, match="that run has finished"):
        with_settings_of_run({"resume": str(run.folder)})


def test_a_run_that_breaks_off_at_its_results_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk. Whatever is told to go on with can be gone on with."""

    def full(*args: Any, **kw: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = {"rounds": 1, "sampling_rate": 1.0, "encrypted_test_images": 0}
    with monkeypatch.context() as patched:
        patched.setattr("flower_app.finish.write_report", full)
        with pytest.raises(OSError, match="No space left"):
            run_app(tmp_path, nodes=NODES, **settings)
    folder = (tmp_path / "latest").resolve()
    assert f"To go on: python -m flower_app run resume={folder}" in caplog.text
    ledger = (folder / "privacy-ledger.jsonl").read_text()
    run = resume(folder)
    assert run.folder == folder
    assert (folder / "privacy-ledger.jsonl").read_text() == ledger, "it paid again"
    assert (folder / "report.html").is_file()
    assert len({path.stat().st_mtime_ns for path in folder.iterdir()}) == 1
    with pytest.raises(SettingError, match="that run has finished"):
        resume(folder)


def test_a_setting_that_the_runs_version_did_not_have_is_as_usual(
    tmp_path: Path, broken: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(broken, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["round-timeout"], config["noise-placement"]
    (copy / "config.json").write_text(json.dumps(config))
    settings = Settings.from_config(with_settings_of_run({"resume": str(copy)}))
    check_resumed(settings, population=NODES)
    assert settings.noise_placement == "central"


def test_a_run_that_an_earlier_version_began_is_refused_with_the_new_names(
    tmp_path: Path, broken: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(broken, copy)
    for name in ("config.json", "resume.toml"):
        text = (copy / name).read_text()
        assert "max-corrupt-fraction" in text
        (copy / name).write_text(text.replace("max-corrupt-fraction", "corrupt"))
    assert not can_go_on(copy)
    with pytest.raises(SettingError, match="corrupt was renamed to max-corrupt-fraction"):
        with_settings_of_run({"resume": str(copy)})
    with pytest.raises(SettingError, match="corrupt was renamed to max-corrupt-fraction"):
        Settings.from_config(parse_config_args([str(copy / "resume.toml")]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"accuracy": 3, "update_norms": {}}'])
def test_what_only_pictures_need_does_not_keep_a_run_from_going_on(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken_run(tmp_path, after=2)
    (folder / "progress.json").write_text(text)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    run_in_process(
        server_app.app,
        client_app.app,
        num_nodes=NODES,
        run_config=with_settings_of_run({"resume": str(folder)}),
    )
    assert json.loads((folder / "metrics.json").read_text())
    assert "will lack its first rounds" in caplog.text


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "no/such"])
def test_what_is_no_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=r"resume = .* is wrong"):
        with_settings_of_run({"resume": f"{tmp_path}/{name}"})
