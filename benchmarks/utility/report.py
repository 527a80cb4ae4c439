"""The table and the plot of the utility benchmark: ``docs/explanation/utility.md``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.utility.cells import AMPLIFIED, BANDED, BUFFERED, CELLS, INDEPENDENT, TURNS, Cell

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
TURNS_BEGIN, TURNS_END = "<!-- in turns: begin -->", "<!-- in turns: end -->"
MODELS = {"hog-linear": ("#2a6fdb", "o"), "cnn": ("#e8833a", "s")}

Figures = dict[str, dict[str, dict[str, Any]]]
"""The JSON's rows by case and metric."""


def figures(document: Mapping[str, Any]) -> Figures:
    cells: Figures = {}
    for row in document["rows"]:
        cells.setdefault(row["case"], {})[row["metric"]] = row
    return cells


def table(cells: Figures) -> str:
    """A Markdown table, a line for each cell that was run."""
    lines = [
        "| protocol | model | clients | ε | δ | q | rounds | z | accuracy | lowest to highest "
        "| runs | Geyer et al. |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(cell, cells[cell.case]) for cell in CELLS if cell.case in cells),
    ]
    missing = [cell.case for cell in CELLS if cell.case not in cells]
    if missing:
        lines += ["", "Not run: " + "; ".join(missing) + "."]
    return "\n".join(lines)


def turns_table(cells: Figures) -> str:
    """A Markdown table of accuracies with and without secret cohorts, a line for each ε."""
    arms = (INDEPENDENT, BANDED, BUFFERED, "disjoint", AMPLIFIED)
    case = {(cell.model, cell.budget.epsilon, cell.protocol): cell.case for cell in CELLS + TURNS}
    lines = [
        "| model | ε | no secret: independent noise | no secret: banded | no secret: BLT "
        "| secret: Poisson | secret: banded, drawn within groups |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, epsilon in dict.fromkeys((cell.model, cell.budget.epsilon) for cell in TURNS):
        shown = [_accuracy(cells.get(case.get((model, epsilon, arm), ""))) for arm in arms]
        lines.append("| " + " | ".join([model, f"{epsilon:g}", *shown]) + " |")
    return "\n".join(lines)


def _accuracy(row: dict[str, dict[str, Any]] | None) -> str:
    if row is None:
        return ""
    spread = row["test accuracy"]["ours_spread"]
    z = row["noise multiplier"]["ours"]
    return f"{spread['median']:.4f} ({spread['low']:.4f} to {spread['high']:.4f}), z = {z:.3f}"


def _line(cell: Cell, row: dict[str, dict[str, Any]]) -> str:
    score = row["test accuracy"]
    spread = score["ours_spread"]
    cells = [
        cell.protocol,
        cell.model,
        f"{cell.clients:,}",
        f"{cell.budget.epsilon:g}",
        f"{cell.budget.delta:g}",
        f"{row['sampling rate']['ours']:g}",
        f"{row['rounds']['ours']:.0f}",
        f"{row['noise multiplier']['ours']:.3f}",
        f"{score['ours']:.4f}",
        f"{spread['low']:.4f} to {spread['high']:.4f}",
        f"{spread['repetitions']}",
        "" if score["peer"] is None else f"{score['peer']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def plot(cells: Figures, path: Path) -> None:
    """Both protocols side by side: accuracy over the number of clients, and over ε."""
    figure = Figure(figsize=(10, 4.2))
    left, right = figure.subplots(1, 2)
    _lines(left, cells, "Geyer")
    _lines(right, cells, "disjoint")
    peers = [(c.clients, c.peer) for c in CELLS if c.peer is not None and c.model == "hog-linear"]
    left.plot(*zip(*peers, strict=True), "k^--", lw=1, label="Geyer et al. 2017, published")
    left.set_title("Geyer's protocol, ε = 8, data repeated for N ≥ 1,000", loc="left")
    left.set_xlabel("clients")
    left.set_xscale("log")
    right.set_title("1,000 disjoint clients, δ = 1e-5", loc="left")
    right.set_xlabel("ε, client level")
    right.set_xticks([1, 2, 3, 8])
    for axes in (left, right):
        axes.set_ylabel("test accuracy")
        axes.grid(color="#e4e7eb")
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    _pictures.save(figure, path, dpi=150)


def _lines(axes: Any, cells: Figures, protocol: str) -> None:
    for model, (colour, mark) in MODELS.items():
        points = []
        for cell in CELLS:
            if cell.case in cells and (cell.protocol, cell.model) == (protocol, model):
                spread = cells[cell.case]["test accuracy"]["ours_spread"]
                x = cell.clients if protocol == "Geyer" else cell.budget.epsilon
                points.append((x, spread["median"], spread["low"], spread["high"]))
        if points:
            places, middle, low, high = zip(*sorted(points), strict=True)
            axes.plot(places, middle, color=colour, marker=mark, label=model)
            axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)


def fill(page: Path, document: Mapping[str, Any]) -> None:
    """Put the tables between the page's markers."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    picture = "![Accuracy against clients and against ε](../results/utility.png)"
    middle = f"{table(figures(document))}\n\n{picture}"
    after, rest = after.split(TURNS_BEGIN)
    last = rest.split(TURNS_END)[1]
    turns = f"{TURNS_BEGIN}\n\n{turns_table(figures(document))}\n\n{TURNS_END}"
    page.write_text(f"{before}{BEGIN}\n\n{middle}\n\n{END}{after}{turns}{last}")
