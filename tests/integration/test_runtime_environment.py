"""The environments that Flower makes for an app's dependencies on nodes that lack them.

Shown on an app that has nothing of ours and asks for nothing, so that no network is needed.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deployment.md"

APP = """
[project]
name = "app"
version = "1.0.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "example"

[tool.flwr.app.components]
serverapp = "app.server:app"
clientapp = "app.client:app"
"""

# What a ClientApp's process does with its environment, by the names that Flower's `run_clientapp`
# does it: it makes it, says where it is, and at its end removes it, twice.
CLIENTAPP = """
import importlib, sys
from flwr.supercore.exit.exit_handler import trigger_exit_handlers

flower = importlib.import_module("flwr.supernode.runtime.run_clientapp")
_, project, token = sys.argv
folder = flower.install_app_dependencies(project, launch_id=token, run_id=7)
print(folder, flush=True)
sys.stdin.read()
trigger_exit_handlers(run_before_force_exit=False)
flower.cleanup_app_runtime_environment(folder)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text(APP)
    return tmp_path / "app"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A SuperNode's Flower home."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@contextlib.contextmanager
def client_app(home: Path, program: str, app: Path, token: str) -> Iterator[Path]:
    """One ClientApp of a run, and where its dependencies lie."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(app), token],
        env=os.environ | {"FLWR_HOME": str(home), "UV_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Path(process.stdout.readline().strip())
    finally:
        process.communicate()
    assert process.returncode == 0


def test_flower_removes_an_environment_that_another_message_is_using(app: Path, home: Path) -> None:
    """If this fails, Flower has mended it, and the page can do without its program."""
    with client_app(home, CLIENTAPP, app, "later") as later:
        with client_app(home, CLIENTAPP, app, "earlier") as earlier:
            assert earlier == later
            assert later.is_dir()
        assert not later.exists()


def test_with_the_program_of_the_deployment_page_it_does_not(app: Path, home: Path) -> None:
    (written,) = re.findall(r"```python\n#!/srv.*?\n(.*?)```", PAGE.read_text(), re.DOTALL)
    guard = written.removesuffix("flwr_clientapp()\n")
    assert guard != written
    with client_app(home, guard + CLIENTAPP, app, "later") as later:
        with client_app(home, guard + CLIENTAPP, app, "earlier") as earlier:
            assert earlier == later
        assert later.is_dir()
    assert later.is_dir(), "the run's next message would have to fill it again"
