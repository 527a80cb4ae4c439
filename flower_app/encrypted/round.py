"""The encrypted test-time round of a run, held after training."""

import hashlib
import shutil
import time
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.supercore import log

from flower_app.encrypted.evaluator import start_evaluator
from flower_app.encrypted.model import compiled_file
from flower_app.encrypted.node import simulated_secrets
from flower_app.report.results_folder import ResultsFolder
from flower_app.settings import Settings
from privacy.accounting import Budget, LedgerContents, read_ledger
from privacy.json_text import read_json
from strategies import (
    EncryptedRound,
    EncryptedRoundResult,
    Population,
    PublicMetrics,
    noised_accuracy,
)
from strategies.errors import PopulationExceededError

_NAME = "encrypted test-time round of"  # and then the run, in the ledger
_RELEASED = "encrypted-round.json"  # the round's release, in the run's folder


def hold_encrypted_round(
    grid: Grid,
    settings: Settings,
    folder: ResultsFolder,
    *,
    population: Population | int,
    ledger: Path,
    run_id: int,
) -> dict[str, Any]:
    """Have the nodes test the finished model on their own test images, once.

    Its release is written into the run's folder at once: a run that breaks off after it and is
    resumed does not ask, nor pay, again.

    Population and ledger are the strategy's; the run's folder holds the model.

    Returns
    -------
    dict
        As in ``metrics.json``; the reason where the round was not held, since the budget was spent
        or more clients are connected than the population has places. ``counted``: whether its cost
        is in ε.
    """
    weights = folder.file("model.safetensors")
    model = hashlib.sha256(weights.read_bytes()).hexdigest()
    released = _released(folder, model)
    if released is not None:
        log(INFO, "The nodes tested the model before the run broke off. %s", _summary(released))
        return released
    log(INFO, "Asking the nodes to test the model on their own images, encrypted ...")
    noised = settings.encrypted_round_release == "noised"
    name = f"{_NAME} {folder.path.name}"
    paid = ledger.exists() and any(record.run == name for record in read_ledger(ledger).records)
    begun = time.perf_counter()
    try:
        with compiled_file(settings.model, weights) as file:
            test = EncryptedRound(
                population=population,
                start_evaluator=lambda: start_evaluator(file),
                images=settings.encrypted_round_images,
                metrics=noised_accuracy(settings.encrypted_round_noise_multiplier)
                if noised
                else PublicMetrics(),
                budget=Budget(settings.epsilon, settings.delta),
                ledger=ledger,
            )
            result = test.run(grid, timeout=settings.round_timeout, name=name)
    except (PrivacyBudgetExhausted, PopulationExceededError) as error:
        reason = str(error)
        if paid and isinstance(error, PrivacyBudgetExhausted):
            reason = (
                "the encrypted round was paid for, but the run broke off before what it released "
                "was written down, and that is lost; once more would pass the budget of "
                f"ε = {settings.epsilon:g}"
            )
        log(WARNING, "No encrypted test-time round: %s", reason)
        return {"skipped": reason, "counted": paid}
    finally:
        if not settings.deployed:
            shutil.rmtree(simulated_secrets(run_id), ignore_errors=True)
    seconds = None if settings.deployed else time.perf_counter() - begun
    metrics = _metrics(result, settings) | {"seconds": seconds}
    folder.write_json(_RELEASED, {"model_sha256": model, "released": metrics})
    log(INFO, _summary(metrics))
    return metrics


def _released(folder: ResultsFolder, model: str) -> dict[str, Any] | None:
    """The release of an earlier round on this very model, if there was one."""
    try:
        written = read_json(folder.file(_RELEASED).read_text())
    except FileNotFoundError:
        return None
    return dict(written["released"]) if written["model_sha256"] == model else None


def has_paid_round(paid: LedgerContents) -> bool:
    """Whether the noise on nodes' reports, which the server saw without it, is in a ledger."""
    return any(record.run.startswith(_NAME) for record in paid.records)


def _metrics(result: EncryptedRoundResult, settings: Settings) -> dict[str, Any]:
    public = settings.encrypted_round_release == "public"
    return {
        "nodes_asked": result.asked,
        "nodes_answered": round(result.answered, 2),
        "accuracy": result.accuracy,
        "accuracy_noise": result.accuracy_noise,
        "release": (
            "every node that answered agreed to the publication of its report; ε does not cover it"
            if public
            else "noised at client level (z = "
            f"{settings.encrypted_round_noise_multiplier:g}) and counted in ε"
        ),
        "counted": not public,
        "node_noise": (
            "each node noises its own report, to hide single images also from a server that "
            "computes each answer from its own question"
        ),
        "images_per_node": result.images,
        "bytes_from_node": result.bytes_from_node,
        "bytes_to_node": result.bytes_to_node,
        "ms_per_image": result.ms_per_query,
        "security_bits": result.plan.security_bits,
    }


def _summary(metrics: dict[str, Any]) -> str:
    if metrics["accuracy"] is None:
        return "Encrypted test-time round: too few nodes reported for an accuracy"
    noise = metrics["accuracy_noise"]
    return (
        f"Encrypted test-time round: {metrics['nodes_answered']:g} of {metrics['nodes_asked']:,} "
        f"nodes, {100 * metrics['accuracy']:.2f} % right on images that the server never saw"
        + (f" (± {100 * noise:.1f} % noise of the server's)" if noise else "")
    )
