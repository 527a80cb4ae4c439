"""The page that a data-protection officer reads: whole, valid, and readable on a phone."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flower_app.report.classes import by_class, commonest_class, confusion
from flower_app.report.report import epsilon_alternatives, write_report
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


def test_a_round_that_was_not_paid_is_not_in_the_table(small_run: Run, tmp_path: Path) -> None:
    page = page_of(small_run, tmp_path, epsilon_by_round={"2": 0.25, "4": 0.5})
    rows = re.findall(
        r'<tr><td class="number">(\d+)</td>\s*<td class="number">([\d.]+)</td></tr>', page
    )
    assert rows == [("2", "0.2500"), ("4", "0.5000")]


def test_a_run_that_is_not_private_says_so(small_run: Run, tmp_path: Path) -> None:
    page = page_of(
        small_run,
        tmp_path,
        private=False,
        epsilon=None,
        noise_multiplier=None,
        epsilon_by_round={},
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


def test_the_verdict_is_the_largest_advantage_in_words(small_run: Run, tmp_path: Path) -> None:
    for advantage, word, success in (
        (0.0, "Strong protection", "50.00 %"),
        (0.101, "Good protection", "55.05 %"),
        (0.5, "Moderate protection", "75.00 %"),
        (0.85, "Weak protection", "92.50 %"),
        (0.95, "Next to no protection", "97.50 %"),
        (1.0, "No protection", "100.00 %"),
    ):
        page = page_of(small_run, tmp_path, attack_advantage=advantage)
        assert f"<strong>{word}.</strong>" in page
        assert f">{success}</div>" in page


def test_classes_are_counted_and_shown() -> None:
    labels, answers = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    matrix = confusion(answers, labels, names=["no", "yes", "perhaps"])
    assert matrix["counts"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    no, yes, perhaps = by_class(matrix)
    assert (no["recall"], no["precision"], no["count"]) == (2 / 3, 1.0, 3)
    assert (yes["recall"], yes["precision"], yes["count"]) == (1.0, 0.5, 1)
    assert (perhaps["recall"], perhaps["precision"], perhaps["count"]) == (None, None, 0)
    assert commonest_class(matrix) == 0.75


def test_nothing_stands_in_the_page_twice(small_run: Run) -> None:
    page = (small_run.folder / "report.html").read_text()
    page = page[page.index("<body>") : page.index("settings of this run")]
    paragraphs = [" ".join(p.split()) for p in re.findall(r"<(?:p|li|td)>(.{60,}?)</", page, re.S)]
    assert len(paragraphs) == len(set(paragraphs))
    assert page.count('role="img"') == 5  # four pictures and the scale


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
        "d.querySelectorAll('figure svg').length].join()\"></iframe>"
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


def test_a_run_in_turns_needs_no_secrecy_and_says_so_throughout(
    small_run: Run, tmp_path: Path
) -> None:
    """Nor is noise that is taken back held against a single round's sum."""
    page = " ".join(page_of(small_run, tmp_path, sampling="cyclic-groups").split())
    assert "secrecy about who was asked" in page
    assert "does not learn who was drawn" not in page
    assert "but not who was drawn" not in page
    assert "later rounds take a part of it back" in page
    assert not faults(page)
    usual = " ".join(page_of(small_run, tmp_path, sampling="poisson").split())
    assert "does not learn who was drawn" in usual
    assert "but not who was drawn" in usual
