"""``python -m flower_app run``: a simulation with a SuperLink of its own, gone when it ends."""

import argparse
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flower_app.errors import CommandFailed
from flower_app.settings import SettingError, Settings

PROJECT = Path(__file__).parents[1]
_START_SECONDS = 180.0
_LEAVE_SECONDS = 15.0


class RunFailed(CommandFailed):
    """A run that did not finish; the message says why and where to look."""


def add_command(commands: Any) -> None:
    """Add ``run`` to the app's command line."""
    parser = commands.add_parser(
        "run",
        description="Starts a Flower SuperLink of its own on free loopback ports, runs the app in "
        "simulation in the environment it was called from, and stops the SuperLink. Flower's "
        "telemetry is off.",
        epilog="Settings: " + ", ".join(Settings().as_config()),
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="settings of the run, for instance model=cnn epsilon=8",
    )
    parser.add_argument("--nodes", type=int, default=1000, help="simulated SuperNodes (1000)")
    parser.add_argument(
        "--cpus", type=int, default=os.cpu_count() or 1, help="cores to use (all of them)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the app in simulation.

    Raises
    ------
    SettingError
        Before anything is started, if a setting is wrong.
    RunFailed
        If the run did not finish.
    """
    overrides = parse_settings(options.settings)
    overrides.setdefault("results-dir", str(PROJECT / "results"))
    Settings.from_config(overrides)
    if options.nodes < 1:
        raise SettingError(f"--nodes {options.nodes} is wrong; it must be at least 1")
    print(f"Simulating {options.nodes:,} SuperNodes on {options.cpus} cores.")
    print("Flower's telemetry is off for this run (FLWR_TELEMETRY_ENABLED=0).", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="bloomseal-flwr-") as home,
        superlink(Path(home)) as environment,
    ):
        return _submit(overrides, options, environment)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; values are TOML, and bare words are text.

    Raises
    ------
    SettingError
        If a pair has no name or no value.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise SettingError(f"{pair!r} is not a setting; write name=value, as in model=cnn")
        try:
            settings[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name.strip()] = text
    return settings


@contextlib.contextmanager
def superlink(home: Path) -> Iterator[dict[str, str]]:
    """A simulating SuperLink on free loopback ports, with its own Flower home.

    Yields
    ------
    dict of str to str
        The environment in which the ``flwr`` command finds it, as the connection ``local``.

    Raises
    ------
    RunFailed
        If it does not come up.
    """
    port, control = free_ports(2)
    environment = flower_environment(home)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    log = home / "superlink.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program("flower-superlink"),
                *("--insecure", "--simulation", "--isolation", "subprocess"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--control-api-address", f"127.0.0.1:{control}"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches us first, and all of it can be ended
        )
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}", log)
        yield environment
    finally:
        end_group(process)
        end_detached(home)


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of a Flower process of ours: its own home, no telemetry, no downloads."""
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


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


def end_detached(home: Path) -> None:
    """Wait until what Flower detached from an ended process has left too, or end it.

    It looks for its parent five times a second, and leaves when that is gone.
    """
    deadline = time.monotonic() + _LEAVE_SECONDS
    while left := processes_below(home):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes_below(folder: Path) -> dict[int, str]:
    """Process id to command, of all whose Flower home is this folder or lies in it.

    Found by their environment, so that those that Flower detaches are found too. Where there is
    no ``/proc``, none are found.
    """
    home = f"\0FLWR_HOME={folder}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = b"\0" + (entry / "environ").read_bytes()
            if home + b"\0" in environment or home + b"/" in environment:
                command = (entry / "cmdline").read_bytes()
                if command:  # not one that has ended and is only not yet reaped
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode().strip()
    return found


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
    RunFailed
        If it ends, or has not answered after three minutes, with its last words.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            # The address is our own, never a stranger's.
            urllib.request.urlopen(f"{url}/health", timeout=1, context=context).close()  # noqa: S310
            return
        time.sleep(0.2)
    words = log.read_text(errors="replace").strip()[-1500:]
    raise RunFailed(f"Flower's SuperLink did not come up. Its last words:\n{words}")


def program(name: str) -> str:
    """A program of the environment that this one runs in."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _submit(
    overrides: dict[str, Any], options: argparse.Namespace, environment: dict[str, str]
) -> int:
    federation = {
        "num-supernodes": options.nodes,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": options.cpus,
    }
    command = [
        *(program("flwr"), "run", str(PROJECT), "local", "--stream"),
        *("--run-config", run_config(overrides)),
        *("--federation-config", " ".join(f"{k}={v}" for k, v in federation.items())),
    ]
    return follow(command, environment, Path(overrides["results-dir"]))


def follow(command: list[str], environment: dict[str, str], results: Path) -> int:
    """Show a run's log until its results are in place.

    Returns
    -------
    int
        An exit code: 0, or 130 after Ctrl-C.

    Raises
    ------
    RunFailed
        If the run ended without results.
    """
    begun = time.time()
    stream = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        while stream.poll() is None:
            time.sleep(1)
            # The stream may linger for a minute after the run has ended.
            if _finished(results, begun):
                time.sleep(2)
                break
    except KeyboardInterrupt:
        print("\nStopping.", file=sys.stderr)
        return 130
    finally:
        if stream.poll() is None:
            stream.terminate()
            stream.wait()
    if not _finished(results, begun):
        raise RunFailed("the run ended without results; what went wrong stands above")
    return 0


def _finished(results: Path, begun: float) -> bool:
    """Whether a run has put its finished results in place since then."""
    metrics = results / "latest" / "metrics.json"
    try:
        return metrics.stat().st_mtime >= begun
    except OSError:
        return False


def run_config(settings: dict[str, Any]) -> str:
    """Settings as ``flwr run --run-config`` takes them."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
