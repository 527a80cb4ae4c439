"""The site: it has every page and every public name, and is built without a fault."""

import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tools import site


def leaves(entries: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from leaves(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(leaves(tomllib.loads(site.config(site.DOCS))["project"]["nav"]))
    assert len(set(listed)) == len(listed)
    written = {page.relative_to(site.DOCS).as_posix() for page in site.DOCS.rglob("*.md")}
    assert set(listed) == written, "the navigation is in tools/site.toml"


def test_every_public_name_is_in_the_reference() -> None:
    names = {name for names in site.public_packages().values() for name in names}
    assert {"strategies.DPFedAvg", "privacy.training.errors.LocalBudgetError"} <= names
    for package in site.public_packages():
        module = __import__(package, fromlist=["_"])
        for name in getattr(module, "__all__", ()):
            assert f"{package}.{name}" in names


@pytest.mark.skipif(find_spec("zensical") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_fault(capfd: pytest.CaptureFixture[str]) -> None:
    status = site.main()
    told = capfd.readouterr()
    assert status == 0, told.out + told.err
    page = (site.BUILD / "site" / "how-to" / "strategy.html").read_text()
    assert "unpkg.com" not in page
    api = (site.BUILD / "site" / "reference" / "api" / "privacy.accounting.html").read_text()
    assert 'id="privacy.accounting.Budget"' in api


def test_faults_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text('<h1 id="top">x</h1><a href="#top">y</a><a href="gone.html">z</a>')
    (tmp_path / "other.html").write_text(
        '<a href="index.html#nowhere">x</a><script src="https://unpkg.com/x.js"></script>'
    )
    assert list(site.faults(tmp_path)) == [
        "index.html: gone.html leads nowhere",
        "other.html: https://unpkg.com/x.js: loaded from elsewhere",
        "other.html: index.html#nowhere has no such heading",
    ]
