"""Who holds which examples of a task, which are for testing, and a node's own.

In a simulation over clients whole clients are kept for testing, so that no protected client has a
row among them; over silos it is persons (or rows) of each silo, by a digest of their own, so that
one more or less moves no other.
"""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from flower_app.data import ClientData, Dataset, Partitions, Split
from flower_app.errors import DataError, counted
from flower_app.paths import is_folder, listed
from flower_app.tasks.images import left_out, read_class_folders, visible_files
from flower_app.tasks.tables import Examples, read_examples
from flower_app.tasks.task import Task

_PARTS = 1 << 32
_NO_TABLE = "do not end in .csv"


@dataclass(frozen=True, eq=False)
class Holdings:
    """All data of a task, as a simulation has them.

    Attributes
    ----------
    dataset : Dataset
        The clients' examples, and those for testing, which are used half by half: after each round
        and at the end.
    shares : Partitions
        Who holds which of the training examples.
    names : tuple of str
        The holders, in that order.
    training, testing : tuple of Examples
        Of each silo; without silos ``testing`` is empty.
    notes, faults : tuple of str
        What was converted and what left out, in words.
    """

    dataset: Dataset
    shares: Partitions
    names: tuple[str, ...]
    training: tuple[Examples, ...]
    testing: tuple[Examples, ...]
    notes: tuple[str, ...]
    faults: tuple[str, ...]


@cache
def read_holdings(task: Task) -> Holdings:
    """Read all data of a task.

    Raises
    ------
    DataError
        If there are none, as in a deployment's task, or too few to keep some for testing.
    """
    held = _by_holder(task)
    testing: list[Examples] = []
    if task.mode == "silos":
        parts = [_divided(task, examples) for examples in held.values()]
        training = {name: part[0] for name, part in zip(held, parts, strict=True)}
        testing = [part[1] for part in parts]
        apart = testing
    else:
        kept = _kept_clients(task, list(held))
        training = {name: examples for name, examples in held.items() if name not in kept}
        apart = [held[name] for name in kept]
    tests = [server_examples(task)] if task.test else apart
    validation, test = _halves(task, tests)
    own = list(training.values())
    files = [*held.values(), *(tests if task.test else [])]
    counts = np.cumsum([0, *map(len, own)])
    return Holdings(
        dataset=Dataset(
            task.name,
            train=_split(task, own),
            validation=validation,
            test=test,
            fingerprint=task.digest,
        ),
        shares=Partitions.of([np.arange(a, b) for a, b in itertools.pairwise(counts)]),
        names=tuple(training),
        training=tuple(own),
        testing=tuple(testing),
        notes=_merged(note for each in files for note in each.notes),
        faults=tuple(
            dict.fromkeys([*_beside(task), *(fault for each in files for fault in each.faults)])
        ),
    )


def _merged(notes: Iterable[str]) -> tuple[str, ...]:
    """The notes, and as one those that differ in their file alone, which they begin with."""
    places: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        place, _, text = note.partition(": ")
        places.setdefault(text, []).append(place)
    return tuple(
        f"{those[0]} and {counted(len(those) - 1, 'other')}, each: {text}"
        if len(those) > 1
        else f"{those[0]}: {text}".removesuffix(": ")
        for text, those in places.items()
    )


def server_test_data(task: Task) -> Dataset:
    """The data of a deployment's server: test data of its own, and nobody's examples.

    Raises
    ------
    DataError
        If the task names none.
    """
    validation, test = _halves(task, [server_examples(task)])
    return Dataset(task.name, _split(task, []), validation, test, task.digest)


def server_examples(task: Task) -> Examples:
    """The test data that a task names, with what was left out; raises as ``server_test_data``."""
    if task.test is None:
        raise DataError(
            "the server of a deployment needs test data that belong to nobody in it; name a file "
            'of such rows in task.toml: [data] test = "test.csv"'
        )
    return _read_place(task, task.test)


def node_examples(task: Task, place: Path, *, test: bool = False, apart: bool = False) -> Examples:
    """The examples at a node's own place: a CSV file, a folder with one, or folders of pictures.

    ``apart``: persons that are kept for testing are left out, or with ``test`` are what remains.

    Raises
    ------
    DataError
        If none can be used.
    """
    examples = _read_place(task, place.expanduser())
    if not apart or not task.test_share:
        return examples
    return _divided(task, examples)[1 if test else 0]


def as_client_data(examples: Examples) -> ClientData:
    """Examples as a client trains on them."""
    return ClientData(np.array(examples.inputs), np.array(examples.labels))


def no_examples(task: Task) -> ClientData:
    """The data of a client without examples."""
    return ClientData(_empty(task).inputs, np.zeros(0, np.int64))


