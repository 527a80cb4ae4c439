"""A SuperLink and its SuperNodes as processes on this machine: TLS and node keys, over loopback."""

import contextlib
import os
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flower_app.errors import RunFailedError
from flower_app.processes.certificates import NodeKey, make_certificates, make_node_key
from flower_app.processes.flower_processes import (
    app_folder,
    end_detached,
    end_group,
    flower_environment,
    free_ports,
    killed_by_signals,
    program,
    started,
    wait_until_up,
)
from flower_app.processes.watchdog import processes_below, watchdog
from flower_app.report.outcome import FOLDER_VARIABLE
from flower_app.settings import write_run_config
from privacy.json_text import read_json

CONNECTION = "deployment"
_ONLINE_SECONDS = 300.0
_ASK_SECONDS = 10.0
_ADMITTED = "SuperNode ID"  # in the log of a SuperNode that the SuperLink has let in


@dataclass(frozen=True)
class Node:
    """A SuperNode of the deployment.

    ``home`` is its own folder, with Flower's home, log and state; its ClientApp reaches it at
    ``port``, on loopback; ``config`` is its ``--node-config`` without its folders. A silo has a
    ``policy``, the file of its owner, which says where its ledger is; it needs no ``state``.
    """

    name: str
    home: Path
    data: Path
    key: NodeKey
    port: int
    config: str = ""
    policy: Path | None = None

    @property
    def state(self) -> Path:
        """Its ledgers and secrets. Mode 0700."""
        return self.home / "state"

    @property
    def log(self) -> Path:
        """Its output."""
        return self.home / "supernode.log"


