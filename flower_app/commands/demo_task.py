"""``deploy-demo`` on a task of a user's own: each silo's data and task.toml on its own node."""

import csv
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flower_app.errors import CommandFailedError, DataError
from flower_app.paths import is_folder, listed
from flower_app.tasks import Task, canonical, folder_of_holders, read_cells, read_task

_MOST_SILOS = 8
_TEST_SHARE = re.compile(r"^[ \t]*test-share[ \t]*=.*$", re.MULTILINE)


@dataclass(frozen=True)
class DemoTask:
    """A task as its parties have it.

    Attributes
    ----------
    server : Path
        The server's ``task.toml``.
    nodes : mapping of str to (Path, Path)
        By a number, such as ``silo-1``, a node's data and its own ``task.toml``.
    names : tuple of str
        What the silos are called, in that order.
    """

    server: Path
    nodes: Mapping[str, tuple[Path, Path]]
    names: tuple[str, ...]


def check_demo(task: Task) -> None:
    """Refuse a task that has no silos, or too many for one machine.

    Raises
    ------
    CommandFailedError
        With what to do.
    """
    if task.mode != "silos":
        raise CommandFailedError(
            f"the task {task.name!r} is over clients, of which a few hide nobody; deploy-demo "
            "takes tasks with mode = 'silos'. Simulate it: `python -m flower_app run task=...`"
        )
    if task.silos > _MOST_SILOS:
        raise CommandFailedError(
            f"the task {task.name!r} has {task.silos} silos, each a SuperNode of its own here; "
            f"deploy-demo starts at most {_MOST_SILOS}. Simulate it: `python -m flower_app run "
            "task=...`"
        )


def divide_task(task: Task, folder: Path) -> DemoTask:
    """Give each silo a folder with its data and its copy of ``task.toml``, as an owner has them.

    Of a table without test data a share of each silo's persons is the server's, and on no node.

    Raises
    ------
    DataError
        If the data are of another number of silos.
    CommandFailedError
        If the task's server would have no test data.
    """
    parties = folder / "parties"
    if task.table is not None:
        held, test = _divided(task, task.table, folder)
    else:
        held, test = _holders(folder_of_holders(task)), None
    if len(held) != task.silos:
        raise DataError(
            f"the task {task.name!r} says silos = {task.silos}, and there are data of {len(held)}: "
            f"{', '.join(held)}"
        )
    nodes = {}
    for number, data in enumerate(held.values(), 1):
        home = parties / f"silo-{number}"
        home.mkdir(parents=True)
        if is_folder(data):
            shutil.copytree(data, home / "data")
        else:
            (home / "data").mkdir()
            shutil.copy(data, home / "data" / "rows.csv")
        nodes[home.name] = home / "data", _copy(task, home)
    return DemoTask(_servers(task, parties / "server", test), nodes, tuple(held))


def _holders(place: Path) -> dict[str, Path]:
    """The file or folder of each silo."""
    if not is_folder(place):
        raise DataError(f"{place} is not a folder; mend [data] clients in task.toml")
    return {
        path.name: path
        for path in listed(place)
        if is_folder(path) or path.suffix.lower() == ".csv"
    }


def _divided(task: Task, table: Path, folder: Path) -> tuple[dict[str, Path], Path | None]:
    """A CSV file of each silo, and the server's of test rows if the task names none."""
    header, rows, commas, _ = read_cells(table)
    mark = ";" if commas else ","  # beside which a comma may be decimal
    at = header.index(task.client)
    names = sorted({canonical(row[at]) for row in rows if row[at]})
    draw = random.Random(0)  # noqa: S311 - nobody is protected by who is kept for the test
    made = folder / "divided"
    made.mkdir(parents=True)
    files: dict[str, Path] = {}
    kept: list[Sequence[str]] = []
    for number, name in enumerate(names):
        own = [row for row in rows if canonical(row[at]) == name]
        whose = header.index(task.person) if task.person else None
        persons = [str(i) if whose is None else canonical(row[whose]) for i, row in enumerate(own)]
        tested: set[str] = set()
        if task.test is None:
            each = sorted(set(persons))
            tested = set(draw.sample(each, round(task.test_share * len(each))))
        files[name] = made / f"{number}.csv"
        divided: tuple[list[Sequence[str]], list[Sequence[str]]] = ([], [])
        for row, who in zip(own, persons, strict=True):
            divided[who in tested].append(row)
        _write(files[name], header, divided[0], mark)
        kept += divided[1]
    if task.test is not None:
        return files, None
    _write(made / "test.csv", header, kept, mark)
    return files, made / "test.csv"


def _servers(task: Task, home: Path, test: Path | None) -> Path:
    """The server's ``task.toml``, with test data of its own."""
    home.mkdir(parents=True)
    if task.test is not None:
        return _copy(task, home, task.text.replace("\ufeff", ""), test=task.test)
    if test is None:
        raise CommandFailedError(
            f"the task {task.name!r} has no test data for the server; name some in task.toml: "
            '[data] test = "..."'
        )
    return _copy(task, home, _TEST_SHARE.sub('test = "unset"', task.text), test=test)


def _copy(task: Task, home: Path, text: str | None = None, *, test: Path | None = None) -> Path:
    """A copy of ``task.toml``, and of the module of its model, in a party's folder."""
    written = task.text if text is None else text
    if test is not None:
        line = re.compile(r"^[ \t]*test[ \t]*=.*$", re.MULTILINE)
        written = line.sub(lambda _: f"test = {str(test)!r}", written)
    file = home / "task.toml"
    file.write_text(written, encoding="utf-8")
    module, colon, _ = task.model.partition(":")
    source = (task.home / Path(*module.split("."))).with_suffix(".py")
    if colon and source.is_file():
        target = (home / Path(*module.split("."))).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    copied = read_task(file)
    if copied.digest != task.digest or (test is not None and copied.test != test):
        raise CommandFailedError(
            f"the task {task.name!r} cannot be divided: write [data] test or test-share on a line "
            "of its own in task.toml"
        )
    return file


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], mark: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([header, *rows])
