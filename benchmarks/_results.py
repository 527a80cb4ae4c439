"""From the benchmarks' JSON files to the pages of ``docs/results`` and the app's own table."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Benchmark
from benchmarks.utility.cells import CELLS
from flower_app.measurements import TABLE

Document = Mapping[str, Any]
Load = Callable[[str], Benchmark]

MEASURED = ["utility", "silos", "end_to_end"]
"""Of whose figures the app's own table is made."""

SILO_DETAILS = (
    *("model", "silos", "honest", "records", "epsilon", "delta", "sampling_rate", "steps"),
)

SAME = 0.005
"""Ratios as near to 1 as this are nobody's win."""

PACKAGES = {
    "CKKSTensor": "TenSEAL",
    "TenSEAL tutorial": "TenSEAL",
    "CrypTen, two parties that must not collude": "CrypTen",
    "Opacus ghost": "Opacus",
    "Opacus hooks": "Opacus",
    "Opacus, trusted curator": "Opacus",
    "make_private alone": "Opacus",
    "dp-accounting, no failures": "dp-accounting",
    "flwr DifferentialPrivacyServerSideFixedClipping(FedAvg)": "Flower",
    "flwr DifferentialPrivacyServerSideFixedClipping, accounted": "Flower",
    "flwr np.random": "Flower",
    "flwr run, Ray simulation": "Flower",
    "flwr.common.secure_aggregation": "Flower",
    "numpy standard_normal, in blocks (not secure)": "numpy",
    "numpy standard_normal, in blocks, rounded (not secure)": "numpy",
}
"""Which package a peer is of, where its name is not the package's."""

BASELINES = {
    *("FedAvg without privacy", "flwr FedAvg", "plain FedAvg app, flwr run", "no privacy"),
    *("plain SGD", "clipped only", "plain weights", "in the clear", "float32"),
    *("the network as it was trained", "one process", "one bare evaluator"),
    *("the bare evaluation", "the owner in Python", "each silo's own noise", "ours, silos alike"),
    *("the same sums alone, neither masked nor sent", "independent noise, rounded exactly"),
    *("Flower's client process alone", "Flower's client process and PyTorch"),
}
"""Peers that are no other package's way to the same: less protection, or another way of ours."""

_PARTS = {"benchmark", "quick", "machine", "rows"}

WINS, LOSES = "#2f9e63", _pictures.PEER


def draw(benchmark: Benchmark, document: Document, path: Path) -> bool:
    """Draw a benchmark's own picture, or by default the ratios to its peers.

    Returns
    -------
    bool
        Whether there was anything to draw.
    """
    own = getattr(benchmark, "draw", None)
    if own is not None:
        own(document, path)
        return True
    rows = [row for row in document["rows"] if row["ratio"] is not None]
    if not rows:
        return False
    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.3))
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    ratios = [row["ratio"] for row in rows]
    colours = [WINS if ratio >= 1 else LOSES for ratio in ratios]
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.7)
    axes.set_xscale("log")
    axes.axvline(1, color=_pictures.SOFT, lw=1)
    axes.set_yticks(places, [f"{row['case']}: {row['metric']}" for row in rows], fontsize=8)
    for place, ratio in zip(places, ratios, strict=True):
        side = "left" if ratio >= 1 else "right"
        axes.text(ratio, place, f" {_number(ratio)}× ", va="center", ha=side, fontsize=8)
    axes.set_title(f"{document['benchmark']}: how many times better than the peer", loc="left")
    axes.set_xlabel("ratio (green: ours is better; red: the peer is)")
    axes.margins(x=0.2)
    _pictures.save(figure, path)
    return True


def summary(documents: list[Document]) -> str:
    """One table over all benchmarks: ours, the peer and the ratio, in Markdown."""
    lines = ["| benchmark | case | metric | ours | peer | ratio |", "|---|---|---|---|---|---|"]
    for document in documents:
        for row in document["rows"]:
            if row["ratio"] is not None:
                lines.append(
                    f"| {document['benchmark']} | {row['case']} | {row['metric']} | "
                    f"{_quantity(row, 'ours')} | {_quantity(row, 'peer')} ({row['peer_name']}) | "
                    f"{_ratio(row['ratio'])} |"
                )
    return "\n".join(lines)


def load_documents(folder: Path, names: list[str]) -> list[Document]:
    """The documents that a folder holds, in the order of the names.

    Raises
    ------
    ValueError
        Naming the file, if one is none.
    """
    files = [folder / f"{name}.json" for name in names]
    return [_document(file) for file in files if file.exists()]


