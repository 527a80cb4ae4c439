"""The picture of encrypted inference: milliseconds, images a second, predictions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks._pictures import OURS, PEER, SOFT, save

_GOAL = 0.3


def draw_inference(document: Mapping[str, Any], path: Path) -> None:
    """Draw the time of an answer, the throughput of a batch, and predicted against measured."""
    figure = Figure(figsize=(13, 4))
    latency, throughput, predictions = figure.subplots(1, 3)
    rows = document["rows"]

    bars: list[tuple[str, float, str]] = []
    for row in rows:
        if row["metric"] == "evaluation":
            bars.append((row["case"], row["ours"], OURS))
            if row["peer_name"] == "TenSEAL tutorial":
                bars.append(("TenSEAL's tutorial", row["peer"], PEER))
    _bars(latency, bars, "ms")
    latency.set_title("Evaluation of one image", loc="left")

    bars = []
    for row in rows:
        if row["unit"] in ("1/s", "images/s") and row["peer"] is not None:
            bars.append((f"{row['case']}, {row['metric']}", row["ours"], OURS))
            colour = PEER if row["peer_name"] == "CKKSTensor" else SOFT
            bars.append((f"{row['case']}, {row['peer_name']}", row["peer"], colour))
    _bars(throughput, bars, "images/s")
    throughput.set_title("Throughput", loc="left")

    shares = [
        (row["case"], row["ours"], row["ours_spread"])
        for row in reversed(rows)
        if row["metric"] == "measured of predicted"
    ]
    predictions.axvspan(1 - _GOAL, 1 + _GOAL, color=SOFT, alpha=0.25, lw=0)
    predictions.axvline(1, color=SOFT, lw=1)
    for place, (_, share, spread) in enumerate(shares):
        predictions.plot([spread["low"], spread["high"]], [place, place], color=OURS, lw=1)
        predictions.plot(share, place, color=OURS, marker="o")
    predictions.set_yticks(range(len(shares)), [case for case, _, _ in shares], fontsize=8)
    predictions.set_title("Measured of predicted", loc="left")
    predictions.set_xlabel(f"share; grey: within {_GOAL:.0%}")
    figure.tight_layout()
    save(figure, path)


def _bars(axes: Any, bars: list[tuple[str, float, str]], unit: str) -> None:
    places = range(len(bars), 0, -1)
    values = [value for _, value, _ in bars]
    axes.barh(places, values, color=[colour for _, _, colour in bars])
    axes.set_yticks(places, [name for name, _, _ in bars], fontsize=8)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {value:,.4g}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(unit)
