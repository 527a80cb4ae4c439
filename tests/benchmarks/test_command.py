"""The benchmarks' doors: what is listed, what is drawn, and that docs/results is not typed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import __main__ as command
from benchmarks import _compare, _results
from benchmarks.harness import Row, Spread
from benchmarks.rounds import measure as rounds
from benchmarks.rounds.training import Clients, Protection, Work, accuracy_by_round
from benchmarks.utility import report as utility_report
from flower_app.measurements import TABLE
from privacy.mechanisms import SeededRandomness

ROOT = Path(__file__).parents[2]


def document(name: str, *rows: Row) -> dict[str, Any]:
    machine = {"cores": 2, "processor": "P", "python": "3.11", "packages": {"bloomseal": "0.2.0"}}
    figures = [row.as_dict() for row in rows]
    return {"benchmark": name, "quick": False, "machine": machine, "rows": figures}


WON = Row("one", "time", "s", Spread.of([1.0, 1.2]), Spread.of([3.0]), "them")
LOST = Row("two", "rate", "1/s", Spread.of([1.0]), Spread.of([4.0]), "them", True)
EVEN = Row("four", "epsilon", "", Spread.of([8.0]), Spread.of([7.99]), "them")
ALONE = Row("three", "size", "B", Spread.of([7.0]))


def test_every_benchmark_says_what_it_is_and_can_be_run() -> None:
    assert len(command.names()) >= 10
    for name in command.names():
        if name == "secure_aggregation":
            pytest.importorskip("flwr.common.secure_aggregation")
        benchmark = command.load(name)
        assert (benchmark.__doc__ or "").strip(), name
        assert callable(benchmark.run), name


def test_the_page_shows_where_a_peer_wins(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "noise.json").write_text(json.dumps(document("noise", WON, LOST, ALONE, EVEN)))
    missing = _results.write_pages(folder, names=["noise", "utility"], load=command.load)
    assert missing == ["utility"]
    index = (folder / "index.md").read_text()
    worst = "[noise](noise.md), two, rate: **0.25×** of them"
    assert f"| them | 3 | 1 | 1 | 1 | {worst} |" in index
    assert "Not measured here: utility." in index
    text = (folder / "noise.md").read_text()
    assert "| two | rate | 1 1/s | 4 1/s (them) | **0.25×** |" in text
    assert "| one | time | 1.1 s [1 to 1.2] | 3 s (them) | 2.727× |" in text
    assert "| three | size | 7 B |  |  |" in text
    assert "![noise](noise.png)" in text
    assert (folder / "noise.png").stat().st_size > 5_000


def test_where_the_peer_is_better_comes_first(tmp_path: Path) -> None:
    far = Row("five", "rate", "1/s", Spread.of([1.0]), Spread.of([50.0]), "them", True)
    hooks, ghost = replace(WON, peer_name="Opacus hooks"), replace(LOST, peer_name="Opacus ghost")
    plain = replace(LOST, peer_name="plain SGD")
    figures = {
        "aggregation": [WON, hooks],
        "noise": [WON, LOST, far],
        "soak": [ghost, plain],
    }
    for name, rows in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document(name, *rows)))
    _results.write_pages(tmp_path, names=list(figures), load=command.load)
    page = (tmp_path / "noise.md").read_text()
    cases = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if "(them)" in line]
    assert cases == ["five", "two", "one", "two", "five"]
    assert "Where the peer is better" not in (tmp_path / "aggregation.md").read_text()
    index = (tmp_path / "index.md").read_text()
    assert index.index("## Who wins") < index.index("## All benchmarks")
    assert "| 0.2.0 | P |" in index
    peers, baselines = index.split("## Who wins")[1].split("### Baselines")
    assert peers.index("| them | 4 | 2 | 0 | 2 |") < peers.index("| Opacus | 2 | 1 | 0 | 1 |")
    assert "of Opacus ghost" in peers
    assert "plain SGD" not in peers
    assert "| plain SGD | 1 | 0 | 0 | 1 |" in baselines


def test_no_baseline_counts_as_a_package() -> None:
    """Every name of the two lists is one that committed figures have, so that none is misspelt."""
    documents = _results.load_documents(ROOT / "docs" / "results", command.names())
    held = {row["peer_name"] for each in documents for row in each["rows"]}
    assert _results.PACKAGES.keys() | _results.BASELINES <= held
    assert not _results.PACKAGES.keys() & _results.BASELINES


def test_the_summary_holds_ours_the_peer_and_the_ratio() -> None:
    text = _results.summary([document("noise", WON, LOST, ALONE)])
    assert len(text.splitlines()) == 2 + 2  # what has no peer is left out
    assert "| noise | two | rate | 1 1/s | 4 1/s (them) | **0.25×** |" in text


@pytest.mark.parametrize("larger_is_better", [False, True])
@pytest.mark.parametrize(("ours", "peer"), [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
def test_there_is_no_ratio_to_or_of_nothing(
    ours: float, peer: float, larger_is_better: bool, tmp_path: Path
) -> None:
    """Else the JSON file would hold Infinity, which is no JSON, and its picture no bar."""
    sides = Spread.of([ours]), Spread.of([peer])
    row = Row("sums", "exchanges", "", *sides, "them", larger_is_better)
    assert row.ratio is None
    (folder := tmp_path / "results").mkdir()
    (folder / "noise.json").write_text(json.dumps(document("noise", row, WON)))
    _results.write_pages(folder, names=["noise"], load=command.load)
    assert (
        f"| sums | exchanges | {ours:g}  | {peer:g}  (them) |  |"
        in (folder / "noise.md").read_text()
    )


def test_the_committed_figures_are_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for file in (ROOT / "docs" / "results").glob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)


def test_the_committed_pages_are_what_the_figures_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same figures the command writes the same pages, letter for letter.

    Pictures are laid out and not painted: the tests of one picture each look at those.
    """
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: path.touch())
    committed = ROOT / "docs" / "results"
    folder = tmp_path / "results"
    folder.mkdir()
    for file in committed.glob("*.json"):
        (folder / file.name).write_text(file.read_text())
    _results.write_pages(folder, names=command.names(), load=command.load)
    pages = {file.name: file.read_text() for file in folder.glob("*.md")}
    same = pages == {file.name: file.read_text() for file in committed.glob("*.md")}
    assert same, "docs/results holds other figures than its pages: python -m benchmarks results"
    assert (folder / "utility.png").exists()