def _document(file: Path) -> Document:
    try:
        document = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(document, dict) or not document.keys() >= _PARTS:
        raise ValueError(f"{file}: it must hold an object with {', '.join(sorted(_PARTS))}")
    return document


def write_pages(folder: Path, *, names: list[str], load: Load) -> list[str]:
    """Write ``index.md``, and a page and a picture for each benchmark.

    Parameters
    ----------
    folder : Path
        Holds ``NAME.json``; ``NAME.md`` and ``NAME.png`` go beside them.
    names : list of str
        All benchmarks.
    load : callable
        Imports one.

    Returns
    -------
    list of str
        The benchmarks of which there was no file.
    """
    documents = load_documents(folder, names)
    lines = ["| benchmark | what it measures | with bloomseal | on |\n|---|---|---|---|"]
    for document in documents:
        name = document["benchmark"]
        benchmark = load(name)
        drawn = draw(benchmark, document, folder / f"{name}.png")
        text = (benchmark.__doc__ or name).strip().splitlines()[0]
        (folder / f"{name}.md").write_text(_page(document, text, drawn=drawn))
        used = document["machine"]
        version, processor = used["packages"].get("bloomseal", ""), used["processor"]
        lines.append(f"| [{name}]({name}.md) | {text} | {version} | {processor} |")
    parts = [_INTRODUCTION, _who_wins(documents), "## All benchmarks", "\n".join(lines)]
    present = {document["benchmark"] for document in documents}
    missing = [name for name in names if name not in present]
    if missing:
        parts.append("Not measured here: " + ", ".join(missing) + ".")
    (folder / "index.md").write_text("\n\n".join(parts) + "\n")
    return missing


def _page(document: Document, text: str, *, drawn: bool) -> str:
    """A benchmark's own page."""
    name = document["benchmark"]
    quick = " --quick" if document["quick"] else ""
    parts = [
        f"# {name}",
        _WRITTEN,
        text,
        f"```sh\npython -m benchmarks {name}{quick} --json docs/results/{name}.json\n```",
    ]
    if drawn:
        parts.append(f"![{name}]({name}.png)")
    lost = _lost(document)
    if lost:
        parts += ["## Where the peer is better", _table(lost), "## All figures"]
    parts += [_table(document["rows"]), f"*{machine_of(document)}*"]
    return "\n\n".join(parts) + "\n"


def _lost(document: Document) -> list[Mapping[str, Any]]:
    """The rows in which the peer is better, those in which ours is furthest behind first."""
    rows = [row for row in document["rows"] if row["ratio"] is not None]
    return sorted(
        (row for row in rows if row["ratio"] < 1 - SAME), key=lambda row: float(row["ratio"])
    )


def write_table(folder: Path) -> None:
    """Write ``flower_app/measured.json``, from which ``flower_app plan`` answers."""
    accuracy: list[dict[str, Any]] = []
    documents = {d["benchmark"]: d for d in load_documents(folder, MEASURED)}
    if "utility" in documents:
        rows: dict[str, dict[str, Any]] = {}
        for row in documents["utility"]["rows"]:
            rows.setdefault(row["case"], {})[row["metric"]] = row
        for cell in CELLS:
            if cell.case not in rows or cell.copies > 1:
                continue  # where data are repeated, a client's removal removes nothing
            metrics = rows[cell.case]
            spread = metrics["test accuracy"]["ours_spread"]
            accuracy.append(
                {
                    "dataset": "mnist",
                    "model": cell.model,
                    "clients": cell.clients,
                    "records": cell.records,
                    "epsilon": cell.budget.epsilon,
                    "delta": cell.budget.delta,
                    "sampling_rate": metrics["sampling rate"]["ours"],
                    "rounds": int(metrics["rounds"]["ours"]),
                    "noise_multiplier": metrics["noise multiplier"]["ours"],
                    "median": spread["median"],
                    "low": spread["low"],
                    "high": spread["high"],
                    "runs": spread["repetitions"],
                }
            )
    silos: list[dict[str, Any]] = []
    if "silos" in documents:
        for row in documents["silos"]["rows"]:
            if row["details"].get("beside") != "own noise":
                continue  # one row of each cell is enough
            details, spread = row["details"], row["ours_spread"]
            silos.append(
                {
                    "dataset": "mnist",
                    **{name: details[name] for name in SILO_DETAILS},
                    **{name: spread[name] / 100 for name in ("median", "low", "high")},
                    "runs": spread["repetitions"],
                }
            )
    rounds: list[dict[str, Any]] = []
    if "end_to_end" in documents:
        document = documents["end_to_end"]
        where = f"{document['machine']['cores']} cores of {document['machine']['processor']}"
        rounds = [
            {
                "model": row["details"]["model"],
                "cohort": row["details"]["cohort"],
                "seconds": row["ours"],
                "where": where,
            }
            for row in document["rows"]
            if row["metric"] == "time of a round"
        ]
    table = {"accuracy": accuracy, "silos": silos, "rounds": rounds}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


