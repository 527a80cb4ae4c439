"""The demonstration deployment under its own command, and the check of a node's data folder."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from cryptography import x509

from flower_app.__main__ import main
from flower_app.processes.certificates import make_certificates, make_node_key
from flower_app.processes.deployment import Deployment
from flower_app.processes.watchdog import processes_below
from tests.integration.app_commands import (
    PATIENCE,
    borrowing_environment,
    run_python,
    started_python,
)
from tests.integration.deployed_runs import forking

DEMO = ("-m", "flower_app", "deploy-demo")


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_demonstration_ends_with_results_and_nothing_else(
    environment: dict[str, str], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    done = run_python(
        *DEMO,
        "rounds=1",
        "encrypted-test-images=5",
        f"results-dir={results}",
        environment=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((results / "latest" / "metrics.json").read_text())
    assert metrics["deployed"] is True
    assert metrics["privacy"]["client_level"]["population"] == 3
    assert metrics["privacy"]["record_level"]["epsilon_max"] == 3.0
    assert metrics["encrypted"]["agreement"] == 1.0
    tested = metrics["encrypted_round"]
    assert (tested["nodes_asked"], tested["nodes_answered"]) == (3, 3)
    assert tested["images_per_node"] == 200
    # Each node's own noise has a deviation of 3.73 answers of 200, their mean of 1.1 %; the nodes'
    # 600 images are of the 10,000 that the clear accuracy is of. Six deviations: below 1e-8.
    assert tested["accuracy"] == pytest.approx(metrics["accuracy"]["test"], abs=0.14)
    assert tested["bytes_from_node"] <= 20_000_000
    assert "Encrypted test-time round: 3 of 3 nodes" in done.stdout
    (log,) = (results / "operator-logs").iterdir()
    assert "3 replies used" in log.read_text()
    assert str((results / "latest").resolve()) in done.stdout
    assert "too few to hide one of them" in done.stdout
    assert "telemetry is off" in done.stdout
    assert not (results / "latest" / "holdings.png").exists(), "clients' data is in a picture"


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_demonstration_over_silos_trains_and_tests(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Its apps are forks: a step and a test are five messages each to each silo."""
    results = tmp_path / "results"
    python = borrowing_environment(tmp_path / "env")
    done = run_python(
        *(*DEMO, "mode=silos", "rounds=1", "evaluate-every=1", "encrypted-test-images=0"),
        f"results-dir={results}",
        environment=environment | forking(python.parent),
        python=python,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = results / "latest"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["deployed"] is True
    level = metrics["privacy"]["record_level"]
    assert (level["silos"], level["rounds"], level["stopped"]) == (3, 1, None)
    assert level["epsilon"] <= 3.0
    assert level["secure_aggregation"]["aborted_rounds"] == []
    # Noise of 25 test records on the number of 600, in shares for two honest silos of three.
    assert metrics["accuracy"]["silos"]["1"]["persons"] == pytest.approx(600, abs=400)
    assert "from everybody, the server and another silo included" in done.stdout
    page = (folder / "report.html").read_text()
    assert "a private federated run over 3 silos" in page


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_demonstration_interrupted_in_its_run_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with started_python(
        *(*DEMO, "rounds=50", f"results-dir={tmp_path}"),
        environment=environment,
        until=lambda: any(tmp_path.glob("2*-*")),
        own_session=True,
    ) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        check_clean_end(process)


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_demonstration_that_is_terminated_leaves_nothing(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    with started_python(
        *(*DEMO, f"results-dir={tmp_path}"),
        environment=environment,
        until=lambda: started("flower-superlink", temporary),
    ) as process:
        process.terminate()
        check_clean_end(process)


def test_termination_while_python_runs_code_from_text_has_an_exit_status_too(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As it does when a module that is imported makes a dataclass."""
    (tmp_path / "terminated.py").write_text(
        "import signal, sys\n"
        "from flower_app.commands.deploy_demo import _ended_politely\n"
        "try:\n"
        "    with _ended_politely():\n"
        "        exec('signal.raise_signal(signal.SIGTERM)')\n"
        "except (SystemExit, KeyboardInterrupt):\n"
        "    sys.exit(130)\n"
    )
    done = run_python("-m", "terminated", environment=environment | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130, done.stderr


def started(program: str, folder: Path) -> bool:
    """Whether a command whose temporary folder is this one has started a program of Flower's."""
    return any(program in command for command in processes_below(folder).values())


def check_clean_end(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "have ended" in output
    assert "Traceback" not in output


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_failing_demonstration_says_so_and_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    python = borrowing_environment(tmp_path / "env")
    superlink = python.with_name("flower-superlink")
    superlink.write_text("#!/bin/sh\necho no SuperLink today\nexit 1\n")
    superlink.chmod(0o755)
    done = run_python(
        *DEMO, f"results-dir={tmp_path / 'results'}", environment=environment, python=python
    )
    assert done.returncode == 1
    *_, first, last = done.stderr.splitlines()
    assert first == "error: Flower's SuperLink did not come up. Its log ends:"
    assert last == "no SuperLink today"


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_killed_demonstration_leaves_nothing(
    environment: dict[str, str], temporary: Path, tmp_path: Path
) -> None:
    with started_python(
        *(*DEMO, f"results-dir={tmp_path}"),
        environment=environment,
        until=lambda: started("flower-supernode", temporary),
    ) as process:
        children = psutil.Process(process.pid).children()
        (watchdog,) = [p for p in children if "flower_app.processes.watchdog" in p.cmdline()]
        process.kill()
        process.wait()
        # The watchdog ends when nothing is left that it could end.
        psutil.wait_procs([watchdog], timeout=PATIENCE)
        assert not watchdog.is_running()


@pytest.mark.integration
def test_a_demonstration_that_cannot_be_run_is_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["epsilon=1e-9", "delta=1e-12", f"results-dir={tmp_path}"]
    assert main(["deploy-demo", *arguments]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: epsilon = 1e-09 is wrong")
    assert "SuperLink" not in output.out


@pytest.mark.integration
def test_nothing_of_the_operators_outlives_a_deployment(tmp_path: Path) -> None:
    """As a command does that was being started when the demonstration was interrupted."""
    with Deployment(tmp_path) as deployment:
        left = subprocess.Popen(
            [sys.executable, "-c", "input()"], env=deployment.operator, stdin=subprocess.PIPE
        )
        assert left.pid in deployment.processes("operator")
    assert left.wait(timeout=60) == -signal.SIGTERM


def test_certificates_name_loopback_and_keys_are_the_owners_alone(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "certificates")
    authority = x509.load_pem_x509_certificate(made.ca.read_bytes())
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    key = make_node_key(tmp_path / "node", "node")
    for secret in (made.key, key.private):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert b"PRIVATE" not in made.ca.read_bytes() + key.public.read_bytes()


def test_check_data_accepts_a_good_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(
        tmp_path / "mine.npz",
        images=np.zeros((12, 28, 28), np.uint8),
        labels=np.arange(12) % 10,
    )
    assert main(["check-data", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "12 images" in output
    assert "0: 2, 1: 2, 2: 1" in output


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((3, 28, 28), np.uint8), np.array([0, 1, 11])),
        (np.zeros((3, 28, 28), np.float32), np.array([0, 1, 2])),
        (np.zeros((3, 28, 28), np.uint8), np.array([0, 1])),
    ],
)
def test_check_data_names_the_faulty_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    labels: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
) -> None:
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    assert main(["check-data", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "mine.npz" in captured.err
    assert "good" not in captured.out


def test_check_data_says_that_a_folder_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
