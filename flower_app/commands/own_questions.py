"""Questions to a model of a user's own data: rows of CSV files, rows as values, pictures."""

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError
from flower_app.paths import is_file, is_folder, listed
from flower_app.pictures.endings import PICTURES
from flower_app.tasks import (
    Task,
    encoded,
    picture_files,
    read_picture,
    read_questions,
)

_OF_A_LINE = re.compile(r" \(such as line 1\)$| in line 1(?=\)$)")  # a typed row is in no file

Question = tuple[int, str, NDArray[Any] | DataError]
"""The number of its file, its own name, and its inputs or the reason why there are none."""


def find_questions(path: Path, task: Task) -> list[Path]:
    """The files at a path, by their names; a row as values is left as it is.

    Raises
    ------
    DataError
        If there is none.
    """
    if is_folder(path):
        if task.pictures:
            files = picture_files(path)
        else:
            files = [file for file in listed(path) if file.suffix.lower() == ".csv"]
        if not files:
            endings = ", ".join(PICTURES) if task.pictures else ".csv"
            raise DataError(f"{path} holds nothing to ask about; files end in {endings}")
        return files
    if is_file(path) or (not task.pictures and "=" in str(path)):
        return [path]
    example = ", ".join(f"{column.name}=..." for column in task.columns[:2])
    raise DataError(
        f"{path} is not there; give "
        + ("a picture" if task.pictures else f"a CSV file, a row as values ('{example}, ...')")
        + ", or a folder"
    )


def own_questions(
    files: list[Path], task: Task, *, notify: Callable[[str], None]
) -> Iterator[Question]:
    """All questions in their order; ``notify`` receives a line about what was converted."""
    for number, file in enumerate(files, 1):
        try:
            yield from ((number, *each) for each in _questions(file, task, notify))
        except DataError as error:
            yield number, file.name, error


def _questions(
    file: Path, task: Task, notify: Callable[[str], None]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if task.pictures:
        picture = read_picture(file, task.pictures)
        for note in picture.notes:
            notify(f"{file.name}: {note}")
        yield file.name, picture.values
        return
    if not is_file(file):
        yield str(file), _row(str(file), task, notify)
        return
    rows, notes = read_questions(file, task.columns)
    for note in notes:
        notify(note)
    for index, row in enumerate(rows):
        yield f"{file.name}[{index}]" if len(rows) > 1 else file.name, row


def _row(text: str, task: Task, notify: Callable[[str], None]) -> NDArray[np.float32]:
    """A row from ``age=40,sex=female``; a column that is not named is missing.

    Raises
    ------
    DataError
        If a name is none of the columns, or stands twice.
    """
    names = [column.name for column in task.columns]
    cells = dict.fromkeys(names, "")
    given: set[str] = set()
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or name not in cells or name in given:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(names)}"
            again = "stands twice" if name in given else "is no column with its value"
            raise DataError(f"{pair.strip()!r} {again}; {hint}")
        given.add(name)
        cells[name] = value
    at = {name: place for place, name in enumerate(names)}
    inputs, notes = encoded(task.columns, [list(cells.values())], [1], at, commas=False)
    for note in notes:
        notify(_OF_A_LINE.sub("", note))
    row: NDArray[np.float32] = inputs[0]
    return row