class Deployment:
    """A deployment that lasts as long as its ``with`` block, and leaves no process behind.

    The SuperLink, the operator and each SuperNode have a folder each below ``folder``, as on
    machines of their own.

    Attributes
    ----------
    node_ids : dict of str to int
        Of each registered SuperNode.
    superlink : subprocess.Popen
        The SuperLink, once it has been started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.port = free_ports(1)[0]
        self.certificates = make_certificates(self.folder / "certificates")
        self.operator = self._environment("operator")
        (Path(self.operator["FLWR_HOME"]) / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.certificates.ca}"\n'
        )
        self._app = app_folder(self.folder / "app")
        self.node_ids: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._block = contextlib.ExitStack()
        self._block.enter_context(watchdog(self.folder))
        return self

    def __exit__(self, *error: object) -> None:
        with self._block, killed_by_signals(self.folder):
            self.stop()

    def start_superlink(self, *, variables: dict[str, str] | None = None) -> None:
        """Start the SuperLink, and wait until it answers over TLS.

        Its database is in its folder, so that a second start knows the registered SuperNodes.
        ``variables`` are added to its environment.

        Raises
        ------
        RunFailedError
            If it does not come up.
        """
        log = self.folder / "superlink" / "superlink.log"
        environment = self._environment("superlink") | (variables or {})
        self.superlink = self._start(
            "superlink",
            [
                program("flower-superlink"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--ssl-certfile", str(self.certificates.certificate)),
                *("--ssl-keyfile", str(self.certificates.key)),
                *("--ssl-ca-certfile", str(self.certificates.ca)),
                "--enable-supernode-auth",
                *("--database", str(log.with_name("superlink.db"))),
            ],
            environment,
            log,
        )
        trust = ssl.create_default_context(cafile=str(self.certificates.ca))
        wait_until_up(self.superlink, f"https://127.0.0.1:{self.port}", log, context=trust)

    def new_node(
        self, name: str, data: Path, *, config: str = "", policy: Path | None = None
    ) -> Node:
        """Make a SuperNode's folder and key; it is neither registered nor started."""
        home = self.folder / name
        (home / "state").mkdir(parents=True, mode=0o700)
        key = make_node_key(home / "key", "node")
        return Node(name, home, data, key, free_ports(1)[0], config, policy)

    def register(self, node: Node) -> None:
        """Register a SuperNode's public key with the SuperLink, so that it may connect."""
        reply = self.ask("supernode", "register", str(node.key.public), CONNECTION)
        self.node_ids[node.name] = int(reply["node-id"])

    def start_node(
        self,
        node: Node,
        *,
        options: tuple[str, ...] | None = None,
        variables: dict[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a SuperNode; ``variables`` are added to its environment.

        By default the ``options`` of its connection are the authority's certificate and its key.
        """
        kept = f'state-dir="{node.state}"' if node.policy is None else f'policy="{node.policy}"'
        if options is None:
            options = (
                *("--root-certificates", str(self.certificates.ca)),
                *("--auth-supernode-private-key", str(node.key.private)),
            )
        return self._start(
            node.name,
            [
                program("flower-supernode"),
                *("--superlink", f"127.0.0.1:{self.port}"),
                *options,
                *("--host", "127.0.0.1", "--port", str(node.port)),
                "--node-config",
                f'data-dir="{node.data}" {kept} {node.config}',
            ],
            self._environment(node.name) | (variables or {}),
            node.log,
        )

    def wait_until_online(self, *names: str) -> None:
        """Wait until the SuperLink lists these SuperNodes as online.

        Raises
        ------
        RunFailedError
            If one is not after five minutes, with the end of its log.
        """
        begun = time.monotonic()
        ask = begun + _ASK_SECONDS
        while True:
            # Each question starts a command, which takes a second of a processor that the
            # SuperNodes need to start. So their own logs are looked at first.
            if all(_ADMITTED in self._log(name) for name in names) or time.monotonic() > ask:
                missing = set(names) - self.online()
                if not missing:
                    return
                if time.monotonic() > begun + _ONLINE_SECONDS:
                    name = min(missing)
                    raise RunFailedError(
                        f"{name} did not come online. Its log ends:\n{self._log(name)[-1500:]}"
                    )
                ask = time.monotonic() + _ASK_SECONDS
            time.sleep(0.5)

    def online(self) -> set[str]:
        """The names of the registered SuperNodes that the SuperLink lists as online."""
        listed = self.ask("supernode", "list", CONNECTION)
        there = {int(node["node-id"]) for node in listed["nodes"] if node["status"] == "online"}
        return {name for name, node_id in self.node_ids.items() if node_id in there}

    def flwr(self, *arguments: str) -> str:
        """The output of a ``flwr`` command of the operator's; ``RunFailedError`` if it fails."""
        done = subprocess.run(
            [program("flwr"), *arguments],
            env=self.operator,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RunFailedError(f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The JSON that a ``flwr`` command of the operator's prints; raises as :meth:`flwr`."""
        reply: dict[str, Any] = read_json(self.flwr(*arguments, "--format", "json"))
        if not reply.get("success"):  # it may exit with 0 all the same
            raise RunFailedError(f"flwr {' '.join(arguments)} failed: {reply}")
        return reply

    def run_command(self, settings: dict[str, Any]) -> list[str]:
        """The operator's command that runs the app on this deployment."""
        runs = self.folder / "runs"
        runs.mkdir(exist_ok=True)
        config = write_run_config(settings, runs / f"{sum(1 for _ in runs.iterdir())}.toml")
        return [
            *(program("flwr"), "run", str(self._app), CONNECTION),
            *("--run-config", str(config)),
        ]

    def processes(self, of: str) -> dict[int, str]:
        """Process id to command line, of all processes of one party."""
        return processes_below(self.folder / of)

    def stop(self) -> None:
        """End everything: SuperNodes first, then the SuperLink."""
        self._end([name for name in self._processes if name != "superlink"])
        self._end(["superlink"])
        # A command of the operator's may have been interrupted while it was being started.
        for pid in self.processes("operator"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end_detached(self.folder)

    def _end(self, names: list[str]) -> None:
        processes = [self._processes.pop(name) for name in names if name in self._processes]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            end_group(process)
        for name in names:
            end_detached(self.folder / name)

    def _log(self, name: str) -> str:
        """What a SuperNode has written; empty before its first line."""
        log = self.folder / name / "supernode.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _environment(self, party: str) -> dict[str, str]:
        home = self.folder / party
        home.mkdir(parents=True, exist_ok=True)
        return flower_environment(home) | {FOLDER_VARIABLE: str(self.folder / "outcomes")}

    def _start(
        self, name: str, command: list[str], environment: dict[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        self._processes[name] = started(command, environment, log)
        return self._processes[name]
