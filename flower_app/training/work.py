"""What a run learns, from its settings: a data set by name, or a task of the user's."""

from collections.abc import Callable
from functools import cache
from logging import INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message
from flwr.supercore import log

from flower_app.data import (
    ClientData,
    Dataset,
    Inputs,
    Partitions,
    load_client_folder,
    load_dataset,
    load_inputs,
    load_partitions,
    no_data,
    simulated_client,
)
from flower_app.errors import DeclinedError, SettingError, counted
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.settings import Settings
from flower_app.tasks import (
    Examples,
    Holdings,
    Task,
    as_client_data,
    build_for,
    no_examples,
    node_examples,
    parameters_of,
    read_holdings,
    server_test_data,
    task_spec,
)

if TYPE_CHECKING:
    from torch import nn


def spec_of(settings: Settings) -> ModelSpec:
    """The model's inputs and classes."""
    task = settings.own_task
    return task_spec(task) if task else MODELS[settings.model]


def model_of(settings: Settings) -> "nn.Sequential":
    """The model with its first weights."""
    from flower_app.models.build import build_model  # PyTorch

    task = settings.own_task
    return build_for(task) if task else build_model(settings.model)


def parameter_count(settings: Settings) -> int:
    """How many numbers the model has."""
    task = settings.own_task
    return parameters_of(task) if task else MODELS[settings.model].parameters


def dataset_of(settings: Settings) -> Dataset:
    """The run's data, as its server has them.

    Raises
    ------
    DataError
        If they cannot be had.
    """
    task = settings.own_task
    if task is None:
        return load_dataset(settings.dataset, data_dir=settings.data_folder)
    return server_test_data(task) if settings.deployed else read_holdings(task).dataset


def inputs_of(
    settings: Settings, dataset: Dataset, *, notify: Callable[[str], None] | None = None
) -> Inputs:
    """The data as the model sees them; ``notify`` receives lines of progress."""
    kind = spec_of(settings).kind
    return _as_they_are(dataset) if kind == "own" else load_inputs(dataset, kind, notify=notify)


@cache
def _as_they_are(dataset: Dataset) -> Inputs:
    parts = (dataset.train, dataset.validation, dataset.test)
    return Inputs(dataset, np.concatenate([part.images for part in parts]))


def partitions_of(settings: Settings, dataset: Dataset, holders: int) -> Partitions:
    """Who holds which of a simulation's training examples.

    Raises
    ------
    SettingError
        If a task has another number of holders.
    """
    task = settings.own_task
    if task is None:
        return load_partitions(settings.partition_spec(holders), dataset)
    shares = read_holdings(task).shares
    if len(shares) != holders:
        unit = "silo" if settings.has_silos else "client"
        raise SettingError(
            f"{counted(holders, f'simulated {unit}')} cannot hold the data of {settings.task}, "
            f"which are of {counted(len(shares), unit)}"
            + (" (beside those kept for testing)" * (not settings.has_silos))
            + (
                f": add what is missing, or write silos = {len(shares)} there"
                if settings.has_silos
                else f": run with --nodes {len(shares)}, or under flwr run with "
                f"--federation-config 'num-supernodes={len(shares)}'"
            )
        )
    return shares


def client_share(settings: Settings, clients: int, client: int) -> ClientData:
    """The examples of a simulated client."""
    dataset = dataset_of(settings)
    return simulated_client(
        inputs_of(settings, dataset), partitions_of(settings, dataset, clients), client
    )


def tell_of_data(data: Examples | Holdings) -> None:
    """Log what of a task's data is left out, and what was converted."""
    for fault in data.faults:
        log(WARNING, "%s", fault)
    for note in data.notes:
        log(INFO, "%s", note)


def tell_of_servers_data(settings: Settings) -> None:
    """Log it of the data that a task's server has: all of a simulation's, or its test data."""
    task = settings.own_task
    if task is None:
        return
    if not settings.deployed:
        tell_of_data(read_holdings(task))
    elif task.test is not None:
        tell_of_data(node_examples(task, task.test))


def own_examples(settings: Settings, place: Path) -> ClientData:
    """The examples at a deployed node's own place, for training or for testing.

    Raises
    ------
    DataError
        If none can be used.
    """
    task = settings.own_task
    if task:
        examples = node_examples(task, place)
        tell_of_data(examples)
        return as_client_data(examples)
    return load_client_folder(place, MODELS[settings.model].kind)


def without_examples(settings: Settings) -> ClientData:
    """The data of a client that has none."""
    task = settings.own_task
    if task:
        return no_examples(task)
    return no_data(MODELS[settings.model].kind)


def check_ranges(task: Task | None) -> None:
    """Refuse to train on ranges that nobody has confirmed to be public.

    Raises
    ------
    SettingError
        If they were guessed from the data and stand unconfirmed.
    """
    if task and not task.ranges_are_public:
        raise SettingError(
            f"ranges-are-public = false in the task {task.name!r}: its ranges and categories were "
            "read from the data, and the model, the plan and the report show them to everybody, "
            "outside ε. Replace each by what is known without looking at the data (an age is 0 to "
            "110), then write ranges-are-public = true"
        )


def check_same_task(message: Message, settings: Settings) -> None:
    """Decline a run of another task than the node's own.

    Raises
    ------
    DeclinedError
        If the server's columns, ranges, classes, model or mode are others.
    """
    task = settings.own_task
    config = message.content.config_records.get("config")
    sent = None if config is None else config.get(TASK)
    if task and sent is not None and sent != task.digest:
        raise DeclinedError(
            "this node's task differs from the run's: columns, ranges, classes, model and mode "
            "must stand alike in both task.toml"
        )


TASK = "task"
"""The digest of a run's task, in the configuration that its messages carry."""
