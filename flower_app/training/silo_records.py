"""What a silo trains and tests on."""

from functools import partial

import torch
from flwr.app import Context
from torch import nn

from flower_app.settings import Settings
from flower_app.tasks import Examples, Task, node_examples, read_holdings
from flower_app.training.node_policy import own_folder, simulated_place
from flower_app.training.silos import HELD_OUT
from flower_app.training.work import (
    dataset_of,
    inputs_of,
    model_of,
    own_examples,
    partitions_of,
    tell_of_data,
)
from privacy.training import Persons
from strategies import SiloTask


def silo_task(settings: Settings, context: Context) -> SiloTask:
    """The run's model and loss, and the silo's records for training and for tests."""
    own = settings.own_task
    tested = not settings.deployed or "test-dir" in context.node_config
    tested = tested or bool(own and own.test_share)
    return SiloTask(
        model=model_of(settings),
        loss=nn.functional.cross_entropy,
        persons=partial(records, settings, context, test=False),
        test_persons=partial(records, settings, context, test=True) if tested else None,
    )


def records(settings: Settings, context: Context, *, test: bool) -> Persons:
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
    own_tests = test and "test-dir" in node
    key, purpose = ("test-dir", "test data") if own_tests else ("data-dir", "data")
    place = own_folder(node, key, f"this node's {purpose}")
    tell_of_data(node_examples(task, place))
    return node_examples(task, place, test=test, apart="test-dir" not in node)


def _persons(task: Task, examples: Examples) -> Persons:
    data = torch.tensor(examples.inputs), torch.tensor(examples.labels)
    return Persons(data, person_ids=examples.keys if task.person else None)
