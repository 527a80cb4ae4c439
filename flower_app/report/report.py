"""``report.html``: one file that a person opens, with the pictures inside it."""

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flower_app.report.privacy_metrics import reports_were_seen
from flower_app.report.results_folder import ResultsFolder
from flower_app.report.silo_metrics import observers, silos_in_words
from flower_app.report.silo_template import SILO_TEMPLATE
from flower_app.report.template import TEMPLATE
from privacy.accounting import CyclicGroups, GaussianRelease, Poisson, epsilon, large_delta
from privacy.mechanisms import DistributedGaussian

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 240, 46, 34


def write_report(
    folder: ResultsFolder,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> None:
    """Write ``report.html``, self-contained, from the run's JSON files and its PNGs by caption."""
    has_silos = config["mode"] == "silos"
    level = metrics["privacy"]["record_level" if has_silos else "client_level"]
    spent = [value for value in level["epsilon_by_round"] if value is not None]
    total, played = level["epsilon"], "step" if has_silos else "round"
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(SILO_TEMPLATE if has_silos else TEMPLATE).render(
        **(_about_silos if has_silos else _about_clients)(metrics),
        m=metrics,
        c=level,
        protected=_protected(metrics, has_silos=has_silos),
        protected_at="silos" if has_silos else "clients",
        played=played,
        e=metrics["encrypted"],
        task=metrics["task"],
        thing=metrics["task"]["things"][0] if metrics["task"] else "image",
        things=metrics["task"]["things"][1] if metrics["task"] else "images",
        config=config,
        pictures={
            caption: base64.b64encode(path.read_bytes()).decode()
            for caption, path in pictures.items()
        },
        when=f"{datetime.now(UTC):%d %B %Y}",
        chart=epsilon_chart(spent, budget=config["epsilon"], played=played),
        spent_by_round=_some(spent),
        # At even odds an attacker is right with probability at most e^ε/(1 + e^ε), and δ.
        guess=1.0 if total is None else min(1.0, _logistic(total) + level["delta"]),
        odds=None if total is None or total > 700 else math.exp(total),
        large_delta=large_delta(level["delta"], level["population"]),
        ledger=config.get("ledger") or folder.ledger.name,
        s=level["secure_aggregation"],
        g=lambda value: f"{value:g}",
        n=lambda value: f"{value:,}",
        percent=lambda value: f"{100 * value:.2f} %",
        number=lambda value: "∞" if value is None or math.isinf(value) else f"{value:.3g}",
    )
    folder.file("report.html").write_text(page, encoding="utf-8")


def _protected(metrics: Mapping[str, Any], *, has_silos: bool) -> str:
    """What each of, ε is of."""
    if not has_silos:
        return "client"
    return "person" if metrics["task"] and metrics["task"]["unit"] == "person" else "record"


def _about_clients(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a run over clients has besides."""
    client_level, tested = metrics["privacy"]["client_level"], metrics["encrypted_round"]
    own, alternatives = epsilon_alternatives(client_level)
    return {
        "r": metrics["privacy"]["record_level"],
        "t": tested,
        "counted": bool(tested and tested.get("counted")),
        "reported": reports_were_seen(tested),
        "own_epsilon": own,
        "alternatives": alternatives,
        "distributed": client_level["mechanism"] == DistributedGaussian.name,
    }


def _about_silos(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a run over silos has besides."""
    record_level = metrics["privacy"]["record_level"]
    silos = silos_in_words(record_level["colluders"])
    return {
        "observers": observers(record_level),
        "colluding": f"{silos} that "
        + ("pools what it knows" if record_level["colluders"] == 1 else "pool what they know"),
        "colluding_silos": silos,
        "tested": metrics["accuracy"]["silos"],
        "counted": False,
        "reported": False,
    }


def epsilon_alternatives(
    client_level: Mapping[str, Any],
) -> tuple[float | None, dict[str, float]]:
    """ε of this run by itself, and with one of its settings changed.

    Only where each round costs one sampled Gaussian release: not with cohorts of fixed size or in
    turns, with distributed noise (there z is against the server) nor with a charge for presence.
    """
    z, rounds = client_level["noise_multiplier"], client_level["rounds"]
    distributed = client_level["mechanism"] == DistributedGaussian.name
    secure = client_level["secure_aggregation"]
    charged = bool(secure and secure["presence_delta"])
    fixed = client_level["sampling"] in ("fixed-size", CyclicGroups.kind)
    if not z or not rounds or fixed or distributed or charged:
        return None, {}
    rate, delta = client_level["sampling_rate"], client_level["delta"]

    def spent(z: float, rate: float, rounds: int) -> float:
        return epsilon({GaussianRelease(z, Poisson(rate)): rounds}, delta=delta)

    return spent(z, rate, rounds), {
        "half the noise": spent(z / 2, rate, rounds),
        "twice the noise": spent(2 * z, rate, rounds),
        "half the rounds": spent(z, rate, max(1, rounds // 2)),
        "twice the rounds": spent(z, rate, 2 * rounds),
        "half the sampling rate": spent(z, rate / 2, rounds),
        "everyone in every round": spent(z, 1.0, rounds),
    }


def epsilon_chart(spent: Sequence[float], *, budget: float, played: str = "round") -> Markup | None:
    """ε after each round, or step, as an SVG in the page's colours; None if there is none."""
    if not spent:
        return None
    top = 1.12 * max(budget, max(spent))
    right, floor = _WIDTH - 12, _HEIGHT - _BOTTOM

    def x(number: float) -> float:
        return _LEFT + (right - _LEFT) * number / len(spent)

    def y(value: float) -> float:
        return floor - (floor - 10) * value / top

    points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(spent, 1))
    ticks = "".join(
        f'<line x1="{_LEFT}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2g}</text>'
        for v in (0.0, budget / 3, 2 * budget / 3)
    )
    ends = "".join(
        f'<text x="{x(n):.1f}" y="{_HEIGHT - 14}" text-anchor="{anchor}">{label}</text>'
        for n, anchor, label in (
            (1, "start", f"{played} 1"),
            (len(spent), "end", f"{played} {len(spent)}"),
        )
    )
    return Markup(  # noqa: S704 - made of numbers alone
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="ε rises to {spent[-1]:.3g} after {len(spent)} {played}s">{ticks}{ends}'
        f'<line x1="{_LEFT}" x2="{right}" y1="{y(budget):.1f}" y2="{y(budget):.1f}" '
        'stroke="var(--warn)" stroke-dasharray="6 4"/>'
        f'<text x="{_LEFT + 4}" y="{y(budget) - 6:.1f}" style="fill: var(--warn)">'
        f"allowed: {budget:g}</text>"
        f'<polyline points="{points}" fill="none" stroke="var(--blue)" stroke-width="2.5"/>'
        f'<circle cx="{x(len(spent)):.1f}" cy="{y(spent[-1]):.1f}" r="4" fill="var(--blue)"/>'
        "</svg>"
    )


def _some(spent: Sequence[float], most: int = 16) -> list[tuple[int, float]]:
    """At most ``most`` of the rounds, evenly spaced, with the last."""
    step = max(1, -(-len(spent) // most))
    shown = list(range(step, len(spent) + 1, step))
    if spent and (not shown or shown[-1] != len(spent)):
        shown.append(len(spent))
    return [(number, spent[number - 1]) for number in shown]


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
