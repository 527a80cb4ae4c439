"""The tutorials' programs run as they stand, and their pages and notebooks show nothing else."""

import re
import runpy
from pathlib import Path

import pytest

from tools import pages

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
FRESH = pages.pages()


@pytest.mark.parametrize("page", FRESH, ids=lambda page: page.stem)
def test_pages_are_what_their_sources_give(page: Path) -> None:
    assert FRESH[page] == page.read_text(), "write them again: make pages"


@pytest.mark.parametrize("program", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_a_page_shows_its_program_from_beginning_to_end(program: Path) -> None:
    page = TUTORIALS / f"{program.stem.replace('_', '-')}.md"
    shown = [m for m in pages.PROGRAM.finditer(page.read_text()) if program.name in m[2]]
    assert [int(m[3]) for m in shown] == list(range(1, len(pages.cells(program)) + 1))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("mnist", r"test accuracy 9[5-9].*answer 7, in truth 7"),
        ("audit", r"0\.\d\d\nnot contradicted\n.*\ncontradicted\n0\.673\n"),
    ],
)
def test_a_program_runs(
    program: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those without a notebook; MNIST comes from the cache that tests share."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(TUTORIALS / f"{program}.py"))
    assert re.search(says, capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("fedavg.ipynb", r"plain: accuracy 9\d.*private: accuracy [7-9]\d.*ε"),
        ("encrypted-questions.ipynb", "20 of 20 encrypted answers"),
    ],
)
def test_a_notebook_runs_and_is_its_program(path: str, says: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    committed = nbformat.read(TUTORIALS / path, as_version=4)
    program = pages.NOTEBOOKS[TUTORIALS / path]
    fresh = pages.executed(program)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in fresh.cells]
    for run in (committed, fresh):
        text = "".join(out.get("text", "") for c in run.cells for out in c.get("outputs", ()))
        assert re.search(says, text, re.DOTALL)
    assert (TUTORIALS / path).stat().st_size < 30_000
