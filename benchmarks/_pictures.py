"""What the benchmarks' pictures share: colours, and how one is finished."""

from pathlib import Path

from matplotlib.figure import Figure

OURS, PEER, SOFT = "#2a6fdb", "#c9372c", "#9aa5b1"


def save(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Take the frames from the axes and write the picture as a PNG."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi, facecolor="white", bbox_inches="tight")
