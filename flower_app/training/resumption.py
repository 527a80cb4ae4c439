"""Going on with a run that broke off: the same settings, the same ledger, the same folder."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any

from flwr.supercore import log

from flower_app.errors import SettingError, wrong
from flower_app.paths import is_folder
from flower_app.report.results_folder import TASK_FILE, ResultsFolder
from flower_app.report.software import software
from flower_app.setting_names import without_former_names
from flower_app.settings import Settings, write_run_config
from privacy.json_text import read_json

_SOFTWARE = "software"  # in config.json, beside the settings: the code the run was begun with
# May differ in a resumed run: where and how long to wait, the tests of the finished model, who
# watches, and what the report says of whom.
_FREE = (
    *("resume", "results-dir", "round-timeout", "min-available-nodes"),
    *("encrypted-test-images", "encrypted-backend"),
    *("tracking", "tracking-uri", "metrics-port"),
    *("compare-with", "controller", "contact", "purpose"),
)


def with_settings_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a command line, and for the rest those of the run to go on with.

    Parameters
    ----------
    given : mapping
        Kebab-case names to values, ``resume`` among them.

    Raises
    ------
    SettingError
        If the folder is not one to go on from, or a setting differs from that run's.
    """
    folder = _resolved(str(given["resume"]))
    recorded = _recorded_settings(folder)
    for name, value in given.items():
        if name not in _FREE and name in recorded and value != recorded[name]:
            raise _differs(name, value, recorded[name], folder, "leave it out")
    return recorded | dict(given) | {"resume": str(folder)}


def can_go_on(folder: Path) -> bool:
    """Whether ``resume`` takes this folder."""
    try:
        _recorded_settings(folder)
    except (SettingError, OSError):
        return False
    return True


def folder_of_run(settings: Settings, run_id: int, *, population: int) -> ResultsFolder:
    """The folder of the run to go on with, or that of a new run with its settings in it."""
    if settings.resume:
        folder = ResultsFolder(Path(settings.resume).resolve())
        if other_software_at_start(folder) is not None:
            log(WARNING, "The run in %s was begun with another version of the code.", folder.path)
        return folder
    folder = ResultsFolder.create(settings, run_id)
    config = settings.as_config()
    if not settings.deployed and not settings.has_silos:
        config["population"] = population  # the number of nodes: a resumed run needs as many
    folder.write_json("config.json", config | {_SOFTWARE: software()})
    task = settings.own_task
    if task:
        folder.file(TASK_FILE).write_text(task.text, encoding="utf-8")
    write_run_config(config | {"resume": str(folder.path)}, folder.resumption)
    return folder


@contextmanager
def advice_on_failure(folder: ResultsFolder) -> Iterator[None]:
    """Log how to go on with a run that breaks off in the block after its first checkpoint."""
    try:
        yield
    except BaseException:
        if can_go_on(folder.path):
            log(
                ERROR,
                "The run broke off. Everything trained and paid so far is there. To go on: %s, or: "
                "flwr run . --stream --run-config %s",
                folder.resume_command,
                shlex.quote(str(folder.resumption)),
            )
        raise


def other_software_at_start(folder: ResultsFolder) -> dict[str, Any] | None:
    """Which code a run was begun with, if that is other code than this; else None."""
    begun = _software_at_start(folder)
    return begun if begun.get("source_sha256") != software()["source_sha256"] else None


def _software_at_start(folder: ResultsFolder) -> dict[str, Any]:
    recorded = read_json(folder.file("config.json").read_text()).get(_SOFTWARE)
    return recorded if isinstance(recorded, dict) else {}


def write_final_settings(settings: Settings, folder: ResultsFolder) -> dict[str, Any]:
    """Write into ``config.json`` what a resumption changed; returns the settings."""
    begun = read_json(folder.file("config.json").read_text())
    code = begun.pop(_SOFTWARE, {})
    changed = {name: value for name, value in settings.as_config().items() if name in _FREE}
    config = {**settings.as_config(), **begun, **changed}
    folder.write_json("config.json", config | {_SOFTWARE: code})
    return config


def check_resumed(settings: Settings, *, population: int) -> None:
    """Refuse to go on with a run under other settings than its own.

    Parameters
    ----------
    settings : Settings
    population : int
        N, which a simulation takes from its nodes where it is not set.

    Raises
    ------
    SettingError
        If the folder is not one to go on from, or naming the first setting that differs.
    """
    folder = Path(settings.resume)
    recorded = _recorded_settings(folder)
    task = settings.own_task
    if task and task.text != _text(ResultsFolder(folder).file(TASK_FILE)):
        raise wrong(
            "task",
            settings.task,
            f"it has changed since the run in {folder} began: put back the one that lies there, "
            f"{TASK_FILE}",
        )
    now = settings.as_config()
    if not settings.deployed and not settings.has_silos:
        now["population"] = population
    for name, value in now.items():
        if name not in _FREE and value != recorded[name]:
            run = ResultsFolder(folder)
            how = (
                f"give all of them: {run.resume_command}, or flwr run . --run-config "
                f"{shlex.quote(str(run.resumption))}"
            )
            raise _differs(name, value, recorded[name], folder, how)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _resolved(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise wrong("resume", text, str(error)) from error


def _differs(name: str, now: Any, before: Any, folder: Path, how: str) -> SettingError:
    return wrong(
        name,
        now,
        f"the run in {folder} has {before!r}, and goes on under its own settings only: {how}",
    )


def _recorded_settings(path: Path) -> dict[str, Any]:
    folder = ResultsFolder(path)

    def refused(fault: str) -> SettingError:
        return wrong("resume", str(path), fault)

    if not path.is_absolute():
        raise refused("it must be an absolute path")
    if not is_folder(path):
        raise refused("it must be the results folder of a run that broke off")
    if folder.finished:
        raise refused("that run has finished; begin a new one")
    try:
        recorded = read_json(folder.file("config.json").read_text())
    except (OSError, ValueError) as error:
        raise refused(
            "it is not the results folder of a run: its config.json cannot be read"
        ) from error
    if not isinstance(recorded, dict):
        raise refused("its config.json holds no settings")
    recorded.pop(_SOFTWARE, None)
    try:
        without_former_names(recorded)
    except SettingError as error:
        raise refused(f"an earlier version began it: {error}") from error
    if not folder.checkpoint.exists():
        raise refused(
            "that run broke off before its first checkpoint, and paid nothing: begin a new one"
        )
    ledger = Path(recorded.get("ledger") or folder.ledger)
    if not ledger.exists():
        raise refused(f"the ledger of that run, {ledger}, is missing: put it back")
    # A setting that is newer than the run has its default.
    return Settings().as_config() | recorded
