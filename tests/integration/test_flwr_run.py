"""The app under Flower's own commands: a real SuperLink on loopback, simulated SuperNodes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def run(
    *arguments: str, environment: dict[str, str], timeout: float = 1500
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flower_app", "run", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_a_simulation_from_data_to_encrypted_answers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(
        *("--nodes", "20"),
        *("rounds=2", "sampling-rate=0.5", "encrypted-images=5"),
        f"results-dir={tmp_path}",
        environment=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "latest" / "metrics.json").read_text())
    assert metrics["privacy"]["client_level"]["population"] == 20
    assert metrics["privacy"]["client_level"]["rounds"] == 2
    assert metrics["encrypted"]["agreement"] == 1.0
    assert str((tmp_path / "latest").resolve()) in done.stdout
    assert "telemetry is off" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "validation accuracy" in line]
    assert len(lines) == 2, "one line a round, and each of them once"


def test_a_simulation_with_secure_aggregation(environment: dict[str, str], tmp_path: Path) -> None:
    """The clients' state goes from stage to stage through Flower's own contexts."""
    done = run(
        *("--nodes", "10"),
        *("rounds=1", "sampling-rate=1.0", "encrypted-images=0"),
        *("secure-aggregation=malicious", "minimum-cohort=5", "client-dropout=0.0"),
        f"results-dir={tmp_path}",
        environment=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "latest" / "metrics.json").read_text())
    told = metrics["privacy"]["client_level"]["secure_aggregation"]
    assert told["server"] == "malicious"
    assert told["aborted_rounds"] == []
    log = (tmp_path / "operator-logs").glob("*.log")
    assert "opened the sum of 10 clients" in next(log).read_text()


def test_a_run_that_cannot_go_on_says_why_and_fails(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run("--nodes", "3", "population=50", f"results-dir={tmp_path}", environment=environment)
    assert done.returncode == 1
    assert "population = 50 is larger than the 3 simulated nodes" in done.stdout


def test_ended_from_outside_it_ends_all_it_started(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "flower_app", "run", "--nodes", "5", f"results-dir={tmp_path}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Starting Flower Simulation" in line:
                process.terminate()
                break
        process.stdout.read()
        assert process.wait(timeout=600) == 128 + signal.SIGTERM


@pytest.mark.parametrize("wrong", ["model=resnet", "epsilom=3", "sampling-rate=7"])
def test_a_wrong_setting_fails_before_anything_starts(
    environment: dict[str, str], wrong: str, tmp_path: Path
) -> None:
    done = run(wrong, f"results-dir={tmp_path}", environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wrong.split('=')[0]}")
    assert len(done.stderr.splitlines()) == 1
    assert "SuperLink" not in done.stdout
