"""A first ``task.toml`` from somebody's table, with each guess in words for its owner to check."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flower_app.errors import DataError
from flower_app.tasks.columns import (
    MISSING,
    Category,
    Column,
    Number,
    as_number,
    can_be_told_apart,
    canonical,
)
from flower_app.tasks.pictures import Pictures
from flower_app.tasks.tables import check_names, read_cells

_MOST_CATEGORIES = 20
_MOSTLY = 0.95  # of the cells that are not missing
_MANY_CLIENTS = 50
_FEW_ROWS = 10
_MANY_VALUES = 20
TEST_SHARE = 0.2
_DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}([T ].*)?")
_TARGETS = ("target", "label", "class", "outcome", "diagnosis", "result", "y")
_CLIENTS = (
    *("client", "site", "hospital", "clinic", "centre", "center", "household", "user", "customer"),
    *("device", "branch", "school", "region"),
)
_PERSONS = ("person", "patient", "subject", "participant", "member", "pid")


@dataclass(frozen=True)
class Guess:
    """The text of a ``task.toml``, what was guessed for it, line by line, and what to confirm."""

    text: str
    lines: tuple[str, ...]
    confirm: str


def guess_task(
    table: Path,
    *,
    written_as: str,
    target: str = "",
    client: str = "",
    person: str = "",
    mode: str | None = None,
) -> Guess:
    """Guess a task from a table.

    Parameters
    ----------
    table : Path
    written_as : str
        The table's path as ``task.toml`` is to name it.
    target, client, person : str
        Columns that somebody named; "" to guess them.
    mode : str, optional
        "clients" or "silos"; by default silos where there are few.

    Raises
    ------
    DataError
        If the table has no such column, or none could be guessed.
    """
    header, rows, commas, faults = read_cells(table)
    check_names(table, header)
    if not rows:
        raise DataError(f"{table} has no row below its names")
    cells = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    for option, name in (("target", target), ("client-column", client), ("person-column", person)):
        if name and name not in cells:
            raise DataError(f"--{option} {name!r} is no column; it has {', '.join(header)}")
    lines = list(faults)
    client = client or _named(cells, _CLIENTS, lines, "says which client holds a row")
    person = person or _named(cells, _PERSONS, lines, "says whose a row is")
    target = target or _target(cells, {client, person}, lines)
    if not client:
        raise DataError(
            f"{table}: no column says which client (or hospital, or household) holds a row; name "
            f"it with --client-column, one of {', '.join(header)}"
        )
    roles = {"client-column": client, "person-column": person, "target": target}
    for option, name in roles.items():
        other = next((role for role in roles if role != option and roles[role] == name), None)
        if name and other:
            raise DataError(f"--{option} and --{other} are both {name!r}; name two columns")
    columns: list[Column] = []
    for name in header:
        if name not in (client, person, target):
            column, why = _column(name, cells[name], commas=commas)
            lines.append(f"{name}: {why}")
            columns += [column] if column else []
    classes = _different(cells[target])
    if not 2 <= len(classes) <= _MOST_CATEGORIES:
        raise DataError(
            f"{table}: {target!r} has {len(classes)} different values; a target has 2 to "
            f"{_MOST_CATEGORIES} classes: name another with --target"
        )
    if not columns:
        raise DataError(f"{table} has no column that a model could see")
    clients = len(_different(cells[client]))
    many, why = guessed_mode(mode, clients)
    if many:
        lines.append(why)
    elif person:
        lines.append(f"{why}: persons are hidden, each with all rows there")
    else:
        lines.append(
            f"{why}: ROWS are hidden, for no column says whose a row is. Where a "
            "person has several, name that column with --person-column: otherwise such a person "
            "is promised less"
        )
    units = len(_different(cells[person])) if person else len(rows)
    privacy = 'mode = "clients"\n' if many else silos_lines(clients, units)
    return Guess(
        task_text(
            name=table.stem,
            data=f"table = {quoted(written_as)}\n"
            f"client-column = {quoted(client)}\n"
            + (f"person-column = {quoted(person)}\n" if person else "")
            + f"test-share = {TEST_SHARE}\n"
            "# Ranges and categories below were read from the data: they are not public. Replace\n"
            "# each by what is known without looking, then write true: until then run refuses.\n"
            "ranges-are-public = false\n",
            columns=columns,
            target=target,
            classes=classes,
            privacy=privacy,
        ),
        tuple(lines),
        "These ranges and categories were read from the data, so they are not public: replace them "
        "in task.toml by what is known without looking, and write ranges-are-public = true there. "
        "Until then run refuses.",
    )


def guessed_mode(mode: str | None, clients: int) -> tuple[bool, str]:
    """Whether clients are hidden, or else persons of silos; and why, in words."""
    many = mode == "clients" or (mode is None and clients >= _MANY_CLIENTS)
    why = "as --mode says" if mode else f"for there are {clients:,} clients"
    if many:
        return True, f"mode: clients, {why}: each is hidden with all it holds"
    return False, f"mode: silos, {why}"


def silos_lines(silos: int, units: int) -> str:
    """What ``task.toml`` says of silos that hold so many persons, rows or pictures."""
    return (
        f'mode = "silos"\nsilos = {silos}\n'
        f"persons = {_round(units * (1 - TEST_SHARE))}  # to train on; a round number, no count\n"
    )


def task_text(
    *,
    name: str,
    data: str,
    classes: Sequence[str],
    privacy: str,
    columns: Sequence[Column] = (),
    target: str = "",
    pictures: Pictures | None = None,
    controller: str = "",
    purpose: str = "",
    names: Sequence[str] = (),
) -> str:
    """The text of a ``task.toml``; ``data`` and ``privacy`` are lines of it.

    Of a table it has ``columns`` and a ``target``, else ``pictures``.
    """
    if pictures:
        model = 'model = "cnn"  # or "logistic", "mlp", or "module:function" of your own'
        inputs = f"[pictures]\nside = {pictures.side}\ncolours = {str(pictures.colours).lower()}\n"
    else:
        model = 'model = "logistic"  # or "mlp", or "module:function" of your own'
        inputs = "[columns]\n"
        inputs += "".join(f"{_key(column.name)} = {_range(column)}\n" for column in columns)
    column = f"column = {quoted(target)}\n" if target else ""
    return (
        f"name = {quoted(name)}\n"
        f"controller = {quoted(controller or 'who answers for the data, and an address')}\n"
        f"purpose = {quoted(purpose or 'why the model is trained')}\n"
        f"{model}\n\n"
        f"[data]\n{data}\n"
        f"{inputs}\n"
        f"[target]\n{column}classes = {_list(classes)}\n"
        + (f"names = {_list(names)}\n" if names else "")
        + f"\n[privacy]\n{privacy}epsilon = 3.0\ndelta = 1e-5\n"
    )


def _named(cells: dict[str, list[str]], names: Sequence[str], lines: list[str], role: str) -> str:
    for column in cells:
        words = column.lower().replace("-", "_").replace(" ", "_").split("_")
        if any(name in words for name in names) and len(_different(cells[column])) > 2:
            lines.append(f"{column}: {role}, by its name")
            return column
    return ""


def _target(cells: dict[str, list[str]], taken: set[str], lines: list[str]) -> str:
    """The column to predict: by its name, or the last one with few values."""
    few = [
        name
        for name, column in cells.items()
        if name not in taken and 2 <= len(_different(column)) <= _MOST_CATEGORIES
    ]
    if not few:
        raise DataError("no column has few values, as a target has; name one with --target")
    named = [name for name in few if name.lower() in _TARGETS]
    target = named[0] if named else few[-1]
    lines.append(
        f"{target}: the target, "
        + ("by its name" if named else "the last column with few values (--target names another)")
    )
    return target


def _column(name: str, cells: Sequence[str], *, commas: bool) -> tuple[Column | None, str]:
    known = [cell for cell in cells if cell.lower() not in MISSING]
    missing = f", {len(cells) - len(known):,} missing" * (len(known) < len(cells))
    different = _different(known)
    if len(different) < 2:
        return None, "left out, it has one value" if different else "left out, it is empty"
    read = [(cell, as_number(cell, commas=commas)) for cell in known]
    numbers = [value for _, value in read if value is not None and math.isfinite(value)]
    if len(numbers) >= _MOSTLY * len(known):
        low, high = min(numbers), max(numbers)
        if len(set(numbers)) == len(cells) and name.lower().split("_")[-1] in ("id", "index", ""):
            return None, "left out, its values number the rows"
        if not can_be_told_apart(low, high):
            return None, "left out, its numbers differ too little, or are too large, for a model"
        others = len(known) - len(numbers)
        return (
            Number(name, low, high),
            f"a number from {low:g} to {high:g}{missing}"
            + f", {others:,} no numbers" * bool(others)
            + _numbering(numbers),
        )
    if len(different) <= _MOST_CATEGORIES:
        return (
            Category(name, tuple(different)),
            f"one of {', '.join(different)}{missing}{_rare(known)}",
        )
    if len(numbers) >= len(known) / 2:
        odd = next(cell for cell, value in read if value is None or not math.isfinite(value))
        return None, (
            f"left out, {len(known) - len(numbers):,} of {len(known):,} values are no numbers "
            f"(such as {odd[:40]!r}); give it a range if the others are to be used"
        )
    dates = sum(bool(_DATE.fullmatch(cell)) for cell in known)
    if dates >= _MOSTLY * len(known):
        return None, "left out, it holds dates; write a number of days or years in their place"
    return None, f"left out, it has {len(different):,} different texts"


def _numbering(numbers: Sequence[float]) -> str:
    """A warning in words, if whole numbers are so many that they may be names of somebody."""
    different = len(set(numbers))
    whole = all(number.is_integer() for number in numbers)
    if not whole or different < max(_MANY_VALUES, len(numbers) / 2):
        return ""
    return (
        f"; {different:,} different whole numbers in {len(numbers):,} rows: if they number cases "
        "or persons, delete its line (or name it with --person-column), for it tells a model who "
        "a row is of"
    )


def _rare(cells: Sequence[str]) -> str:
    """Which values of a category point at a few rows, in words."""
    counts = Counter(map(canonical, cells))
    rare = [value for value in _different(cells) if counts[canonical(value)] < _FEW_ROWS]
    few = f"; {', '.join(rare)} in fewer than {_FEW_ROWS} rows: may it be known that it occurs?"
    return few * bool(rare)


def _different(cells: Sequence[str]) -> list[str]:
    """The values that occur, each as it is written first, in order."""
    values: dict[str, str] = {}
    for cell in cells:
        if cell.lower() not in MISSING:
            values.setdefault(canonical(cell), cell)
    return sorted(values.values(), key=lambda text: (as_number(text) or 0.0, text))


def _round(number: float) -> int:
    """Two digits, downwards."""
    unit = 1
    while number >= 100 * unit:
        unit *= 10
    return max(1, int(number) // unit * unit)


def _range(column: Column) -> str:
    if isinstance(column, Number):
        return f"[{column.low:.15g}, {column.high:.15g}]"
    return _list(column.values)


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, values))}]"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else quoted(name)


def quoted(text: str) -> str:
    """A text as TOML has it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
