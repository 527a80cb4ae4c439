"""Every link of every page leads somewhere: pages, their headings, pictures and source files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").glob("*/README.md"),
]
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What can stand behind ``#``: as GitHub makes it of headings, and as the site does."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", page.read_text()), re.MULTILINE)
    text = [re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading) for heading in headings]
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in text]
    assert len(set(slugs)) == len(slugs), f"{page}: two headings with one anchor"
    return set(slugs)


def broken(page: Path, text: str) -> list[str]:
    """The links of a page's text that lead nowhere; ``code`` has none."""
    lost = []
    prose = re.sub(r"(`+)[^`]+?\1", "", FENCE.sub("", text))
    for link in re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", prose):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_pages_that_code_names_are_there() -> None:
    """Messages and docstrings send readers to ``docs/…``."""
    folders = ("privacy", "strategies", "flower_app", "benchmarks", "tools", "tests", "examples")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    named: dict[str, Path] = {}
    for file in [*files, ROOT / "pyproject.toml", ROOT / "Makefile"]:
        for path in re.findall(r"\bdocs/[\w./-]+\.md\b", file.read_text()):
            named[path] = file
    assert len(named) > 10
    assert {path: str(file) for path, file in named.items() if not (ROOT / path).exists()} == {}


def test_tests_and_files_that_pages_name_are_there() -> None:
    """What a page says is tested, by a test's name or by the path of a file."""
    files = list((ROOT / "tests").rglob("*.py"))
    there = {file.stem for file in files}
    for file in files:
        there |= set(re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    tests = set(re.findall(r"`(?:[\w/]+\.py::)?(test_[a-z]+_\w+)", text))
    assert len(tests) > 30
    assert sorted(tests - there) == []
    paths = set(re.findall(r"`((?:tests|benchmarks|tools|fuzz)/[\w/]+\.py)", text))
    assert len(paths) > 20
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "docs" / "index.md"
    assert "(glossary.md)" in page.read_text()
    for wrong in ("nowhere.md", "glossary.md#nowhere", "../../outside.md"):
        text = page.read_text().replace("(glossary.md)", f"({wrong})")
        assert broken(page, text) == [wrong]