def _empty(task: Task) -> Examples:
    shape = task.pictures.shape if task.pictures else (len(task.features),)
    return Examples(np.zeros((0, *shape), np.float32), np.zeros(0, np.int64), ())


def folder_of_holders(task: Task) -> Path:
    """The folder with the data of each client; a ``DataError`` where a task names no data."""
    if task.holders is None:
        raise DataError(
            f"the task {task.name!r} names no data to train on: those of a deployment lie on its "
            'nodes. To train here name clients = "FOLDER", or table = "FILE", in [data]'
        )
    return task.holders


def _by_holder(task: Task) -> dict[str, Examples]:
    if task.table is not None:
        whole = read_examples(task.table, task.form)
        rows: dict[str, list[int]] = {}
        for row, client in enumerate(whole.clients):
            rows.setdefault(client, []).append(row)
        held = {name: whole.only(np.array(rows[name])) for name in sorted(rows)}
        first = next(iter(held))
        held[first] = Examples(
            held[first].inputs,
            held[first].labels,
            held[first].keys,
            notes=whole.notes,
            faults=whole.faults,
        )
        return held
    folder = folder_of_holders(task)
    if not is_folder(folder):
        raise DataError(
            f"{folder} is not a folder; put a {'folder' if task.pictures else 'CSV file'} for each "
            "client there, or mend [data] clients in task.toml"
        )
    places = [path for path in listed(folder) if not path.name.startswith(".")]
    if not task.pictures:
        places = [path for path in places if is_folder(path) or _is_table(path)]
    else:
        places = [path for path in places if is_folder(path)]
    if not places:
        raise DataError(f"{folder} holds no client; put a file or a folder for each one there")
    return {path.name: _read_place(task, path) for path in places}


def _read_place(task: Task, place: Path) -> Examples:
    if task.pictures:
        return read_class_folders(place, task.classes, task.pictures)
    if not is_folder(place):
        return read_examples(place, task.own_form)
    visible = visible_files(place)
    files = [file for file in visible if _is_table(file)]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{place} must hold one CSV file, and holds {names}; leave one")
    examples = read_examples(files[0], task.own_form)
    others = left_out(place, [file for file in visible if file not in files], _NO_TABLE)
    return replace(examples, faults=(*others, *examples.faults))


def _beside(task: Task) -> list[str]:
    """A fault in words, if there are files beside the clients' that are nobody's data."""
    if task.table is not None:
        return []
    folder = folder_of_holders(task)
    files = visible_files(folder)
    if task.pictures:
        return left_out(folder, files, "lie in no client's folder")
    return left_out(folder, [file for file in files if not _is_table(file)], _NO_TABLE)


def _is_table(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _kept_clients(task: Task, names: list[str]) -> list[str]:
    """The clients for testing: the share whose names' digests come first."""
    if task.test is not None:
        return []
    count = max(1, round(task.test_share * len(names)))
    if count >= len(names):
        raise DataError(
            f"{counted(len(names), 'client')} are too few to keep test-share = "
            f"{task.test_share:g} of them for testing; give a file of test data instead "
            '([data] test = "test.csv")'
        )
    return sorted(sorted(names, key=_hashed)[:count])


def _divided(task: Task, examples: Examples) -> tuple[Examples, Examples]:
    """A silo's examples to train and to test on: persons go by their own digests."""
    kept = np.array([int(_hashed(key)[:8], 16) < task.test_share * _PARTS for key in examples.keys])
    if not len(kept):
        return examples, examples
    training = examples.only(np.flatnonzero(~kept))
    return (
        Examples(
            training.inputs,
            training.labels,
            training.keys,
            notes=examples.notes,
            faults=examples.faults,
        ),
        examples.only(np.flatnonzero(kept)),
    )


def _halves(task: Task, tests: list[Examples]) -> tuple[Split, Split]:
    """The test examples in two halves, by their digests; both are all of them if one is empty."""
    halves: tuple[list[Examples], list[Examples]] = ([], [])
    for part in tests:
        odd = np.array([int(_hashed(f"half {key}")[:8], 16) % 2 for key in part.keys], dtype=bool)
        halves[0].append(part.only(np.flatnonzero(~odd)))
        halves[1].append(part.only(np.flatnonzero(odd)))
    first, second = halves
    if not sum(map(len, first)) or not sum(map(len, second)):
        first = second = tests
    if not sum(map(len, first)):
        raise DataError("there is no example to test on; raise test-share, or give a test file")
    return _split(task, first), _split(task, second)


def _split(task: Task, parts: list[Examples]) -> Split:
    parts = [_empty(task), *parts]
    return Split(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
