"""What the integration tests share."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_app.processes.watchdog import processes_below


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--empty-environment",
        action="store_true",
        help="install the wheel, and all it asks for, into an environment that has nothing yet",
    )


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Commands under test take Ctrl-C, also where the tests run in a shell's background.

    There SIGINT is ignored, and who inherits that is not interrupted.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where a command under test makes its folders; nothing of it may outlive the command.

    Not below ``tmp_path``: Ray keeps sockets in it, and a socket's path must be short.
    """
    folder = Path(tempfile.mkdtemp(prefix="test-"))
    yield folder
    left = processes_below(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    remaining = list(folder.glob("bloomseal-*"))
    shutil.rmtree(folder)
    assert not left, "a process outlived the command"
    assert not remaining, "keys or data outlived the command"


@pytest.fixture
def environment(temporary: Path) -> dict[str, str]:
    """The environment of somebody who has set nothing of Flower's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    return clean | {"TMPDIR": str(temporary)}
