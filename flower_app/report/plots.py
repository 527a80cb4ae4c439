"""Pictures of a run, as PNG files, and as SVG files for the page."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flower_app.data import Partitions

INK, SOFT, BLUE, GRID = "#1f2933", "#9aa5b1", "#2a6fdb", "#e4e7eb"
ORANGE, GREEN, RED = "#e8833a", "#2f9e63", "#c9372c"
_WIDTH = 5.6
_FEW_ROUNDS = 20
_STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": "none",
    "legend.framealpha": 0.0,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
}


@contextmanager
def drawing(path: Path, width: float, height: float, top: float = 1.0) -> Iterator[Figure]:
    """A figure in inches, in this house's style, that is saved when the block ends.

    As PNG, and beside it as SVG.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        figure.tight_layout(rect=(0, 0, 1, top))
        figure.savefig(path, dpi=200, bbox_inches="tight", facecolor="white")
        figure.savefig(
            path.with_suffix(".svg"),
            bbox_inches="tight",
            facecolor="none",
            metadata={"Date": None},  # it would say when the run ended
        )


def _show_rounds(axis: Axes, rounds: Sequence[int], played: str = "round") -> None:
    """Count rounds, or steps, on the horizontal axis, and mark single ones."""
    axis.set_xlabel(played)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(rounds) == 1:
        axis.set_xticks(list(rounds))
        axis.set_xlim(rounds[0] - 0.5, rounds[0] + 0.5)
    for line in axis.lines:
        if len(rounds) <= _FEW_ROUNDS:
            line.set_marker("o")


def plot_training(
    path: Path,
    *,
    accuracy: Mapping[int, float],
    epsilon: Mapping[int, float],
    budget: float,
    delta: float,
    unit: str = "client",
    played: str = "round",
) -> None:
    """Validation accuracy and ε, round by round, over one axis of rounds.

    ``unit`` is whom ε is for; ``played`` what a round is called.
    """
    with drawing(path, _WIDTH, 4.8) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.plot(list(accuracy), [100 * a for a in accuracy.values()], color=BLUE, lw=2)
        last = list(accuracy.values())[-1]
        above.set_title(f"Validation accuracy: {100 * last:.1f} % after the last {played}")
        above.set_ylabel("accuracy (%)")
        above.set_ylim(0, 101)
        below.plot(list(epsilon), list(epsilon.values()), color=ORANGE, lw=2)
        for axis in (above, below):
            _show_rounds(axis, list(accuracy), played)
        above.set_xlabel("")
        below.axhline(budget, color=RED, lw=1.2, ls="--")
        # At a share of the width, wherever the rounds begin.
        across = below.get_yaxis_transform()
        below.text(0.01, budget, f"allowed: {budget:g}", color=RED, va="bottom", transform=across)
        below.set_ylim(0, 1.2 * budget)
        below.set_title(f"Privacy spent: ε at δ = {delta:g}, for every {unit}")
        below.set_ylabel("ε")
        figure.align_ylabels([above, below])


def plot_encrypted(
    path: Path,
    *,
    images: npt.NDArray[np.uint8],
    labels: Sequence[int],
    answers: Sequence[int],
    count: int = 24,
) -> None:
    """Images that were classified without being seen; wrong answers come first, in red."""
    wrong = [i for i in range(len(images)) if answers[i] != labels[i]][: count // 4]
    right_ones = [i for i in range(len(images)) if answers[i] == labels[i]]
    chosen = wrong + right_ones[: count - len(wrong)]
    columns = 8
    rows = -(-len(chosen) // columns)
    right = sum(a == b for a, b in zip(answers, labels, strict=True))
    with drawing(path, _WIDTH, 0.95 * rows + 0.6, top=0.97) as figure:
        grid = np.atleast_2d(figure.subplots(rows, columns))
        for axis in grid.flat:
            axis.axis("off")
        for axis, i in zip(grid.flat, chosen, strict=False):
            good = answers[i] == labels[i]
            axis.imshow(images[i], cmap="gray_r", interpolation="none")
            axis.set_title(
                f"{answers[i]}" if good else f"{answers[i]}, not {labels[i]}",
                color=GREEN if good else RED,
                fontsize=9,
                loc="center",
                pad=2,
            )
        figure.suptitle(
            f"Answers to encrypted questions: {right} of {len(images)} right",
            x=0.02,
            ha="left",
            weight="bold",
        )


def plot_holdings(
    path: Path,
    *,
    counts: npt.NDArray[np.int64],
    clients: int = 60,
    holder: str = "client",
    things: str = "images",
    classes: str = "digit",
    names: Sequence[str] = (),
) -> None:
    """The labels of the first clients, or silos. Simulation only: this is their data.

    ``things`` is what they hold, ``classes`` what a label is called, ``names`` those of labels.
    """
    shown = counts[:clients]
    with drawing(path, _WIDTH, 2.9) as figure:
        axis = figure.subplots()
        # One shape a label: one a bar takes a second to draw.
        edges = np.arange(len(shown) + 1) - 0.5
        bottom = np.zeros(len(shown))
        colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
        for label in range(shown.shape[1]):
            top = bottom + shown[:, label]
            axis.stairs(
                top,
                edges,
                baseline=bottom,
                fill=True,
                color=colours[label % len(colours)],
                label=names[label] if names else str(label),
            )
            bottom = top
        axis.set_title("Who holds what (simulation: not private)")
        axis.set_xlabel(f"{holder} (the first {len(shown)} of {len(counts):,})")
        axis.set_ylabel(things)
        axis.legend(
            title=classes, ncol=1, bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False
        )


def plot_noise(
    path: Path,
    *,
    released: Mapping[int, float],
    noise: float,
    window: int = 9,
) -> None:
    """Noise against signal, as norms of a round's summed update, from what was released.

    The signal is estimated: the squared norm of the released sum less the noise's expected one,
    averaged over some rounds around each.
    """
    rounds = np.array(list(released))
    excess = np.array(list(released.values())) ** 2 - noise**2
    reach = min(window, len(excess))
    weights = np.convolve(np.ones_like(excess), np.ones(reach), mode="same")
    smooth = np.convolve(excess, np.ones(reach), mode="same") / weights
    signal = np.sqrt(np.maximum(smooth, 0.0))
    with drawing(path, _WIDTH, 2.9) as figure:
        axis = figure.subplots()
        axis.plot(rounds, np.full_like(signal, noise), color=ORANGE, lw=2)
        axis.plot(rounds, signal, color=BLUE, lw=2)
        top = 1.2 * max(noise, signal.max())
        apart = abs(noise - signal[-1]) > 0.2 * top
        # Lines that end side by side have their names above and below.
        over, under = ("center", "center") if apart else ("bottom", "top")
        first, second = (over, under) if noise >= signal[-1] else (under, over)
        side = axis.get_yaxis_transform()
        axis.text(1.0, noise, " noise", color=ORANGE, va=first, transform=side)
        label = " clients' sum"
        axis.text(1.0, signal[-1], label, color=BLUE, va=second, transform=side)
        axis.set_ylim(0, top)
        axis.set_title("Noise against signal, estimated from the released models")
        _show_rounds(axis, list(released))
        axis.set_ylabel("L2 norm of the sum")


def label_counts(
    partitions: Partitions, labels: npt.NDArray[np.int64], classes: int = 10
) -> npt.NDArray[np.int64]:
    """How many examples of each label each client holds, (clients, classes)."""
    return np.stack(
        [np.bincount(labels[partitions.rows(k)], minlength=classes) for k in range(len(partitions))]
    )
