"""The picture of secure aggregation's cost: by clients, by dropouts, in bytes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks._pictures import OURS, PEER, SOFT, save

_GROWTH = re.compile(r"(\d+) clients, 5 % dropouts")
_ROUND = re.compile(r"(\d+) clients x (\d+) parameters, (\d+)% dropouts")


def draw_costs(document: Mapping[str, Any], path: Path) -> None:
    """Draw neighbours against clients, a client's time against dropouts, and the bytes it sends."""
    figure = Figure(figsize=(13, 4))
    by_clients, by_dropouts, in_bytes = figure.subplots(1, 3)
    rows = document["rows"]

    growth = [
        (int(match[1]), row["ours"])
        for row in rows
        if row["metric"] == "neighbours of a client" and (match := _GROWTH.fullmatch(row["case"]))
    ]
    by_clients.plot(*zip(*growth, strict=True), color=OURS, marker="o")
    by_clients.set_xscale("log")
    by_clients.set_ylim(bottom=0)
    by_clients.set_title("Neighbours of a client: as log n", loc="left")
    by_clients.set_xlabel("clients n (5 % corrupt, 5 % drop out)")

    played = [
        (int(match[1]), int(match[3]), row)
        for row in rows
        if (match := _ROUND.fullmatch(row["case"]))
    ]
    largest = max(int(match[2]) for row in rows if (match := _ROUND.fullmatch(row["case"])))
    played = [each for each in played if f"x {largest} " in each[2]["case"]]
    for style, clients in zip(
        (":", "--", "-"), sorted({clients for clients, _, _ in played}), strict=False
    ):
        times = [
            (dropouts, row["ours"], row["peer"])
            for n, dropouts, row in played
            if n == clients and row["metric"].startswith("a client's time")
        ]
        for place, colour, name in ((1, OURS, "ours"), (2, PEER, "Flower")):
            by_dropouts.plot(
                [time[0] for time in times],
                [time[place] for time in times],
                color=colour,
                linestyle=style,
                marker="o",
                label=f"{name}, {clients} clients",
            )
    by_dropouts.set_yscale("log")
    by_dropouts.set_title(f"A client's seconds, {largest:,} parameters", loc="left")
    by_dropouts.set_xlabel("% of clients planned for that drop out")
    by_dropouts.legend(fontsize=7, frameon=False)

    sent = [
        (clients, row)
        for clients, dropouts, row in played
        if dropouts == 5 and row["metric"].startswith("bytes up")
    ]
    bars: dict[str, tuple[float, str]] = {}
    for clients, row in sent:
        bars[f"ours, {clients}"] = (row["ours"] / 1e6, OURS)
        plain = row["peer_name"] == "float32"
        bars["plain float32" if plain else "Flower"] = (
            row["peer"] / 1e6,
            SOFT if plain else PEER,
        )
    in_bytes.barh(
        list(bars), [size for size, _ in bars.values()], color=[c for _, c in bars.values()]
    )
    in_bytes.set_title("Megabytes up, 5 % dropouts", loc="left")
    figure.tight_layout()
    save(figure, path)
