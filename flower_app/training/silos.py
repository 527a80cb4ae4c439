"""A run over silos: what its settings describe, and the strategy that plays it."""

from pathlib import Path
from typing import Literal

from flower_app.data import TRAIN_SIZE
from flower_app.errors import SettingError, counted, wrong
from flower_app.settings import Settings
from privacy.accounting import Budget
from privacy.secure_aggregation import FewSilos
from strategies import (
    Checkpointing,
    DistributedDPSGD,
    LocalEvaluation,
    OnRound,
    Population,
    ServerSGD,
)

HELD_OUT = 10
"""In a simulation every so many-th image of the data set is a test record of its silo."""

_TESTED = len(range(0, TRAIN_SIZE, HELD_OUT))


def few_silos(settings: Settings) -> FewSilos:
    """How many silos there are, may be absent, and may collude.

    Raises
    ------
    SettingError
        If so few silos withstand no such number of colluders.
    """
    try:
        return FewSilos(settings.silos, settings.colluders)
    except ValueError as error:
        raise wrong("colluders", settings.colluders, str(error)) from error


def check_silos(settings: Settings, *, connected: int, population: Population | None) -> None:
    """Refuse a run whose nodes are not its silos.

    Raises
    ------
    SettingError
        If their numbers differ, or a deployment declares no number of records.
    """
    few_silos(settings)
    if population is not None:
        if len(population) != settings.silos:
            raise wrong(
                "silos", settings.silos, f"population-file lists {len(population)} nodes: say so"
            )
    elif connected > settings.silos:
        raise wrong("silos", settings.silos, f"{counted(connected, 'node')} are connected: say so")
    if settings.deployed:
        if not settings.records:
            raise wrong(
                "records",
                0,
                "a deployment must declare a public, round number of records over all silos",
            )
    elif connected < settings.silos:
        raise SettingError(
            f"silos = {settings.silos} is larger than the {counted(connected, 'simulated node')}; "
            f"run with --nodes {settings.silos}, or under flwr run with --federation-config "
            f"'num-supernodes={settings.silos}'"
        )


def silo_strategy(
    settings: Settings,
    population: Population | None,
    *,
    ledger: Path,
    checkpointing: Checkpointing,
    on_round: OnRound | None = None,
) -> DistributedDPSGD:
    """The strategy that the settings describe.

    It refuses them (``ValueError``) in its own names.
    """
    evaluation = None
    if settings.evaluate_every:
        evaluation = LocalEvaluation(
            every=settings.evaluate_every,
            noise_multiplier=settings.evaluation_noise_multiplier,
            persons=number_of_test_records(settings),
        )
    return DistributedDPSGD(
        silos=few_silos(settings),
        persons=number_of_records(settings),
        unit=unit(settings),
        sampling_rate=settings.record_sampling_rate,
        clipping_norm=settings.clipping_norm,
        noise_multiplier=settings.noise_multiplier or None,
        budget=Budget(settings.epsilon, settings.delta),
        optimizer=ServerSGD(settings.server_learning_rate, settings.server_momentum),
        evaluation=evaluation,
        ledger=ledger,
        checkpointing=checkpointing,
        population=population,
        on_round=on_round,
        stage_timeout=settings.round_timeout,
    )


def unit(settings: Settings) -> Literal["person", "row"]:
    """What the run protects: a row, or with a task that names persons a person."""
    task = settings.own_task
    return "person" if task and task.person else "row"


def number_of_records(settings: Settings) -> int:
    """N: as declared, or in a simulation the images that are no test records."""
    return settings.records or TRAIN_SIZE - _TESTED


def number_of_test_records(settings: Settings) -> int | None:
    """A public number of the silos' records for testing; None where none was declared.

    In a simulation without it that of those that are kept for testing, about.
    """
    if settings.test_records or settings.deployed:
        return settings.test_records or None
    if (task := settings.own_task) is None:
        return _TESTED
    share = task.test_share
    return max(1, round(task.persons * share / (1 - share))) if share else None
