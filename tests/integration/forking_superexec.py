"""A ``flower-superexec`` that forks its apps: each has a process of its own, as with Flower's.

Flower starts a Python for each message and each run, which imports Flower and PyTorch anew: most of
what a small one costs. Here they are imported once, and nothing of bloomseal is: a forked app loads
that from the bundle of its run, as a started one does. The demonstration over clients, in
``test_deploy``, has Flower start them.
"""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import torch  # noqa: F401 (for the apps)
from flwr.supercore.cli import flower_superexec
from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp

APPS = {"flwr-clientapp": flwr_clientapp, "flwr-serverapp": flwr_serverapp}


def fork(command: list[str], **output: Any) -> None:
    """In the place of ``Popen``: run one of Flower's programs in a fork of this process."""
    if os.fork():
        return
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        registered_exit_handlers.clear()
        if output:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        sys.argv = command
        APPS[command[0]]()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how an app ended
    launcher: Any = subprocess_executor
    launcher.subprocess = SimpleNamespace(Popen=fork, DEVNULL=subprocess.DEVNULL)
    flower_superexec()
