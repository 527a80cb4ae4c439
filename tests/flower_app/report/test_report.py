"""The page that a data-protection officer reads: whole, valid, and readable on a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flower_app.report.report import epsilon_alternatives, epsilon_chart, write_report
from flower_app.report.results_folder import ResultsFolder
from tests.flower_app.app_runs import Run

VOID = {"meta", "img", "br", "hr", "input", "link"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Checked(HTMLParser):
    """Every tag closed in order, identifiers unique, links inside the page, images described."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "p" and "p" in self.open:
            self.faults.append("a paragraph within a paragraph")
        if tag in ("td", "th") and "tr" not in self.open:
            self.faults.append(f"<{tag}> outside a row")
        if tag == "img" and not given.get("alt"):
            self.faults.append("an image without words")
        if given.get("id") in self.ids:
            self.faults.append(f"id {given['id']} twice")
        if given.get("id"):
            self.ids.add(str(given["id"]))
        if tag == "a":
            self.links.append(str(given.get("href")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An SVG element that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")


def faults(page: str) -> list[str]:
    checked = Checked()
    checked.feed(page)
    checked.close()
    lost = [link for link in checked.links if link.removeprefix("#") not in checked.ids]
    return [*checked.faults, *checked.open, *lost]


def test_the_checker_finds_faults() -> None:
    assert faults("<p><b>x</p></b>")
    assert faults("<div><img src='x'></div>")
    assert faults("<a href='#nowhere'>x</a>")
    assert not faults("<div id='here'><a href='#here'>x</a></div>")


def page_of(run: Run, folder: Path, **client_level: Any) -> str:
    """The page of a finished run whose client-level metrics were changed."""
    metrics = json.loads(json.dumps(run.metrics))
    metrics["privacy"]["client_level"].update(client_level)
    if client_level.get("encrypted", "") is None:
        metrics["encrypted"] = None
    config = json.loads((run.folder / "config.json").read_text())
    write_report(ResultsFolder(folder), metrics, config, {})
    return (folder / "report.html").read_text()


def test_the_page_is_valid_and_needs_nothing_else(small_run: Run) -> None:
    page = (small_run.folder / "report.html").read_text()
    assert not faults(page)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page


@pytest.mark.parametrize(
    "heading",
    [
        "What was promised, to whom, against whom",
        "Who trusted whom with what",
        "ε by round",
        "What other settings would have cost",
        "Encrypted inference: the certificate",
        "What is not counted, and not promised",
        "Check it yourself",
    ],
)
def test_the_page_answers(small_run: Run, heading: str) -> None:
    assert heading in (small_run.folder / "report.html").read_text()


def test_what_it_means_follows_from_epsilon(small_run: Run, tmp_path: Path) -> None:
    page = page_of(small_run, tmp_path, epsilon=1.0, delta=1e-5)
    assert "at most 73.11 %" in page  # e / (1 + e)
    assert "little protection" not in page
    assert "little protection" in page_of(small_run, tmp_path, epsilon=6.0)


def test_a_run_that_is_not_private_says_so(small_run: Run, tmp_path: Path) -> None:
    page = page_of(
        small_run,
        tmp_path,
        private=False,
        epsilon=None,
        noise_multiplier=None,
        epsilon_by_round=[],
        rounds=0,
        encrypted=None,
    )
    assert not faults(page)
    assert "This run is not private" in page
    assert "nearly as likely" not in page
    assert "What other settings would have cost" not in page
    assert "certificate" not in page


def test_settings_and_reasons_cannot_write_into_the_page(small_run: Run, tmp_path: Path) -> None:
    page = page_of(small_run, tmp_path, stopped="<script>alert(1)</script>")
    assert "<script" not in page
    assert html.escape("<script>") in page


def test_the_costs_of_other_settings_are_those_of_accounting(small_run: Run) -> None:
    client_level = small_run.metrics["privacy"]["client_level"]
    own, others = epsilon_alternatives(client_level)
    assert own == pytest.approx(client_level["epsilon"], rel=1e-6)
    assert others["twice the noise"] < own < others["half the noise"]
    assert others["half the rounds"] < own < others["twice the rounds"]
    assert others["half the sampling rate"] < own < others["everyone in every round"]
    assert epsilon_alternatives({**client_level, "noise_multiplier": None}) == (None, {})
    assert epsilon_alternatives({**client_level, "sampling": "fixed-size"}) == (None, {})


def test_the_chart_ends_at_what_was_spent() -> None:
    chart = epsilon_chart([1.0, 2.0, 2.5], budget=3.0)
    assert chart is not None
    assert "rises to 2.5 after 3 rounds" in chart
    assert chart.count(",") == 3  # a point a round
    assert epsilon_chart([], budget=3.0) is None


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(
    small_run: Run, tmp_path: Path, width: int
) -> None:
    page = (small_run.folder / "report.html").read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:{width}px;height:900px" srcdoc="{html.escape(page)}" '
        'onload="const d = this.contentDocument; document.title = [d.documentElement.scrollWidth,'
        "d.querySelectorAll('img').length].join()\"></iframe>"
    )
    shown = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         frame.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>(\d+),(\d+)</title>", shown.stdout)
    assert found is not None, shown.stderr[-500:]
    assert int(found[1]) <= width
    assert int(found[2]) == 4
