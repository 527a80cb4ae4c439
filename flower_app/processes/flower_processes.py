"""Flower's programs as processes of ours: started, followed, and ended with all they started."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from flower_app.errors import RunFailedError
from flower_app.processes.watchdog import kill_below, processes_below, watchdog
from flower_app.report.outcome import FOLDER_VARIABLE
from flower_app.report.software import COMMIT_VARIABLE, INSTALLED_PROJECT, PACKAGES, commit

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 180.0
_LEAVE_SECONDS = 15.0
_SERVER_APPS = ("flwr-serverapp", "flwr-simulation")


@contextlib.contextmanager
def superlink(home: Path) -> Iterator[dict[str, str]]:
    """A simulating SuperLink on free loopback ports, with its own Flower home.

    Parameters
    ----------
    home : Path
        An existing folder, for this SuperLink alone; removed if this process is killed.

    Yields
    ------
    dict of str to str
        The environment in which the ``flwr`` command finds it, as the connection ``local``.

    Raises
    ------
    RunFailedError
        If it does not come up.
    """
    port, control = free_ports(2)
    environment = flower_environment(home) | {FOLDER_VARIABLE: str(home / "outcomes")}
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    log = home / "superlink.log"
    command = [
        program("flower-superlink"),
        *("--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--control-api-address", f"127.0.0.1:{control}"),
    ]
    with watchdog(home):
        process = started(command, environment, log)
        try:
            wait_until_up(process, f"http://127.0.0.1:{port}", log)
            yield environment
        finally:
            with killed_by_signals(home):
                end_group(process)
                end_detached(home)


def started(
    command: list[str], environment: dict[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, so that Ctrl-C reaches us first and all of it can end."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process: its own home, no telemetry, no downloads."""
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        COMMIT_VARIABLE: commit() or "",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def handled_signals(handle: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C or ``SIGTERM`` call ``handle`` during the block."""
    if threading.current_thread() is not threading.main_thread():  # signals are not ours
        yield
        return
    ending = (signal.SIGTERM, signal.SIGINT)
    before = {each: signal.signal(each, lambda *_: handle()) for each in ending}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def killed_by_signals(home: Path) -> Iterator[None]:
    """Let Ctrl-C or ``SIGTERM`` kill all below ``home`` during the block, without leaving it."""

    def kill() -> None:
        print("Ending Flower's processes at once.", file=sys.stderr, flush=True)
        kill_below(home)

    with handled_signals(kill):
        yield


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all it started: first politely, then not."""
    for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
    # Children that outlived their parent still carry its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_server_app(home: Path) -> None:
    """Kill the ServerApps below a folder; payments and releases are durable before their use."""
    for pid, command in processes_below(home).items():
        if any(name in command for name in _SERVER_APPS):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def end_detached(home: Path) -> None:
    """Wait until processes that Flower detached have left too, or end them.

    They look for their parent five times a second, and leave when it is gone.
    """
    deadline = time.monotonic() + _LEAVE_SECONDS
    while processes_below(home):
        if time.monotonic() > deadline:
            kill_below(home)
        time.sleep(0.1)


def wait_until_up(
    process: "subprocess.Popen[bytes]",
    url: str,
    log: Path,
    *,
    context: ssl.SSLContext | None = None,
) -> None:
    """Wait until a SuperLink answers.

    Raises
    ------
    RunFailedError
        If it ends, or has not answered after three minutes, with the end of its log.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            trust = context or True
            if httpx.get(f"{url}/health", timeout=1, verify=trust, trust_env=False).is_success:
                return
        time.sleep(0.2)
    words = log.read_text(errors="replace").strip()[-1500:]
    raise RunFailedError(f"Flower's SuperLink did not come up. Its log ends:\n{words}")


def app_folder(scratch: Path) -> Path:
    """The folder that ``flwr run`` takes, made below ``scratch``: a copy of the packages alone.

    Flower looks at each file of the folder that it bundles. A wheel's packages lie among everybody
    else's; those of a clone beside its virtual environment, in which that takes many seconds.
    """
    project = INSTALLED_PROJECT if INSTALLED_PROJECT.exists() else _ROOT / "pyproject.toml"
    app = scratch / "bloomseal"
    for package in PACKAGES:
        shutil.copytree(
            _ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copyfile(project, app / "pyproject.toml")
    shutil.copyfile(project.with_name("LICENSE"), app / "LICENSE")
    return app


def program(name: str) -> str:
    """A program of the environment that this one runs in."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name
