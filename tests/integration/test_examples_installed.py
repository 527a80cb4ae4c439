"""The built wheel in an environment of its own, and the examples run from there.

The environment borrows Flower, PyTorch and the rest from the one the tests run in, so that it is
made in a second and without a network; bloomseal itself it has from the wheel alone. With
``--empty-environment`` it borrows nothing: pip installs the wheel and all it asks for.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from privacy.accounting import read_ledger
from tests.integration.app_commands import ROOT, borrowing_environment, run_python

PACKAGES = ("flower_app", "strategies", "privacy")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

# Runs in the new environment. A SuperLink on ports of its own, so that nobody else's is used;
# then what the user of a project types.
USER = """
import json, subprocess, sys, time
from pathlib import Path
from flower_app.processes.flower_processes import program, superlink
from flower_app.processes.watchdog import processes_below

home = Path(sys.argv[1])
def simulates():
    return any("flwr-simulation" in command for command in processes_below(home).values())
with superlink(home) as environment:
    def flwr(*arguments):
        command = [program("flwr"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    for project, config, nodes in json.loads(sys.argv[2]):
        federation = f"num-supernodes={nodes} init-args-num-cpus=1 client-resources-num-cpus=1"
        started = flwr("run", project, "local", "--run-config", config,
                    "--federation-config", federation, "--format", "json")
        run = str(json.loads(started)["run-id"])
        status = ""
        while not status.startswith("finished"):
            while simulates():  # Flower is asked after it: each question takes a processor seconds
                time.sleep(0.2)
            (listed,) = json.loads(flwr("list", "--run-id", run, "--format", "json"))["runs"]
            status = listed["status"]
        print(status, flwr("log", run, "--show"), flush=True)
        assert status == "finished:completed"
"""


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The interpreter of an environment that has bloomseal from its wheel."""
    # Removed at once: pytest keeps its own temporary folders, and this may be gigabytes.
    with tempfile.TemporaryDirectory(prefix="installed-") as folder:
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        subprocess.run([*build, "--directory", folder], cwd=ROOT, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        empty = request.config.getoption("--empty-environment", default=False)
        yield (from_index if empty else borrowing)(Path(folder) / "env", wheel)


def from_index(folder: Path, wheel: Path) -> Path:
    """An environment into which pip installs the wheel and what it and the examples ask for."""
    venv.create(folder, symlinks=True, with_pip=True)
    python = folder / "bin" / "python"
    asked = [
        requirement
        for project in sorted((ROOT / "examples").glob("*/pyproject.toml"))
        for requirement in tomllib.loads(project.read_text())["project"]["dependencies"]
    ]
    install = [python, "-m", "pip", "install", f"{wheel}[app]", *asked]
    subprocess.run(install, env=clean(), check=True)
    return python


def borrowing(folder: Path, wheel: Path) -> Path:
    """An environment that has the wheel, and sees what is installed where the tests run."""
    python = borrowing_environment(folder)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    for script in distribution("flwr").entry_points.select(group="console_scripts"):
        path = python.with_name(script.name)
        path.write_text(f"#!{python}\nfrom {script.module} import {script.attr}\n{script.attr}()\n")
        path.chmod(0o755)
    return python


def clean() -> dict[str, str]:
    """The environment of somebody who has never heard of this checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "PYTHON"))}


def test_the_wheel_carries_the_three_packages_and_no_other(installed: Path) -> None:
    program = (
        "import json, flower_app, strategies, privacy, sys\n"
        "from importlib.metadata import files\n"
        f"modules = [sys.modules[name].__file__ for name in {PACKAGES}]\n"
        "print(json.dumps([modules, sorted({path.parts[0] for path in files('bloomseal')})]))\n"
    )
    done = subprocess.run(
        [installed, "-c", program],
        cwd=installed.parents[2],
        env=clean(),
        capture_output=True,
        check=True,
    )
    site = next(installed.parents[1].glob("lib/python3*/site-packages"))
    modules, top_level = json.loads(done.stdout)
    assert modules == [str(site / name / "__init__.py") for name in PACKAGES]
    # Not what lies in the folder: other packages bring a top-level "benchmarks" with them.
    assert [name for name in top_level if not name.endswith(".dist-info")] == sorted(PACKAGES)
    for name in PACKAGES:
        carried = {p.relative_to(site) for p in (site / name).rglob("*.py")}
        assert carried == {p.relative_to(ROOT) for p in (ROOT / name).rglob("*.py")}
        assert (site / name / "py.typed").exists()


def test_the_installed_app_goes_from_data_to_encrypted_answers(
    installed: Path, temporary: Path, tmp_path: Path
) -> None:
    """Outside a clone; the clients' state goes from stage to stage through Flower's contexts."""
    done = run_python(
        *("-m", "flower_app", "run", "--nodes", "10", "--cpus", "1"),
        *("rounds=2", "sampling-rate=1.0", "encrypted-test-images=5"),
        *("secure-aggregation=malicious", "min-clients=5", "dropout-probability=0.0"),
        environment=clean() | {"TMPDIR": str(temporary)},
        python=installed,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    latest = tmp_path / "results" / "latest"
    metrics = json.loads((latest / "metrics.json").read_text())
    assert metrics["software"]["version"] == version("bloomseal")
    assert metrics["software"]["commit"] is None
    claimed = metrics["privacy"]["client_level"]
    assert (claimed["population"], claimed["rounds"]) == (10, 2)
    assert claimed["secure_aggregation"]["server"] == "malicious"
    assert claimed["secure_aggregation"]["aborted_rounds"] == []
    (log,) = (tmp_path / "results" / "operator-logs").glob("*.log")
    assert log.read_text().count("opened the sum of 10 clients") == 2
    assert metrics["encrypted"]["agreement"] == 1.0
    assert str(latest.resolve()) in done.stdout
    assert "telemetry is off" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "validation accuracy" in line]
    assert len(lines) == 2, "one line a round, and each of them once"
    closing = [line for line in done.stdout.splitlines() if line.strip()][-5:]
    words = ("Test accuracy", "of 3 at δ", "Encrypted inference: 5", "Results: ", "report.html")
    assert all(word in line for word, line in zip(words, closing, strict=True)), closing


@pytest.fixture(scope="module")
def played(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Both examples run by ``flwr run``, and what they said; ledgers lie in the folder."""
    folder = tmp_path_factory.mktemp("played")
    runs = []
    for name, config, nodes in (
        ("sklearn_breast_cancer", "rounds=3", 20),
        ("pytorch_from_fedavg", "rounds=2", 20),
    ):
        project = folder / name
        shutil.copytree(ROOT / "examples" / name, project)
        runs.append((str(project), config, nodes))
    home = clean() | {"HOME": str(folder)}
    user = ("-c", USER, str(folder), json.dumps(runs))
    done = run_python(*user, environment=home, python=installed, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_scikit_learn_project_runs(played: tuple[Path, str]) -> None:
    folder, output = played
    assert "accuracy 0." in output
    ledger = read_ledger(folder / "cancer-ledger.jsonl")
    assert [record.round for record in ledger.records] == [1, 2, 3]
    assert 7.9 < ledger.epsilon(1e-3) <= 8.0


def test_a_pytorch_project_runs(played: tuple[Path, str]) -> None:
    folder, output = played
    assert "round 2: accuracy 0." in output
    ledger = read_ledger(folder / "digits-ledger.jsonl")
    assert [record.round for record in ledger.records] == [1, 2]
    assert 7.9 < ledger.epsilon(1e-3) <= 8.0
