"""A silo's part in the answer to a query: a noisy sum over its persons, as integers to mask."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event
from privacy.arguments import detached, number, of_kind, unboxed
from privacy.mechanisms import Randomness, SiloGaussian, SystemRandomness
from privacy.mechanisms.person_sums import PersonIds, Rows, Vectors, rows_by_person
from privacy.statistics.table_query import TableQuery

_log = logging.getLogger(__name__)

_AT_ONCE = 1 << 20  # numbers of persons' parts together


class Ledger(Protocol):
    """What is charged; ``privacy.training.ClientLedger`` is one."""

    def charge(self, *events: Event) -> None:
        """Spend, or raise."""


def silo_statistics(
    query: TableQuery,
    features: Any,
    labels: Any = None,
    person_ids: PersonIds | None = None,
    *,
    mechanism: SiloGaussian,
    noise_multiplier: float,
    ledger: Ledger | None,
    persons: int,
    randomness: Randomness | None = None,
) -> npt.NDArray[np.int64]:
    """The sum of this silo's persons' parts of a query, with its share of the noise.

    Parameters
    ----------
    query : TableQuery
        The same in all silos.
    features : array, shape (n, columns), or n rows
        Numbers; n may be 0. A cell that is none, or masked, is missing; a row of another length
        than the others adds nothing. The log says how many are. Give rows with cells of several
        kinds as a list of them: an array of NumPy's is of one kind already, and a text in one row
        has made a text of each cell.
    labels : array, shape (n,), optional
        Classes from 0 on. Needed if the query has classes, and only then.
    person_ids : sequence of int or str, optional
        Whose each row is; rows with an equal id are one person's, who counts once, with the mean of
        them. What is equal, and missing, is as in ``Persons``. Default: every row is another
        person's.
    mechanism : SiloGaussian
    noise_multiplier : float
        z: the noise of the fewest honest silos together is z times ``query.clipping_norm``.
    ledger : ClientLedger or None
        Charged with ``query.event`` before a row is read. None: paid already.
    persons : int
        N, a public number over all silos, as for ``SiloStep``.
    randomness : Randomness, optional
        The operating system's unless given.

    Returns
    -------
    ndarray of int64, shape (query.parameters,)
        For secure aggregation; ``query.read`` reads the opened sum.

    Raises
    ------
    LocalBudgetError, LedgerError
        If the ledger does not allow it, or cannot be kept.
    TypeError, ValueError
        If an argument is of another kind, or a table of another shape, before anything is charged;
        and if the ids are not one a row, or none can be used.

    Notes
    -----
    **Guarantee.** That of ``SiloGaussian`` without sampling: one person moves the integers by less
    than R + √d, whatever is in their rows.

    **Assumptions.** Those of ``SiloGaussian``. The bounds come from elsewhere than the data.

    **Not covered.** A person in two silos counts as two.
    """
    of_kind("query", query, TableQuery, "a TableQuery")
    of_kind("mechanism", mechanism, SiloGaussian, "SiloGaussian(min_silos, colluders)")
    noise_multiplier = number("noise_multiplier", noise_multiplier, above=0)
    if randomness is not None:
        of_kind("randomness", randomness, Randomness, "SeededRandomness(seed), or None")
    table, usable = _rows_of("features", features, (query.columns,))
    classes = None
    if (labels is not None) != bool(query.classes):
        raise ValueError(
            f"the query has {query.classes} classes: give labels if there are any, and only then"
        )
    if labels is not None:
        classes, labelled = _rows_of("labels", labels, ())
        if len(classes) != len(table):
            raise ValueError(
                f"labels has {len(classes)} rows beside {len(table)} of features; give one a row"
            )
        usable &= labelled
    if ledger is not None:  # before a row is read
        ledger.charge(query.event(mechanism, noise_multiplier=noise_multiplier))
    total = mechanism.open_sum(query.parameters, clipping_norm=query.clipping_norm, persons=persons)
    at_once = max(1, _AT_ONCE // query.parameters)

    def parts(rows: Rows) -> Vectors:
        return query.parts(table[rows], None if classes is None else classes[rows])

    def sums_of(persons: Sequence[Rows]) -> Vectors:
        """Of each person's rows by themselves, in one order whoever else there is."""
        starts = np.cumsum([0, *map(len, persons[:-1])])
        return np.add.reduceat(parts(np.concatenate(persons)), starts, axis=0)

    if person_ids is None:
        for rows in np.array_split(np.flatnonzero(usable), len(table) // at_once + 1):
            total.add(parts(rows))
    else:
        of_persons = [rows[usable[rows]] for rows in rows_by_person(person_ids, len(table))]
        for group in _together([rows for rows in of_persons if len(rows)], at_once):
            if len(group) == 1:
                pieces = np.array_split(group[0], len(group[0]) // at_once + 1)
                sums = np.sum([sums_of([piece]) for piece in pieces], axis=0)
            else:
                sums = sums_of(group)
            total.add(sums / np.array([[len(rows)] for rows in group]))
    integers = total.integers()
    mechanism.add_share(
        integers,
        noise_multiplier=noise_multiplier,
        randomness=SystemRandomness() if randomness is None else randomness,
    )
    return integers


def _together(persons: Sequence[Rows], at_once: int) -> Iterator[list[Rows]]:
    """Persons whose rows are at most so many, or one who has more."""
    group: list[Rows] = []
    size = 0
    for rows in persons:
        if group and size + len(rows) > at_once:
            yield group
            group, size = [], 0
        group.append(rows)
        size += len(rows)
    if group:
        yield group


def _rows_of(
    name: str, values: Any, shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Numbers, a row of that shape each, and which rows have it.

    Every row is read by itself, cell by cell: what is wrong with one changes no other, as it would
    if NumPy sought one kind for all. A cell that is no number is NaN; a row of another shape is no
    row.
    """
    if hasattr(values, "__array__"):
        values = np.asanyarray(detached(values))
        if not values.ndim:
            raise _misshapen(name, (), shape)
        if values.dtype.kind in "biuf" and not isinstance(values, np.ma.MaskedArray):
            if values.shape[1:] != shape:
                raise _misshapen(name, values.shape, shape)
            return np.asarray(values), np.ones(len(values), dtype=bool)
    elif isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise _misshapen(name, (), shape)
    rows = [_cells_of(row, shape) for row in values]
    usable = np.array([row is not None for row in rows], dtype=bool)
    if rows and not usable.any():
        raise _misshapen(name, (len(rows), *_shape_of(next(iter(values)))), shape)
    table = np.full((len(rows), *shape), math.nan)
    for place, cells in enumerate(rows):
        if cells is not None:
            table[place] = np.reshape([_number(cell) for cell in cells], shape)
    missing = int(np.isnan(table[usable]).sum())
    if missing or not usable.all():
        _log.error(
            "%d cells of %s are missing or no numbers, and %d of %d rows have another shape and "
            "add nothing",
            missing,
            name,
            len(rows) - int(usable.sum()),
            len(rows),
        )
    return table, usable


def _cells_of(row: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """The cells of a row of that shape, () or (columns,); None if it has another."""
    try:
        cells = [row] if not shape else list(row) if _is_several(row) else []
        if len(cells) != (shape or (1,))[0] or any(map(_is_several, cells)):
            return None
    except Exception:  # whatever it raises, it is one row's
        return None
    return cells


def _is_several(value: Any) -> bool:
    """Whether it is a sequence of values, as a row is. A text is one."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _shape_of(row: Any) -> tuple[int, ...]:
    """Of a row, as a wrong table's error shows it."""
    try:
        return (len(row), *_shape_of(row[0])) if _is_several(row) else ()
    except Exception:  # empty, or what no row is
        return ()


def _number(cell: Any) -> float:
    if cell is np.ma.masked:
        return math.nan
    try:
        plain = unboxed(cell)
        if isinstance(plain, complex):
            return plain.real if plain.imag == 0 else math.nan
        return float(plain)
    except Exception:  # whatever it raises, it is one cell's
        return math.nan


def _misshapen(name: str, given: tuple[int, ...], shape: tuple[int, ...]) -> ValueError:
    give = (
        f"(rows, {shape[0]}), by the columns that the query has bounds for" if shape else "(rows,)"
    )
    return ValueError(f"{name} has the shape {given}; give {give}")
