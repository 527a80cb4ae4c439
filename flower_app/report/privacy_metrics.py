"""Privacy in ``metrics.json``, in every mode of a run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flower_app.settings import Settings
from privacy.accounting import (
    Adjacency,
    LedgerContents,
    attack_advantage,
    attack_success,
    epsilon,
    gaussian_dp,
)
from strategies import PrivacyReport

FALSE_ALARM_RATES = (0.01, 0.1)

# Settings beside the recipe that somebody may tune by accuracy.
_CHOSEN = ("sampling_rate", "weight_cap", "total_weight", "records_per_client")


def privacy_metrics(
    settings: Settings, report: PrivacyReport, paid: LedgerContents, *, reports_seen: bool = False
) -> dict[str, Any]:
    """Both levels of privacy, side by side and never mixed, and the cost of tuning.

    For ``metrics.json``: infinite and unknown values are None. ``reports_seen``: whether the
    ledger has ``paid`` the noise on nodes' reports, which the server saw without it.
    """
    client_level = report.as_dict() | {
        "covers": "all runs that share the ledger" if settings.ledger else "this run alone",
        "unit": "one client: everything it holds",
        "trusted": _trust_in_server(report, reports=reports_seen),
        **in_other_words(report, paid),
    }
    return {
        "client_level": client_level,
        "record_level": _record_level(settings),
        "tuning": tuning(settings),
    }


def tuning(settings: Settings) -> dict[str, Any]:
    """The cost of choosing hyper-parameters: nothing for a recipe, else unknown."""
    recipe = settings.recipe
    usual = asdict(Settings())
    expected = recipe | {name: usual[name] for name in _CHOSEN}
    changed = {
        name.replace("_", "-"): getattr(settings, name)
        for name, value in expected.items()
        if getattr(settings, name) != value
    }
    if not changed and settings.task:
        return {
            "epsilon": 0.0,
            "reason": "the app's own recipe for such models was chosen on made-up tables"
            if settings.model == "logistic"
            else f"the app's own recipe for {settings.model} is a first guess, and saw no data",
        }
    if not changed:
        return {
            "epsilon": 0.0,
            "reason": f"the recipe of {settings.model} was chosen on 10,000 images of MNIST that "
            f"belong to no {'silo' if settings.has_silos else 'client'}",
        }
    values = ", ".join(f"{name} = {value}" for name, value in changed.items())
    whose = "silos'" if settings.has_silos else "clients'"
    return {
        "epsilon": None,
        "reason": f"the operator set {values}. If these were chosen by results on {whose} data, "
        "that was a release of its own, which is not counted",
    }


def in_other_words(report: PrivacyReport, paid: LedgerContents) -> dict[str, Any]:
    """ε as the μ of Gaussian differential privacy, and as the most that an attack achieves.

    Beside it what earlier runs had paid into the same ledger.
    """
    if not report.private:
        return {
            "earlier": _earlier(report, paid),
            "gaussian_dp_mu": None,
            "attack_advantage": 1.0,
            "attack_success": {f"{rate:g}": 1.0 for rate in FALSE_ALARM_RATES},
        }
    adjacency = Adjacency(report.adjacency)
    return {
        "earlier": _earlier(report, paid),
        "gaussian_dp_mu": gaussian_dp(
            paid.events, delta=report.delta, accountant=report.accountant, adjacency=adjacency
        ),
        "attack_advantage": attack_advantage(
            paid.events, delta=report.delta, accountant=report.accountant, adjacency=adjacency
        ),
        "attack_success": {
            f"{rate:g}": attack_success(
                paid.events,
                delta=report.delta,
                false_alarm_rate=rate,
                accountant=report.accountant,
                adjacency=adjacency,
            )
            for rate in FALSE_ALARM_RATES
        },
    }


def _earlier(report: PrivacyReport, paid: LedgerContents) -> dict[str, Any]:
    """The number of earlier runs in the ledger, and their ε at this run's δ."""
    runs = [record.run for record in paid.records]
    before = paid.records[: runs.index(report.run)] if report.run in runs else ()
    spent = epsilon(
        [record.event for record in before],
        delta=report.delta,
        accountant=report.accountant,
        adjacency=Adjacency(report.adjacency),
    )
    return {"runs": len({record.run for record in before}), "epsilon": spent}


def _record_level(settings: Settings) -> dict[str, Any]:
    if not settings.record_epsilon:
        return {
            "epsilon_max": None,
            "delta": None,
            "reason": "the run asked clients for no noise of their own (record-epsilon = 0); their "
            "records are protected by the client-level guarantee only",
        }
    if settings.deployed:
        note = (
            f"what {settings.planned_participations} participations in this run cost; the limit "
            "over all runs is the node's owner's, kept in the node's own ledger, which is not "
            "collected"
        )
    else:
        note = (
            "the cap that every client keeps in its own ledger; clients' ledgers are not collected"
        )
    return {
        "epsilon_max": settings.record_epsilon,
        "delta": settings.record_delta,
        "unit": "one record of one client",
        "adjacency": "add-or-remove-one",
        "trusted": "nobody but the client itself",
        "planned_participations": settings.planned_participations,
        "note": note,
    }


def reports_were_seen(nodes_tested: Mapping[str, Any] | None) -> bool:
    """Whether nodes sent the server reports of an encrypted test-time round."""
    return nodes_tested is not None and ("skipped" not in nodes_tested or nodes_tested["counted"])


def _trust_in_server(report: PrivacyReport, *, reports: bool) -> str:
    """With what: updates or their sums, and ``reports`` of nodes in encrypted rounds."""
    secure = report.secure_aggregation
    if secure is None:
        trusted = "add the noise and keep raw updates to itself"
    elif secure.noise_placement == "distributed":
        trusted = "bring each sum's noise to its full amount and keep the sums to itself"
    else:
        trusted = "add the noise and keep the rounds' sums to itself"
    if reports:
        trusted += (
            ", to add the noise to nodes' reports of encrypted test-time rounds and keep each "
            "report to itself"
        )
    return f"the server, to {trusted}" + "; it sees no single update" * (secure is not None)