def test_the_committed_utility_page_is_what_the_figures_give(tmp_path: Path) -> None:
    committed = ROOT / "docs" / "explanation" / "utility.md"
    page = tmp_path / "utility.md"
    page.write_text(committed.read_text())
    figures = json.loads((ROOT / "docs" / "results" / "utility.json").read_text())
    utility_report.fill(page, figures)
    assert page.read_text() == committed.read_text(), "python -m benchmarks results"
    figures["rows"] = figures["rows"][:4]
    utility_report.fill(page, figures)
    assert "Not run: " in page.read_text()


def test_the_apps_table_is_what_the_figures_give(monkeypatch: Any, tmp_path: Path) -> None:
    committed = TABLE.read_text()
    monkeypatch.setattr(_results, "TABLE", tmp_path / "measured.json")
    _results.write_table(ROOT / "docs" / "results")
    same = (tmp_path / "measured.json").read_text() == committed
    assert same, "docs/results holds other figures than the table: python -m benchmarks results"


def test_one_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "names", lambda: ["nowhere", "noise"])
    assert command.run_all(tmp_path, quick=True) == 1
    output = capfd.readouterr()
    assert "failed: nowhere" in output.err
    assert "| noise | continuous, float64 |" in output.out
    assert "Seconds: noise " in output.out
    assert json.loads((tmp_path / "noise.json").read_text())["quick"] is True


# Measured again ---------------------------------------------------------------------------------


def row(ours: list[float], peer: list[float] | None = None, larger: bool = False) -> Row:
    beside = None if peer is None else Spread.of(peer)
    return Row("one", "time", "s", Spread.of(ours), beside, peer and "them", larger)


@pytest.mark.parametrize(
    ("before", "now", "agree"),
    [
        (row([1.0, 1.2]), row([1.25, 1.4]), True),  # widened by a tenth they meet
        (row([1.0, 1.2]), row([1.6, 1.8]), False),
        (row([1.0]), row([1.15]), True),
        (row([1.0]), row([1.3]), False),
        (row([1.0], [3.0]), row([2.0], [6.0]), True),  # a machine half as quick
        (row([1.0], [3.0]), row([2.0], [3.0]), False),
        (row([3.0], [1.0], True), row([6.0], [2.0], True), True),
        (row([3.0], [1.0], True), row([1.0], [3.0], True), False),
        (row([0.0]), row([0.0]), True),
        (row([-1.0]), row([-1.1]), True),
    ],
)
def test_figures_agree_if_their_spreads_meet(before: Row, now: Row, agree: bool) -> None:
    comparison = _compare.compare(document("noise", before), document("noise", now))
    assert comparison.compared == 1
    assert (not comparison.differences) is agree
    assert not comparison.only_once