_WRITTEN = "<!-- Written by `python -m benchmarks results`; edit the benchmarks, not this page. -->"

_INTRODUCTION = f"""# Results

{_WRITTEN}

Every figure here was measured by the command beside it, which wrote it to a JSON file in
`docs/results`. `python -m benchmarks results` makes these pages and their pictures of those files;
`python -m benchmarks all` measures everything again, in a night on two cores, and `python -m
benchmarks compare` says which figures agree with these: those whose spreads meet when each is
widened by a tenth. A figure with a peer is compared by its ratio. One benchmark alone is measured
and compared again by (without `--quick`, whose cases are others):

```sh
mkdir -p results/benchmarks
python -m benchmarks noise --json results/benchmarks/noise.json
python -m benchmarks compare
```

*Ours* and *peer* are medians of repetitions, lowest to highest in brackets; repetitions that are
timed are interleaved. *Ratio* says how many times better ours is than the peer: above 1 ours wins,
below 1 the peer does. Times and rates depend on the machine. Not all figures are of one machine and
one version: the table of all benchmarks names them, and what is below each table all packages.

The figures that answer a question of yours may be on another page: [how accurate a private model
is](../explanation/utility.md), [what many clients cost the server](../explanation/scale.md)."""


def _who_wins(documents: list[Document]) -> str:
    """A line a package, and a line a baseline: who is better how often, and where it is worst."""
    sides: dict[bool, dict[str, list[tuple[str, Mapping[str, Any]]]]] = {False: {}, True: {}}
    for document in documents:
        for row in document["rows"]:
            if row["ratio"] is not None:
                name = row["peer_name"]
                side = sides[name in BASELINES]
                side.setdefault(PACKAGES.get(name, name), []).append((document["benchmark"], row))
    return "\n\n".join(
        [
            "## Who wins",
            _standings(sides[False]),
            "A ratio in bold is one where the peer is better. *The same*: within "
            f"{SAME * 100:g} %.",
            "### Baselines",
            "What a protection costs: ours beside the same without it, or beside another way of "
            "ours.",
            _standings(sides[True]),
        ]
    )


def _standings(peers: Mapping[str, list[tuple[str, Mapping[str, Any]]]]) -> str:
    """A line each, those first whom ours is furthest behind."""
    table = []
    for peer, held in peers.items():
        lost = sum(row["ratio"] < 1 - SAME for _, row in held)
        won = sum(row["ratio"] > 1 + SAME for _, row in held)
        benchmark, row = min(held, key=lambda each: float(each[1]["ratio"]))
        worst = ""
        if lost:
            where = f"[{benchmark}]({benchmark}.md), {row['case']}, {row['metric']}"
            worst = f"{where}: {_ratio(row['ratio'])} of {row['peer_name']}"
        counts = f"{len(held)} | {won} | {len(held) - won - lost} | {lost}"
        table.append((row["ratio"] if lost else 1, f"| {peer} | {counts} | {worst} |"))
    return "\n".join(
        [
            "| beside | compared | ours is better | the same | the peer is better | "
            "ours furthest behind |\n|---|---|---|---|---|---|",
            *(line for _, line in sorted(table)),
        ]
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| case | metric | ours | peer | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        peer = row["peer_name"] or ""
        if row["peer"] is not None:
            peer = f"{_quantity(row, 'peer')} ({peer})"
        lines.append(
            f"| {row['case']} | {row['metric']} | {_quantity(row, 'ours')} | {peer} | "
            f"{_ratio(row['ratio'])} |"
        )
    return "\n".join(lines)


def _quantity(row: Mapping[str, Any], side: str) -> str:
    spread = row[f"{side}_spread"]
    text = f"{_number(spread['median'])} {row['unit']}"
    if spread["repetitions"] > 1:
        text += f" [{_number(spread['low'])} to {_number(spread['high'])}]"
    return text


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.3g}"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"**{_number(value)}×**" if value < 1 - SAME else f"{_number(value)}×"


def machine_of(document: Document) -> str:
    """The machine and the versions, in a line."""
    m = document["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["packages"].items() if v != "not installed")
    return f"{m['cores']} cores of {m['processor']}, Python {m['python']}; {versions}."
