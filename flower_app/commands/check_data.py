"""``python -m flower_app check-data``: lists the faults in a node's data, or in a task's."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.data import check_node_folder, load_node_folder
from flower_app.errors import counted
from flower_app.tasks import (
    Examples,
    Holdings,
    Task,
    node_examples,
    read_holdings,
    read_task,
    server_examples,
    unused_columns,
)
from privacy.accounting import large_delta


def add_command(commands: Any) -> None:
    """Add ``check-data`` to the app's command line."""
    parser = commands.add_parser(
        "check-data",
        description="Reads a SuperNode's own data as its ClientApp would, or all data of a task as "
        "a simulation would. Exits with 0 if nothing is left out; otherwise with 1 and a line for "
        "each fault.",
    )
    parser.add_argument(
        "place", type=Path, metavar="DATA", help="a node's folder (or CSV file), or a task.toml"
    )
    parser.add_argument(
        "--task", type=Path, metavar="FILE", help="the task.toml that the node's data are for"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the data and print the result."""
    place: Path = options.place
    if options.task is not None:
        task = read_task(options.task)
        examples = node_examples(task, place)
        return _tell(task, place, [examples], examples.notes, examples.faults)
    if place.suffix == ".toml":
        task = read_task(place)
        if not (task.holders or task.table):
            return _tell_server(task, place)
        held = read_holdings(task)
        notes, faults = _beside(task, held)
        status = _tell(task, place, held.training, [*held.notes, *notes], [*held.faults, *faults])
        print(_holders(task, held))
        return status
    faults = check_node_folder(place)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    data = load_node_folder(place)
    counts = np.bincount(data.labels, minlength=10)
    print(f"{place} is good: {counted(len(data), 'image')}.")
    print("Of each digit: " + ", ".join(f"{digit}: {n:,}" for digit, n in enumerate(counts)))
    return 0


def _tell_server(task: Task, place: Path) -> int:
    """Check the task of a deployment, in which nodes alone have data to train on."""
    tests = server_examples(task)
    status = _tell(task, place, [tests], tests.notes, tests.faults, use="test")
    print("No data to train on: those of a deployment lie on its nodes.")
    return status


def _tell(
    task: Task,
    place: Path,
    parts: Sequence[Examples],
    notes: Sequence[str],
    faults: Sequence[str],
    *,
    use: str = "train",
) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    for note in [*notes, *_unused(task, place)]:
        print(f"note: {note}", file=sys.stderr)
    total = sum(map(len, parts))
    labels = np.concatenate([part.labels for part in parts])
    counts = np.bincount(labels, minlength=len(task.classes))
    verdict = "can be used, without what is named above" if faults else "is good"
    print(f"{place} {verdict}: {counted(total, *task.things)} to {use} on.")
    print(
        "Of each class: "
        + ", ".join(
            f"{name}: {count:,}" for name, count in zip(task.class_names, counts, strict=True)
        )
    )
    if not task.ranges_are_public:
        print("note: ranges-are-public = false: run refuses until you confirm them in task.toml")
    return 1 if faults else 0


def _unused(task: Task, place: Path) -> list[str]:
    file = task.table if place.suffix == ".toml" else place
    if task.pictures or file is None or not file.is_file():
        return []
    names = unused_columns(file, task.form)
    return [f"{file}: not used: {', '.join(names)}"] if names else []


def _beside(task: Task, held: Holdings) -> tuple[list[str], list[str]]:
    """Notes and faults of the numbers in ``[privacy]`` beside those of the data."""
    if task.mode != "silos":
        problem = large_delta(task.delta, task.population) if task.population else None
        return [problem] if problem else [], []
    notes, faults = [], []
    if len(held.names) != task.silos:
        faults.append(
            f"[privacy] silos = {task.silos}, and there are data of {len(held.names)}: "
            f"{', '.join(held.names)[:200]}. Add what is missing, or mend silos"
        )
    units = _units(task, held)
    if not task.persons / 2 <= units <= 2 * task.persons:
        notes.append(
            f"[privacy] persons = {task.persons:,}, and there are {counted(units, task.unit)} to "
            "train on: a round number near that costs the least accuracy"
        )
    if problem := large_delta(task.delta, task.persons, unit=task.unit):
        notes.append(problem)
    return notes, faults


def _units(task: Task, held: Holdings) -> int:
    """How many persons, or rows, there are to train on."""
    return sum(len(set(part.keys)) if task.person else len(part) for part in held.training)


def _holders(task: Task, held: Holdings) -> str:
    dataset = held.dataset
    sizes = held.shares.sizes
    unit = "silo" if task.mode == "silos" else "client"
    persons = task.mode == "silos" and task.person
    return (
        f"{counted(len(held.names), unit)} with {sizes.min():,} to {sizes.max():,} "
        f"{task.things[1]} each"
        + (f", of {counted(_units(task, held), 'person')}" if persons else "")
        + f"; for testing {len(dataset.validation):,} after each round and "
        f"{len(dataset.test):,} at the end."
    )
