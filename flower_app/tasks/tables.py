"""A CSV file as a task reads it: rows in an order of their own, and what was not as described.

Rows are sorted by a digest of their cells, so that the file's order changes no result.
"""

import csv
import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError, counted
from flower_app.tasks.columns import MISSING, Column, canonical

_MARKS = ",;\t"
_LONGEST = 1 << 30  # bytes
_LONGEST_ROW = 1000  # lines, where cells hold ends of lines
_REPLACED = "\ufffd"
_LINE_END = re.compile(r"\r\n|\r|\n")  # of files; a cell may hold Unicode's others
_QUOTED = re.compile('"[^"]*"')


@dataclass(frozen=True)
class TableForm:
    """The columns that are read: inputs, the target with its classes, whose each row is.

    Without ``target`` rows are questions, which keep their order.
    """

    columns: tuple[Column, ...]
    target: str = ""
    classes: tuple[str, ...] = ()
    person: str = ""
    client: str = ""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples, in an order that follows from their content.

    Attributes
    ----------
    inputs : ndarray of float32, shape (n, ...)
    labels : ndarray of int64, shape (n,)
    keys : tuple of str
        Digests: of the person where persons are told apart, else of the example itself.
    clients : tuple of str
        Whose each row is, where a column says so; else empty.
    notes : tuple of str
        What was converted, in words.
    faults : tuple of str
        What was left out, in words.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    keys: tuple[str, ...]
    clients: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, rows: NDArray[np.int64]) -> "Examples":
        """Some of the rows."""
        return Examples(self.inputs[rows], self.labels[rows], tuple(self.keys[i] for i in rows))


@cache
def read_examples(path: Path, form: TableForm) -> Examples:
    """The labelled rows of a CSV file.

    Raises
    ------
    DataError
        If none can be used; the message has the reason and the remedy.
    """
    header, rows, commas, faults = _cells(path)
    wanted = [column.name for column in form.columns]
    wanted += [name for name in (form.target, form.person, form.client) if name]
    _check_header(path, header, wanted)
    rows = [row for row in rows if any(row[1])]  # a spreadsheet's empty lines hold nobody
    known = {canonical(value): place for place, value in enumerate(form.classes)}
    good: list[tuple[int, list[str], int]] = []
    without_class: list[tuple[int, str]] = []
    nobodys: dict[str, list[int]] = {}
    at = {name: header.index(name) for name in wanted}
    for line, cells in rows:
        owners = [name for name in (form.client, form.person) if name]
        missing = next((name for name in owners if cells[at[name]].lower() in MISSING), None)
        label = known.get(canonical(cells[at[form.target]]))
        if missing is not None:
            nobodys.setdefault(missing, []).append(line)
        elif label is None:
            without_class.append((line, cells[at[form.target]]))
        else:
            good.append((line, cells, label))
    for name, lines in nobodys.items():
        faults.append(
            f"{path}: {counted(len(lines), 'row')} without {name} left out (such as line "
            f"{lines[0]})"
        )
    if without_class:
        line, cell = without_class[0]
        faults.append(
            f"{path}: {counted(len(without_class), 'row')} left out whose {form.target} is none of "
            f"{', '.join(form.classes)} (such as {cell[:40]!r} in line {line})"
        )
    if not good:
        raise DataError("; ".join([*faults, f"{path}: no row can be used; add some"]))
    used = [at[name] for name in wanted]
    digests = [_digest([cells[place] for place in used]) for _, cells, _ in good]
    order = sorted(range(len(good)), key=digests.__getitem__)
    lines = [good[i][0] for i in order]
    table = [good[i][1] for i in order]
    inputs, notes = encoded(form.columns, table, lines, at, commas=commas)
    clients = [cells[at[form.client]] for cells in table] if form.client else []
    persons = [cells[at[form.person]] for cells in table] if form.person else []
    for name, texts in ((form.client, clients), (form.person, persons)):
        notes += _spelt_in_several_ways(name, texts)
    first = {canonical(text): text for text in sorted(set(clients), reverse=True)}
    return Examples(
        inputs=inputs,
        labels=np.array([good[i][2] for i in order], dtype=np.int64),
        keys=tuple(_digest([canonical(text)]) for text in persons)
        if form.person
        else tuple(digests[i] for i in order),
        clients=tuple(first[canonical(text)] for text in clients),
        notes=tuple(f"{path}: {note}" for note in notes),
        faults=tuple(faults),
    )


def _spelt_in_several_ways(name: str, texts: Sequence[str]) -> list[str]:
    """A note if several texts are one client or one person."""
    spellings: dict[str, list[str]] = {}
    for text in sorted(set(texts)):
        spellings.setdefault(canonical(text), []).append(text)
    several = [each for each in spellings.values() if len(each) > 1]
    if not several:
        return []
    as_one = " and ".join(map(repr, several[0][:3]))
    return [
        f"{name}: {len(several):,} are written in several ways, taken as one (such as {as_one})"
    ]


