"""``report.html``: one file that a person opens, with the pictures inside it."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, StrictUndefined

from flower_app.errors import counted
from flower_app.report.classes import by_class, commonest_class
from flower_app.report.page_pictures import Picture
from flower_app.report.privacy_metrics import reports_were_seen
from flower_app.report.results_folder import ResultsFolder
from flower_app.report.silo_metrics import observers, silos_in_words
from flower_app.report.task_metrics import protected_unit
from flower_app.report.template import TEMPLATE
from flower_app.report.verdict import verdict_on
from privacy.accounting import CyclicGroups, GaussianRelease, Poisson, epsilon, large_delta
from privacy.mechanisms import DistributedGaussian

_PICTURES = ("training", "noise", "encrypted", "holdings")


def write_report(
    folder: ResultsFolder,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    pictures: Mapping[str, Picture],
) -> None:
    """Write ``report.html``, self-contained, from the run's JSON files and its pictures by name."""
    has_silos = config["mode"] == "silos"
    level = metrics["privacy"]["record_level" if has_silos else "client_level"]
    by_round = level["epsilon_by_round"].items()
    spent = [(int(number), value) for number, value in by_round if value is not None]
    total = level["epsilon"]
    unit = protected_unit(metrics["task"], has_silos=has_silos)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    matrix = metrics["accuracy"].get("confusion")
    page = environment.from_string(TEMPLATE).render(
        **(_about_silos if has_silos else _about_clients)(metrics),
        silos=has_silos,
        one=unit,
        task=metrics["task"],
        thing=metrics["task"]["things"][0] if metrics["task"] else "image",
        things=metrics["task"]["things"][1] if metrics["task"] else "images",
        holder="silo" if has_silos else "client",
        played="step" if has_silos else "round",
        m=metrics,
        c=level,
        e=metrics["encrypted"],
        config=config,
        pictures={name: pictures.get(name) for name in _PICTURES},
        when=f"{datetime.now(UTC):%d %B %Y}",
        verdict=verdict_on(level["attack_advantage"]),
        about=_about_run(metrics, level, config),
        tested_on=sum(map(sum, matrix["counts"])) if matrix else 0,
        classes=by_class(matrix) if matrix else None,
        commonest=commonest_class(matrix) if matrix else None,
        compared=_compared(metrics["accuracy"]),
        wrong_answers=_wrong_answers(metrics["encrypted"]),
        spent_by_round=_some(spent),
        # From even odds an attacker is sure with probability at most e^ε/(1 + e^ε), and δ.
        guess=1.0 if total is None else min(1.0, _logistic(total) + level["delta"]),
        odds=_odds(total),
        large_delta=large_delta(level["delta"], level["population"], unit=unit),
        ledger=config.get("ledger") or folder.ledger.name,
        s=level["secure_aggregation"],
        g=lambda value: f"{value:g}",
        n=lambda value: f"{value:,}",
        percent=lambda value: f"{100 * value:.2f} %",
        number=_number,
    )
    folder.file("report.html").write_text(page, encoding="utf-8")


def _about_run(
    metrics: Mapping[str, Any], level: Mapping[str, Any], config: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Who ran it and why, on what, for how long, and what the same ledger had paid before."""
    said, seconds = metrics["about"], metrics["seconds"]["total"]
    task = metrics["task"]
    earlier = level["earlier"]
    rows = [
        ("Responsible", said["controller"] or "not said (setting controller)"),
        ("Contact", said["contact"]),
        ("Purpose", said["purpose"] or "not said (setting purpose)"),
        ("Data", f"{metrics['dataset']}, {level['unit']}"),
        ("The model sees", ", ".join(task["inputs"]) if task else ""),
        ("and answers", f"{task['target']}: {', '.join(task['classes'])}" if task else ""),
        ("Tested on", _tested_on(task) if task else ""),
        (
            "Duration",
            f"not said: it would show how long {config['mode']} took"
            if seconds is None
            else _duration(seconds) + (" since it was resumed" if metrics["resumed"] else ""),
        ),
        (
            "Earlier spending",
            f"{counted(earlier['runs'], 'run')} before this one paid from the same ledger: "
            f"ε = {_number(earlier['epsilon'])} by then, ε = {_number(level['epsilon'])} with this "
            "one (ε of several runs is less than the sum)"
            if earlier["runs"]
            else "none in this ledger: it begins with this run",
        ),
    ]
    return [(name, value) for name, value in rows if value]


def _tested_on(task: Mapping[str, Any]) -> str:
    """Whose examples the accuracies are of: no noise hides those."""
    whose = (
        task["test"]
        or f"those kept for testing in this simulation ({100 * task['test_share']:g} %)"
    )
    return f"{whose}; the accuracies of this page hold no noise for them"


def _compared(accuracy: Mapping[str, Any]) -> dict[str, Any] | None:
    """The other run, and the difference in words."""
    other = accuracy.get("compared")
    if other is None:
        return None
    cost = 100 * (other["accuracy"] - accuracy["test"])
    verdict = (
        f"privacy cost {cost:.2f} percentage points."
        if cost > 0
        else "privacy cost no accuracy here."
    )
    noise = "no limit on ε" if other["epsilon"] is None else f"ε = {other['epsilon']:.3g}"
    return {**other, "noise": noise, "verdict": verdict}


def _wrong_answers(encrypted: Mapping[str, Any] | None) -> str:
    """Whose errors the wrong encrypted answers are."""
    if encrypted is None:
        return ""
    wrong, same = encrypted["wrong"], encrypted["wrong_as_in_the_clear"]
    if not wrong:
        return "No answer is wrong."
    if same == wrong:
        return (
            f"{wrong} of {encrypted['images']} answers are wrong, and the model gives the same "
            "wrong answers in the clear: they are the model's errors, none is encryption's."
        )
    return (
        f"{wrong} of {encrypted['images']} answers are wrong. To {same} of these the model gives "
        f"the same wrong answer in the clear; {wrong - same} are wrong because of encryption."
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _odds(epsilon: float | None) -> float | None:
    """e^ε, rounded up to three figures; None where it is no number that says anything."""
    if epsilon is None or epsilon > 30:
        return None
    step = 10.0 ** (math.floor(epsilon / math.log(10)) - 2)
    odds = math.ceil(math.exp(epsilon) / step) * step
    return float(f"{odds:.3g}") if step < 1 else round(odds)


def _number(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:.3g}"


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
        "counted": False,
        "reported": False,
        "alternatives": {},
        "observers": observers(record_level),
        "colluding": f"{silos} that "
        + ("pools what it knows" if record_level["colluders"] == 1 else "pool what they know"),
        "colluding_silos": silos,
        "tested": metrics["accuracy"]["silos"],
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


def _some(spent: Sequence[tuple[int, float]], most: int = 16) -> list[tuple[int, float]]:
    """At most ``most`` of the rounds that were paid, evenly spaced, with the last."""
    step = max(1, -(-len(spent) // most))
    shown = [*spent[step - 1 :: step]]
    if spent and (not shown or shown[-1] != spent[-1]):
        shown.append(spent[-1])
    return shown


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
