"""The app under Flower's own commands: a real SuperLink on loopback, simulated SuperNodes."""

import contextlib
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flower_app.processes.flower_processes import program
from flower_app.processes.watchdog import processes_below
from privacy.accounting import Ledger
from strategies.checkpoint import Checkpoint
from tests.integration.app_commands import PATIENCE, ROOT, run_python, started_python

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def run(
    *arguments: str, environment: dict[str, str], timeout: float = 1500
) -> "subprocess.CompletedProcess[str]":
    command = ("-m", "flower_app", "run", *arguments)
    return run_python(*command, environment=environment, timeout=timeout)


def test_a_run_that_fails_under_way_says_why_in_its_last_line(
    environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger.open(path, population="population, 3 clients"):  # as another run would
        done = run(
            *("--nodes", "3", "rounds=1", "sampling-rate=1.0", f"ledger={path}"),
            f"results-dir={tmp_path}",
            environment=environment,
        )
    assert done.returncode == 1, done.stdout
    assert done.stderr.splitlines()[-1] == (
        f"error: ledger = {str(path)!r} is wrong; the ledger {path} is held by another run; wait "
        "for it to end"
    )


def test_ended_from_outside_it_ends_all_it_started(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    with started(environment, temporary, tmp_path) as process:
        process.terminate()
        rest, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, rest


def test_interrupted_it_plays_no_further_round_and_says_how_to_go_on(
    environment: dict[str, str], tmp_path: Path
) -> None:
    def rounds() -> int:
        checkpoints = list(tmp_path.glob("2*-*/checkpoint.safetensors"))
        return Checkpoint.load(checkpoints[0]).round if checkpoints else 0

    settings = ("rounds=300", "sampling-rate=1.0", f"results-dir={tmp_path}")
    with started_python(
        *("-m", "flower_app", "run", "--nodes", "5", "--cpus", "1", *settings),
        environment=environment,
        until=lambda: rounds() >= 2,
    ) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            if "Stopped. " in line:
                break
        (folder,) = (path for path in tmp_path.glob("2*-*"))
        paid = (folder / "privacy-ledger.jsonl").read_bytes()
        rest, _ = process.communicate()
    assert process.returncode == 130
    assert f"To go on: python -m flower_app run resume={folder}" in rest
    assert (folder / "privacy-ledger.jsonl").read_bytes() == paid
    assert not (folder / "metrics.json").exists()


def test_interrupted_twice_it_ends_at_once_and_cleanly(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    with started(environment, temporary, tmp_path) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        for line in process.stdout:
            if "Stopped. Flower's other processes are ending" in line:
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest


def test_killed_it_leaves_no_process_and_no_folder(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    with started(environment, temporary, tmp_path, until="raylet") as process:
        (watchdog,) = [p for p in psutil.Process(process.pid).children() if _is_watchdog(p)]
        process.kill()
        process.wait()
        # The watchdog ends when nothing is left that it could end.
        psutil.wait_procs([watchdog], timeout=PATIENCE)
        assert not watchdog.is_running()


@contextlib.contextmanager
def started(
    environment: dict[str, str], temporary: Path, tmp_path: Path, *, until: str = "flwr-simulation"
) -> Iterator["subprocess.Popen[str]"]:
    """A command that has started a program of this name."""
    with started_python(
        *("-m", "flower_app", "run", "--nodes", "5", "--cpus", "1", f"results-dir={tmp_path}"),
        environment=environment,
        until=lambda: any(until in command for command in processes_below(temporary).values()),
    ) as process:
        yield process


def _is_watchdog(process: psutil.Process) -> bool:
    return "flower_app.processes.watchdog" in process.cmdline()


@pytest.mark.parametrize("wrong", ["model=resnet", "epsilom=3", "sampling-rate=7"])
def test_a_wrong_setting_fails_before_anything_starts(
    environment: dict[str, str], wrong: str, tmp_path: Path
) -> None:
    done = run(wrong, f"results-dir={tmp_path}", environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wrong.split('=')[0]}")
    assert len(done.stderr.splitlines()) == 1
    assert "SuperLink" not in done.stdout


def test_the_bundle_holds_what_nodes_need_and_no_ledger(tmp_path: Path) -> None:
    app = tmp_path / "bloomseal"
    for package in ("flower_app", "strategies", "privacy"):
        shutil.copytree(ROOT / package, app / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app)
    (app / "docs").mkdir()
    for name in ("privacy-ledger.jsonl", "strategies/ledger.jsonl", "docs/figures.json"):
        (app / name).write_text("not for everybody")
    flwr = [program("flwr"), "build", "--app", str(app)]
    subprocess.run(flwr, cwd=tmp_path, check=True, capture_output=True)
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as opened:
        names = set(opened.namelist())
    assert "flower_app/server_app.py" in names
    assert {name for name in names if not name.endswith(".py")} == {
        "pyproject.toml",
        "LICENSE",
        ".info/CONTENT",
    }