def read_questions(
    path: Path, columns: tuple[Column, ...]
) -> tuple[NDArray[np.float32], list[str]]:
    """The rows of a CSV file without a target, in their order, and notes of what was converted.

    Raises
    ------
    DataError
        If a column or every row is missing, or a row has another number of cells.
    """
    header, rows, commas, faults = _cells(path)
    if faults:  # a question is answered as it stands, or not at all
        raise DataError("; ".join(faults))
    _check_header(path, header, [column.name for column in columns])
    if not rows:
        raise DataError(f"{path} has no row below its names")
    at = {column.name: header.index(column.name) for column in columns}
    inputs, notes = encoded(
        columns, [cells for _, cells in rows], [line for line, _ in rows], at, commas=commas
    )
    return inputs, [f"{path}: {note}" for note in notes]


def encoded(
    columns: Sequence[Column],
    table: Sequence[Sequence[str]],
    lines: Sequence[int],
    at: dict[str, int],
    *,
    commas: bool,
) -> tuple[NDArray[np.float32], list[str]]:
    """Rows of cells as a model's inputs, float32 (rows, features), and notes of changes."""
    parts, notes = [], []
    for column in columns:
        cells = [row[at[column.name]] for row in table]
        values, changes = column.encoded(cells, lines, commas=commas)
        parts.append(values)
        notes += column.notes(changes)
    return np.concatenate(parts, axis=1).astype(np.float32), notes


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], bool, list[str]]:
    """Names, rows with their lines, whether a comma may be decimal, and rows that were left out.

    A fault in one row costs that row alone, since whether a table can be used at all must not
    depend on one person.
    """
    lines = _LINE_END.split(_text(path))
    begin = next((place for place, line in enumerate(lines) if line), None)
    if begin is None:
        raise DataError(f"{path} is empty; its first line has the columns' names")
    unquoted = _QUOTED.sub("", lines[begin])
    mark = max(_MARKS, key=unquoted.count)
    header, end = _record(lines, begin, mark)
    if header is None or "\0" in lines[begin]:
        raise DataError(f"{path} is no CSV file; save the table as CSV in UTF-8")
    rows, ragged = [], []
    foreign = sum(_REPLACED in line for line in lines)
    while end < len(lines):
        begin = end
        if not lines[begin]:
            end += 1
            continue
        cells, end = _record(lines, begin, mark)
        if cells is None or len(cells) != len(header):
            ragged.append(begin + 1)
        else:
            rows.append((begin + 1, cells))
    faults = []
    if ragged:
        faults.append(
            f"{path}: {counted(len(ragged), 'row')} left out that have not {len(header)} cells, or "
            f"have a quotation mark too few (such as line {ragged[0]})"
        )
    if foreign:
        faults.append(
            f"{path}: {counted(foreign, 'line')} with bytes that are no UTF-8; save it in UTF-8"
        )
    return header, rows, mark != ",", faults


def _record(lines: Sequence[str], begin: int, mark: str) -> tuple[list[str] | None, int]:
    """The cells of the row that begins with a line, and the place of the next row.

    A quoted cell may hold ends of lines. None for the cells of a line that cannot be read: where no
    later line ends its quoted cell, the next row is the next line.
    """
    cells = _parsed(lines[begin], mark)
    if cells is not None or lines[begin].count('"') % 2 == 0:
        return cells, begin + 1
    for end in range(begin + 1, min(begin + _LONGEST_ROW, len(lines))):
        if lines[end].count('"') % 2:
            cells = _parsed("\n".join(lines[begin : end + 1]), mark)
            return cells, begin + 1 if cells is None else end + 1
    return None, begin + 1


def _parsed(record: str, mark: str) -> list[str] | None:
    try:
        return [cell.strip() for cell in next(csv.reader([record], delimiter=mark, strict=True))]
    except (csv.Error, StopIteration):
        return None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST:
            raise DataError(f"{path} has more than {_LONGEST >> 30} GB; divide it")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if utf_16 else "utf-8-sig", errors="replace")


def check_names(path: Path, header: Sequence[str]) -> None:
    """Refuse a file two columns of which have one name; ``DataError``."""
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice:
        raise DataError(f"{path} has two columns named {twice[0]!r}; rename one of them")


def _check_header(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    check_names(path, header)
    for name in wanted:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.6)
            hint = f"it has {near[0]!r}" if near else f"it has {', '.join(header)[:200]}"
            raise DataError(
                f"{path} has no column {name!r} ({hint}); name the columns as task.toml does"
            )


def read_cells(path: Path) -> tuple[list[str], list[list[str]], bool, list[str]]:
    """A CSV file as text: names, rows, whether a comma may be decimal, and what is wrong with it.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    header, rows, commas, faults = _cells(path)
    return header, [cells for _, cells in rows if any(cells)], commas, faults


def unused_columns(path: Path, form: TableForm) -> list[str]:
    """The columns that a task does not read."""
    names = {column.name for column in form.columns} | {form.target, form.person, form.client}
    return [name for name in _cells(path)[0] if name not in names]


def _digest(cells: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(cells).encode()).hexdigest()
