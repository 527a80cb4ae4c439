"""Each page about one part begins with a program that can be pasted and run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("strategy.md", "Privacy"),
        ("client-training.md", "weight=60"),
        ("secure-aggregation.md", "the sum is right"),
        ("encrypted-inference.md", "ring degree"),
    ],
)
def test_the_first_program_of_a_page_runs(page: str, says: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text()
    program = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert program is not None
    path = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + program[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
