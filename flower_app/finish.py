"""The end of a run: its model is tested, and all results are written."""

import time
from logging import ERROR, INFO, WARNING
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.supercore import log
from numpy.typing import NDArray
from torch import nn

from flower_app.data import Inputs
from flower_app.encrypted.evaluation import EncryptedTest, run_encrypted_test
from flower_app.encrypted.round import has_paid_round
from flower_app.report import plots
from flower_app.report.classes import confusion
from flower_app.report.compared import compared_run
from flower_app.report.page_pictures import Picture
from flower_app.report.privacy_metrics import privacy_metrics
from flower_app.report.report import write_report
from flower_app.report.results_folder import ResultsFolder, closing_lines
from flower_app.report.silo_metrics import silo_metrics
from flower_app.report.software import software
from flower_app.report.task_metrics import protected_unit, task_metrics
from flower_app.settings import Settings
from flower_app.shared.evaluation import run_shared_test
from flower_app.training.progress import ProgressLogger, predicted
from flower_app.training.resumption import other_software_at_start, write_final_settings
from flower_app.training.work import partitions_of, spec_of
from privacy.accounting import read_ledger
from strategies import PrivacyReport, PrivateResult


def finish(
    settings: Settings,
    folder: ResultsFolder,
    inputs: Inputs,
    model: nn.Sequential,
    result: PrivateResult,
    progress: ProgressLogger,
    nodes_tested: dict[str, Any] | None,
    *,
    ledger: Path,
    started: float,
    training_seconds: float,
) -> None:
    """Test the model, once in the clear and once without seeing images, and write all results.

    If the questions without seeing images fail, the results say so.
    """
    report, paid = result.privacy, read_ledger(ledger)
    if report is None:
        raise RuntimeError("the strategy returned no privacy report")
    model.load_state_dict(result.arrays.to_torch_state_dict())
    dataset = inputs.dataset
    test_inputs = inputs.test()
    answers = predicted(model, torch.from_numpy(test_inputs)).numpy()
    labels = np.asarray(dataset.test.labels)
    encrypted, failure = None, None
    encrypted_started = time.perf_counter()
    if settings.encrypted_test_images:
        count = min(settings.encrypted_test_images, len(dataset.test))
        try:
            encrypted = _asked(
                settings,
                model,
                folder.file("model.safetensors"),
                test_inputs[:count],
                np.asarray(dataset.test.labels[:count]),
            )
        except Exception as error:  # the training is paid for: its results are written
            # The reason may hold a value of a test example: it is for the log alone.
            failure = type(error).__name__
            log(ERROR, "The questions to the finished model failed", exc_info=error)
    now = time.perf_counter()
    metrics: dict[str, Any] = {
        "software": software(),
        "resumed": bool(settings.resume),
        # Of a resumed run whose first rounds ran other code: that code.
        "begun_with": other_software_at_start(folder),
        "dataset": settings.dataset,
        "model": settings.model,
        "deployed": settings.deployed,
        "task": task_metrics(settings),
        "about": {
            "controller": settings.controller,
            "contact": settings.contact,
            "purpose": settings.purpose,
        },
        "accuracy": {
            "validation": list(progress.accuracy.values())[-1] if progress.accuracy else None,
            "test": float((answers == labels).mean()),
            "confusion": confusion(answers, labels, names=_class_names(settings)),
            "compared": compared_run(settings),
            "validation_by_round": progress.accuracy,
            # What silos released of tests on their own records; since the resumption, if any.
            "silos": {
                number: dict(released)
                for number, released in result.evaluate_metrics_clientapp.items()
            },
        },
        "privacy": silo_metrics(settings, report, paid)
        if settings.has_silos
        else privacy_metrics(settings, report, paid, reports_seen=has_paid_round(paid)),
        "encrypted": None if encrypted is None else encrypted.metrics,
        "encrypted_failure": failure,
        "encrypted_round": nodes_tested,
        # How long clients took is theirs, unless they are simulated. Since the resumption, if any.
        "seconds": {
            "total": None if settings.deployed else now - started,
            "training": None if settings.deployed else training_seconds,
            "encrypted": now - encrypted_started,
        },
    }
    pictures = _draw(settings, folder, inputs, report, progress, encrypted)
    config = write_final_settings(settings, folder)
    write_report(folder, metrics, config, pictures)
    folder.finish(metrics)
    folder.become_latest()
    for line in closing_lines(folder.path):
        log(INFO, line)


