"""A silo's side of a run: the policy of its records' owner, and what it trains and tests on."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from flwr.app import Context, Message
from torch import nn

from flower_app.errors import DeclinedError
from flower_app.settings import Settings
from flower_app.tasks import Examples, Task, node_examples, read_holdings
from flower_app.training.node_policy import OWN_PREFIX, own_folder, simulated_place, wrong_key
from flower_app.training.silos import HELD_OUT, unit
from flower_app.training.work import (
    check_same_task,
    dataset_of,
    inputs_of,
    model_of,
    own_examples,
    partitions_of,
)
from privacy.training import DataPolicy, Persons
from strategies import SiloTask, answer_silo

POLICY = "policy"
# All that a silo's owner configures; the limits stand in the policy's file.
_KEYS = frozenset({POLICY, "task", "data-dir", "test-dir", "partition-id", "num-partitions"})


def check_mode(node: Mapping[str, Any], settings: Settings) -> None:
    """Hold a deployed node to the mode that its owner chose by ``policy``.

    Raises
    ------
    DeclinedError
        If the run is of the other mode.
    SettingError
        If a key of the other mode stands beside ``policy``, where nobody would enforce it.
    """
    if POLICY in node:
        for key, value in node.items():
            if key not in _KEYS and not key.startswith(OWN_PREFIX):
                raise wrong_key(
                    key, value, "left out beside policy, whose file has the limits of this node"
                )
    if (POLICY in node) is not settings.has_silos:
        mode = "silos" if POLICY in node else "clients"
        raise DeclinedError(f"this node takes part in runs with mode = {mode!r} alone")


def answer(message: Message, context: Context, settings: Settings) -> Message:
    """Answer a message of a run over silos.

    A deployed node's policy is its owner's file; a simulated silo, which protects nobody, allows
    what the run asks for.
    """
    check_same_task(message, settings)
    task = partial(_task, settings, context)
    if settings.deployed:
        return answer_silo(message, context, task=task, policy=str(context.node_config[POLICY]))
    _, silo = simulated_place(context)
    policy = DataPolicy(
        dataset=f"{settings.dataset}, partition {silo}",
        max_epsilon=settings.epsilon,
        max_delta=settings.delta,
        unit=unit(settings),
        colluders=settings.colluders,
        min_silos=max(3, 2 * settings.colluders),
    )
    return answer_silo(message, context, task=task, policy=policy)


def _task(settings: Settings, context: Context) -> SiloTask:
    own = settings.own_task
    tested = not settings.deployed or "test-dir" in context.node_config
    tested = tested or bool(own and own.test_share)
    return SiloTask(
        model=model_of(settings),
        loss=nn.functional.cross_entropy,
        persons=partial(_records, settings, context, test=False),
        test_persons=partial(_records, settings, context, test=True) if tested else None,
    )


def _records(settings: Settings, context: Context, *, test: bool) -> Persons:
    """The silo's records to train or to test on; ``DataError`` if a folder cannot be used.

    A simulated silo's images are told apart by their own numbers, so that one more or less moves
    no other.
    """
    task = settings.own_task
    if task:
        return _persons(task, _task_examples(task, settings, context, test=test))
    if settings.deployed:
        key, purpose = (
            ("test-dir", "this node's test images") if test else ("data-dir", "this node's data")
        )
        data = own_examples(settings, own_folder(context.node_config, key, purpose))
        return Persons((torch.from_numpy(data.inputs), torch.from_numpy(data.labels)))
    silos, silo = simulated_place(context)
    dataset = dataset_of(settings)
    rows = partitions_of(settings, dataset, silos).rows(silo)
    rows = rows[(rows % HELD_OUT == 0) == test]
    inputs = inputs_of(settings, dataset).train(rows)
    return Persons((torch.from_numpy(inputs), torch.from_numpy(dataset.train.labels[rows])))


def _task_examples(task: Task, settings: Settings, context: Context, *, test: bool) -> Examples:
    """The silo's own rows; a node without a place for tests keeps persons of its own apart."""
    if not settings.deployed:
        _, silo = simulated_place(context)
        held = read_holdings(task)
        return (held.testing if test else held.training)[silo]
    node = context.node_config
    if test and "test-dir" in node:
        return node_examples(task, own_folder(node, "test-dir", "this node's test data"))
    place = own_folder(node, "data-dir", "this node's data")
    return node_examples(task, place, test=test, apart="test-dir" not in node)


def _persons(task: Task, examples: Examples) -> Persons:
    data = torch.tensor(examples.inputs), torch.tensor(examples.labels)
    return Persons(data, person_ids=examples.keys if task.person else None)