def test_measuring_again_is_compared_with_what_is_committed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, rows in ((old, (WON, LOST)), (new, (WON, ALONE))):
        folder.mkdir()
        (folder / "noise.json").write_text(json.dumps(document("noise", *rows)))
    (new / "utility.json").write_text(json.dumps(document("utility", WON)))
    assert command.compare_all(new, old) == 0
    output = capsys.readouterr().out
    assert "noise: 1 of 1 agree" in output
    assert "on one side only: three: size" in output
    assert "on one side only: two: rate" in output
    assert f"not compared, {old} has no figures of them: utility\n" in output
    assert "these on" not in output
    (new / "noise.json").write_text(json.dumps(document("noise", row([9.0])) | {"quick": True}))
    assert command.compare_all(new, old) == 1
    output = capsys.readouterr().out
    assert "the committed figures are of a full run, these of a quick one" in output
    assert output.endswith(f"{new} holds figures of quick runs; measure without --quick\n")
    slower = Row("one", "time", "s", Spread.of([9.0]), Spread.of([3.0]), "them")
    (new / "noise.json").write_text(json.dumps(document("noise", slower)))
    assert command.compare_all(new, old) == 1
    assert "one: time: 2.25 to 3.3, now 0.3 to 0.3667" in capsys.readouterr().out


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in document("noise", WON).items() if key != name}


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ("", "noise.json: Expecting value"),
        ("[]", "noise.json: it must hold an object with"),
        (_without("rows"), "noise.json: it must hold an object with"),
        (_without("rows") | {"rows": [{}]}, "noise: a row is damaged: KeyError"),
        (_without("rows") | {"rows": 5}, "noise: a row is damaged: TypeError"),
        (document("utility", WON), "noise: these figures are of utility"),
        (document("noise"), "can be held against the committed figures"),
        (document("noise", replace(WON, unit="ms")), "nothing was compared"),
        (document("noise", replace(WON, ours=Spread.of([math.nan]))), "0 of 1 agree"),
    ],
)
def test_figures_that_cannot_be_compared_do_not_agree(
    figures: Any, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, given in ((old, document("noise", WON)), (new, figures)):
        folder.mkdir()
        text = given if isinstance(given, str) else json.dumps(given)
        (folder / "noise.json").write_text(text)
    assert command.compare_all(new, old) == 1
    assert why in capsys.readouterr().out


def test_no_figures_at_all_do_not_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.json").write_text(json.dumps(document("noise", WON)))
    assert command.compare_all(tmp_path / "missing", tmp_path) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("nothing was compared: ")
    assert last.endswith("holds no NAME.json; name the folder of figures with --into")
    assert len(lines) == 1  # all that are missing in one line


def test_figures_of_two_machines_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, processor in ((old, "P"), (new, "Q")):
        folder.mkdir()
        figures = document("noise", WON)
        figures["machine"]["processor"] = processor
        (folder / "noise.json").write_text(json.dumps(figures))
    assert command.compare_all(new, old) == 0
    output = capsys.readouterr().out
    assert "committed on 2 cores of P" in output
    assert "these on 2 cores of Q" in output


# The rounds benchmark --------------------------------------------------------------------------


class Twins(Clients):
    """Two clients with one image each."""

    def __init__(self) -> None:
        images = np.eye(2, 4, dtype=np.float32)
        truth = np.eye(10, dtype=np.float32)[:2]
        self._held = [(images[k : k + 1], truth[k : k + 1]) for k in range(2)]
        self.parameters = 40
        self._validation, self._labels = images, np.arange(2)


def test_a_client_takes_its_local_steps() -> None:
    twins, start = Twins(), np.zeros(40, np.float32)
    one = twins.trained(0, start, Work(1.0, 1, 1.0)).reshape(10, 4)
    np.testing.assert_allclose(one[:, 0], np.eye(10)[0] - 0.1, atol=1e-6)
    assert not one[:, 1:].any()
    two = twins.trained(0, one.ravel(), Work(1.0, 1, 1.0))
    np.testing.assert_allclose(two, twins.trained(0, start, Work(1.0, 2, 1.0)), atol=1e-6)


def test_the_private_loop_and_the_plain_one_differ_by_protection_alone() -> None:
    """With a norm that nobody reaches and without noise they give the same accuracies."""
    work = Work(1.0, 1, 0.5)
    free = Protection(100.0, 0.0)
    runs = [
        accuracy_by_round(Twins(), work, protection, rounds=3, randomness=SeededRandomness(1))
        for protection in (None, free)
    ]
    assert runs[0] == runs[1] == [1.0, 1.0, 1.0]


def test_a_mark_that_not_every_seed_reached_has_no_row() -> None:
    assert rounds.reached_at([0.9, 0.96, 0.99], 0.95) == 2
    assert rounds.reached_at([0.9], 0.95) is None
    case = rounds.Case("shards", 1.0, rounds=2)
    both = rounds.compared(case, [[0.9, 0.96], [0.96, 0.97]], None)
    assert [(row.metric, row.ours.median) for row in both] == [
        ("rounds to 95 %", 1.5),
        ("validation accuracy at the end", pytest.approx(0.965)),
    ]
    one = rounds.compared(case, [[0.9, 0.96], [0.9, 0.94]], None)
    assert [row.metric for row in one] == ["validation accuracy at the end"]


def test_the_rounds_picture_is_drawn_of_the_committed_figures(tmp_path: Path) -> None:
    figures = json.loads((ROOT / "docs" / "results" / "rounds.json").read_text())
    rounds.draw(figures, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").stat().st_size > 20_000
