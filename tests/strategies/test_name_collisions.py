"""A host project whose own modules have our names is told so, and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fails_with(host: Path, program: str) -> str:
    """The last line of what Python says of a program in the host's folder."""
    (host / "main.py").write_text(f"import sys\nsys.path.insert(1, {str(ROOT)!r})\n{program}\n")
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=host,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("privacy.py", "POLICY = 'we keep your data for ever'"),
        ("privacy/__init__.py", ""),
    ],
)
def test_a_privacy_of_the_hosts_own(tmp_path: Path, path: str, content: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    said = fails_with(tmp_path, "from strategies import DPFedAvg")
    assert said.startswith("ImportError: 'privacy' is")
    assert str(tmp_path / "privacy") in said
    assert str(ROOT / "privacy") in said
    assert "Rename it, or move it into your app's own package" in said


def test_a_strategies_of_the_hosts_own(tmp_path: Path) -> None:
    """Our code does not run at all; Python itself names the file that hides it."""
    (tmp_path / "strategies.py").write_text("")
    said = fails_with(tmp_path, "from strategies import DPFedAvg")
    assert said.startswith("ImportError: cannot import name 'DPFedAvg' from 'strategies'")
    assert str(tmp_path / "strategies.py") in said
