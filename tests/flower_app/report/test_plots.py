"""The pictures of a run can be read, however few rounds it has."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from flower_app.report.plots import plot_holdings, plot_noise, plot_training

ROUNDS = (1, 2, 3, 10, 100)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written to files, as they were drawn."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: object, **named: object) -> None:
        figures.append(self)
        save(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def ticks(axis: Axes) -> list[Text]:
    """The labels that are seen at the two axes."""
    across, up = sorted(axis.get_xlim()), sorted(axis.get_ylim())
    pairs = [(axis.get_xticks(), axis.get_xticklabels(), across)]
    pairs += [(axis.get_yticks(), axis.get_yticklabels(), up)]
    return [
        label
        for places, labels, (low, high) in pairs
        for place, label in zip(places, labels, strict=False)  # above a shared axis there are none
        if low <= place <= high and label.get_text()
    ]


def check(figure: Figure, axis: Axes, rounds: int) -> None:
    """No words lie on others, and the rounds are whole numbers that can be seen."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in [*axis.texts, *ticks(axis)]]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
    low, high = axis.get_xlim()
    places = [place for place in axis.get_xticks() if low <= place <= high]
    assert places
    assert all(place == int(place) for place in places)
    curves = [line for line in axis.lines if len(line.get_xdata()) == rounds]
    assert curves
    if rounds == 1:
        assert all(line.get_marker() == "o" for line in curves)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_accuracy_and_epsilon_of_any_number_of_rounds(
    tmp_path: Path, drawn: list[Figure], rounds: int
) -> None:
    numbers = range(1, rounds + 1)
    plot_training(
        tmp_path / "training.png",
        accuracy={n: 0.9 * n / rounds for n in numbers},
        epsilon={n: 2.999 * n / rounds for n in numbers},
        budget=3.0,
        delta=1e-5,
    )
    figure, _ = drawn  # as PNG and as SVG
    above, below = figure.axes
    for axis in (above, below):
        check(figure, axis, rounds)
    (allowed,) = below.texts
    renderer = FigureCanvasAgg(figure).get_renderer()
    box, frame = allowed.get_window_extent(renderer), below.get_window_extent(renderer)
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("released", [0.5, 1.05, 1.4, 1.45, 9.0])
def test_noise_and_signal_of_any_number_of_rounds(
    tmp_path: Path, drawn: list[Figure], rounds: int, released: float
) -> None:
    plot_noise(
        tmp_path / "noise.png",
        released=dict.fromkeys(range(1, rounds + 1), released),
        noise=1.0,
    )
    figure, _ = drawn  # as PNG and as SVG
    (axis,) = figure.axes
    check(figure, axis, rounds)


def test_holdings_stand_on_each_other_label_by_label(tmp_path: Path, drawn: list[Figure]) -> None:
    counts = np.array([[3, 0, 2], [0, 4, 1], [9, 9, 9]])
    plot_holdings(tmp_path / "holdings.png", counts=counts, clients=2)
    (axis,) = drawn[0].axes
    shapes = [patch.get_data() for patch in axis.patches]
    assert [list(shape.values) for shape in shapes] == [[3, 0], [3, 4], [5, 5]]
    assert [list(shape.baseline) for shape in shapes] == [[0, 0], [3, 0], [3, 4]]
    assert list(shapes[0].edges) == [-0.5, 0.5, 1.5]