def _class_names(settings: Settings) -> list[str]:
    spec = spec_of(settings)
    return list(spec.class_names) or [str(label) for label in range(spec.classes)]


def _asked(
    settings: Settings,
    model: nn.Sequential,
    weights: Path,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> EncryptedTest:
    """The test under encryption, or in shares."""

    def notify(line: str) -> None:
        log(INFO, line)

    spec = spec_of(settings)
    if settings.encrypted_backend == "shared":
        notify(f"Asking {len(inputs)} questions in shares ...")
        return run_shared_test(model, spec, inputs, labels, notify=notify)
    notify(f"Asking {len(inputs)} encrypted questions ...")
    return run_encrypted_test(model, weights, spec, inputs, labels, notify=notify)


def _draw(
    settings: Settings,
    folder: ResultsFolder,
    inputs: Inputs,
    report: PrivacyReport,
    progress: ProgressLogger,
    encrypted: EncryptedTest | None,
) -> dict[str, Picture]:
    """Draw the run's pictures, by name."""
    pictures: dict[str, Picture] = {}

    def picture(name: str, caption: str) -> Path:
        pictures[name] = Picture(folder.file(f"{name}.png"), caption)
        return pictures[name].path

    silos = settings.has_silos
    rounds = {number: value for number, value in progress.accuracy.items() if number > 0}
    whose = (
        "the server holds" if settings.deployed else f"belong to no {'silo' if silos else 'client'}"
    )
    tested = f"images that {whose}"
    if settings.task:
        tested = "test data, which ε does not cover"
    if rounds:
        plots.plot_training(
            picture(
                "training",
                f"Above, accuracy on {tested}; below, ε so far, and its limit (dashed).",
            ),
            accuracy=rounds,
            epsilon=report.epsilon_by_round,
            budget=settings.epsilon,
            delta=report.delta,
            unit=protected_unit(task_metrics(settings), has_silos=silos),
            played="step" if silos else "round",
        )
    scale = report.sampling_rate * (settings.total_weight or report.population)
    released = {number: norm * scale for number, norm in progress.update_norms.items()}
    if not all(map(isfinite, released.values())):
        log(
            WARNING,
            "The model has grown beyond what its numbers can hold, and is of no use: lower "
            "server-learning-rate, or raise what an average is divided by (total-weight).",
        )
        released = {number: norm for number, norm in released.items() if isfinite(norm)}
    # Correlated noise is longer in a round, and taken back later: nothing to hold against a sum.
    if released and not settings.groups:
        parameters = sum(p.numel() for p in progress.model.parameters())
        plots.plot_noise(
            picture("noise", "The length of the noise on each round's sum, and of the sum itself."),
            released=released,
            noise=report.noise_multiplier * report.clipping_norm * parameters**0.5,
        )
    if encrypted is not None and not settings.task:
        caption = (
            "Images that neither worker saw, and their answers"
            if settings.encrypted_backend == "shared"
            else "Images the evaluator never saw, and the answers it gave"
        )
        plots.plot_encrypted(
            picture("encrypted", f"{caption}; wrong ones are red and come first."),
            images=inputs.dataset.test.images[: len(encrypted.answers)],
            labels=encrypted.labels,
            answers=encrypted.answers,
        )
    if not settings.deployed:
        holders = settings.silos if silos else report.population
        partitions = partitions_of(settings, inputs.dataset, holders)
        spec, task = spec_of(settings), settings.own_task
        plots.plot_holdings(
            picture("holdings", "Simulation: not private. The labels of what each of them holds."),
            counts=plots.label_counts(
                partitions, np.asarray(inputs.dataset.train.labels), spec.classes
            ),
            holder="silo" if silos else "client",
            things=task.things[1] if task else "images",
            classes="class" if task else "digit",
            names=spec.class_names,
        )
    return pictures
