"""Questions to any compiled model, of which the owner has the plan: rows and arrays of numbers."""

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_app.commands.own_questions import Question
from flower_app.errors import CommandFailedError, DataError
from flower_app.paths import is_file, is_folder, listed
from flower_app.tasks import as_number, check_names, read_cells
from privacy.inference import InputContract, Plan, accept_plan
from privacy.inference.errors import PlanRefusedError
from privacy.inference.input_range import bounds, label

_ENDINGS = (".csv", ".npy")
_LONGEST_PLAN = 1 << 22  # bytes
_Rows = NDArray[np.float64]


def read_plan(path: Path) -> Plan:
    """The plan in a file, for one question at a time.

    Raises
    ------
    CommandFailedError
        If there is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_PLAN + 1).decode()
        plan = Plan.from_json(text)
    except OSError as error:
        raise CommandFailedError(f"--plan {path} cannot be read: {error.strerror}") from error
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise CommandFailedError(
            f"--plan {path} is none: {error}; give what plan.to_json() returned"
        ) from error
    if plan.batch_size > 1:
        raise CommandFailedError(
            f"--plan {path} is for batches of {plan.batch_size}, and `ask` asks one at a time: "
            "compile with batch_size=1, or ask from Python"
        )
    return plan


def same_plan(text: str, plan: Plan) -> Plan:
    """The service's plan, which must be the owner's.

    Raises
    ------
    PlanRefusedError
        If it is another, or could harm.
    """
    contract = InputContract(
        plan.input_shape, plan.input_range, plan.classes, multi_label=plan.multi_label
    )
    theirs = accept_plan(text, contract)
    if theirs.digest != plan.digest:
        raise PlanRefusedError(
            "the service has another model, or the same compiled anew, than the plan that you "
            "gave; ask whoever has the model for the plan that is served"
        )
    return theirs


def find_plan_questions(path: Path, plan: Plan) -> list[Path]:
    """The files at a path, by their names; a row as values is left as it is.

    Raises
    ------
    DataError
        If there is none.
    """
    if is_folder(path):
        files = [file for file in listed(path) if file.suffix.lower() in _ENDINGS]
        if not files:
            raise DataError(f"{path} holds nothing to ask about; files end in .csv or .npy")
        return files
    if is_file(path) or all(as_number(cell) is not None for cell in str(path).split(",")):
        return [path]
    raise DataError(
        f"{path} is not there; give a CSV file, a .npy file, a folder of them, or a row of "
        f"{_size(plan)} numbers with commas between them"
    )


def plan_questions(
    files: list[Path], plan: Plan, notify: Callable[[str], None]
) -> Iterator[Question]:
    """All questions in their order; ``notify`` receives lines about columns.

    Columns of a file are found by the plan's names of features; where it has none, or the file,
    they are taken as they stand, and a line says so.
    """
    for number, file in enumerate(files, 1):
        try:
            names, rows = _read(file, plan, notify)
        except DataError as error:
            yield number, file.name, error
            continue
        for index, row in enumerate(rows):
            name = f"{file.name}[{index}]" if len(rows) > 1 else file.name
            try:
                yield number, name, _checked(row, names, plan)
            except DataError as error:
                yield number, name, DataError(f"{name}: {error}")


def _read(
    file: Path, plan: Plan, notify: Callable[[str], None]
) -> tuple[list[str], list[list[str]] | _Rows]:
    """The names of columns, where there are any, and rows of cells or of numbers."""
    names = list(plan.feature_names)
    if not is_file(file):
        return names, [str(file).split(",")]
    if file.suffix.lower() == ".npy":
        return names, _array(file, plan)
    header, rows, commas, faults = read_cells(file)
    if faults:  # a question is answered as it stands, or not at all
        raise DataError("; ".join(faults))
    if commas:
        rows = [[cell.replace(",", ".", 1) for cell in row] for row in rows]
    if not set(names) & set(header) and all(
        as_number(cell, commas=commas) is not None for cell in header
    ):
        if names:
            notify(f"{file.name}: has no names; its columns are taken as {', '.join(names)}")
        return names, [[cell.replace(",", ".", 1) for cell in header], *rows]
    check_names(file, header)
    if names:
        return names, _by_name(file, header, rows, names, notify)
    if len(header) != _size(plan):
        raise DataError(
            f"{file} has {len(header)} columns; the plan's inputs have {_size(plan)} numbers: "
            "give these columns alone, in the model's order"
        )
    if not rows:
        raise DataError(f"{file} has no row below its names")
    notify(
        f"{file.name}: its columns are taken in this order: {', '.join(header)}; the plan has no "
        "names of features to check that by"
    )
    return header, rows


def _by_name(
    file: Path,
    header: list[str],
    rows: list[list[str]],
    names: list[str],
    notify: Callable[[str], None],
) -> list[list[str]]:
    """The rows' cells in the order of the plan's names, whatever that of the file's columns is.

    Raises
    ------
    DataError
        If a column is missing.
    """
    missing = [name for name in names if name not in header]
    if missing:
        near = difflib.get_close_matches(missing[0], header, n=1, cutoff=0.5)
        hint = f" (it has {near[0]!r})" if near else ""
        raise DataError(
            f"{file} has no column {missing[0]!r}{hint}; the plan takes {', '.join(names)}"
        )
    if not rows:
        raise DataError(f"{file} has no row below its names")
    others = [name for name in header if name not in names]
    if others:
        notify(f"{file.name}: left out, since the model takes none: {', '.join(others)}")
    taken = [header.index(name) for name in names]
    return [[row[at] for at in taken] for row in rows]


def _array(file: Path, plan: Plan) -> _Rows:
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # headers fail in many ways
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file} holds several arrays, as .npz files do; save one by itself")
    shape, size = plan.input_shape, _size(plan)
    fits = array.shape in (shape, (size,)) or array.shape[1:] in (shape, (size,))
    if array.dtype.kind not in "iuf" or not fits:
        raise DataError(
            f"{file} holds {array.dtype} of shape {array.shape}; give numbers of shape {shape}, or "
            f"(n, {', '.join(map(str, shape))})"
        )
    return np.asarray(array, dtype=np.float64).reshape(-1, size)


def _checked(row: list[str] | _Rows, names: list[str], plan: Plan) -> NDArray[Any]:
    """A row as the model's input; nothing is clipped, guessed or left out."""
    size = _size(plan)
    if len(row) != size:
        raise DataError(f"has {len(row)} numbers; the plan's inputs have {size}")
    low, high = (end.ravel() for end in bounds(plan.input_range, plan.input_shape))
    values = np.empty(size)
    for place, cell in enumerate(row):
        where = names[place] if names else f"number {label((place,))}, counted from 0,"
        value = as_number(cell) if isinstance(cell, str) else float(cell)
        if value is None:
            raise DataError(f"{where} is {cell[:40]!r}, which is no number")
        if not low[place] <= value <= high[place]:
            raise DataError(
                f"{where} is {value:g}, and the model answers for [{low[place]:g}, "
                f"{high[place]:g}] there"
            )
        values[place] = value
    return values.reshape(plan.input_shape)


def _size(plan: Plan) -> int:
    return int(np.prod(plan.input_shape))
