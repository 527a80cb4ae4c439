"""Privacy in ``metrics.json``, of a run over silos."""

from math import sqrt
from typing import Any

from flower_app.report.privacy_metrics import in_other_words, tuning
from flower_app.settings import Settings
from privacy.accounting import LedgerContents, Observer
from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import FewSilos
from strategies import PrivacyReport


def silo_metrics(settings: Settings, report: PrivacyReport, paid: LedgerContents) -> dict[str, Any]:
    """ε of a person, or record, against each who looks, the noise in shares, tuning's cost."""
    silos = FewSilos(settings.silos, settings.colluders)
    honest = SiloGaussian(silos.min_silos, silos.colluders).honest
    curator = report.noise_multiplier / (report.sampling_rate * report.population)
    record_level = report.as_dict() | {
        "covers": "all runs that share the ledger" if settings.ledger else "this run alone",
        "unit": _unit(settings),
        "trusted": f"at least {honest} silos, to follow the protocol, to add their shares of the "
        "noise and to keep their draws to themselves; the server, to follow the protocol, though "
        "it reads everything",
        "silos": silos.silos,
        "colluders": silos.colluders,
        "honest": honest,
        "noise_of_average": {
            "one trusted curator of all data": curator,
            "the silos in shares, as in this run, when all take part": curator
            * sqrt(silos.silos / honest),
            "each silo all by itself": curator * sqrt(silos.silos),
        },
        **in_other_words(report, paid),
    }
    return {"record_level": record_level, "tuning": tuning(settings)}


def _unit(settings: Settings) -> str:
    task = settings.own_task
    if task is None:
        return "one record of one silo: an image with its label"
    if task.person:
        return (
            f"one person of one silo (its column: {task.person}), with all of that person's rows "
            "there"
        )
    return f"one {task.things[0]} of one silo, with its class"


def observers(record_level: dict[str, Any]) -> list[dict[str, Any]]:
    """Who looks, what they see, and ε against them, from the metrics of a run."""
    colluders = record_level["colluders"]
    words = {
        Observer.OUTSIDE: ("everybody outside", "every model, and the noised accuracies"),
        Observer.SILO: (
            "another silo",
            "the models; its own share of the noise, and its own draws",
        ),
        Observer.SERVER: (
            "the server",
            "besides the models the opened sums, masked messages, who is online",
        ),
        Observer.SERVER_AND_SILOS: (
            f"the server with {silos_in_words(colluders)}",
            "all of that together, without the colluders' shares of the noise",
        ),
    }
    by_observer = record_level["epsilon_by_observer"]
    return [
        {"who": who, "sees": sees, "epsilon": by_observer[observer.value]}
        for observer, (who, sees) in words.items()
    ]


def silos_in_words(number: int) -> str:
    """So many silos."""
    return "one silo" if number == 1 else f"{number} silos"
