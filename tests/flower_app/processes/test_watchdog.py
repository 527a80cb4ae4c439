"""A command that is killed outright leaves no process behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]

COMMAND = """
import os, subprocess, sys
from pathlib import Path
from flower_app.processes.watchdog import watchdog

home = Path(sys.argv[1])
environment = os.environ | {"FLWR_HOME": str(home / "node")}
with watchdog(home):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        env=environment,
        start_new_session=True,
    )
    print(child.pid, flush=True)
    if sys.stdin.read() == "end":
        child.kill()
        child.wait()
"""


def start(home: Path) -> tuple["subprocess.Popen[str]", int]:
    home.mkdir()
    (home / "key").write_text("secret")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(home)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_what_a_killed_command_started_is_ended_and_its_folder_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process, child = start(home)
    watching = [
        p for p in psutil.process_iter() if str(home) in _arguments(p) and p.pid != process.pid
    ]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs([*watching, *_known(child)], timeout=60)
    assert not alive
    assert not home.exists()


def test_a_command_that_ends_by_itself_keeps_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process, child = start(home)
    process.communicate("end")
    assert process.returncode == 0
    assert not psutil.pid_exists(child)
    assert (home / "key").exists()
    assert not [p for p in psutil.process_iter() if str(home) in _arguments(p)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _known(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []
