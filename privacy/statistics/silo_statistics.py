"""A silo's part in the answer to a query: a noisy sum over its persons, as integers to mask."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event
from privacy.arguments import number, of_kind, shown
from privacy.mechanisms import Randomness, SiloGaussian, SystemRandomness
from privacy.mechanisms.person_sums import PersonIds, Rows, Vectors, rows_by_person
from privacy.statistics.table_query import TableQuery

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
    randomness: Randomness | None = None,
) -> npt.NDArray[np.int64]:
    """The sum of this silo's persons' parts of a query, with its share of the noise.

    Parameters
    ----------
    query : TableQuery
        The same in all silos.
    features : array, shape (n, columns)
        Numbers; n may be 0.
    labels : array, shape (n,), optional
        Classes from 0 on. Needed if the query has classes, and only then.
    person_ids : sequence of int or str, optional
        Whose each row is; rows with an equal id are one person's, who counts once, with the mean of
        them. Default: every row is another person's.
    mechanism : SiloGaussian
    noise_multiplier : float
        z: the noise of the fewest honest silos together is z times ``query.clipping_norm``.
    ledger : ClientLedger or None
        Charged with ``query.event`` before a row is read. None: paid already.
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
        and if the ids are not one a row.

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
    table = _numbers("features", features)
    if table.ndim != 2 or table.shape[1] != query.columns:
        raise ValueError(
            f"features has the shape {table.shape}; the query has bounds for {query.columns} "
            f"columns: give (rows, {query.columns})"
        )
    classes = None
    if (labels is not None) != bool(query.classes):
        raise ValueError(
            f"the query has {query.classes} classes: give labels if there are any, and only then"
        )
    if labels is not None:
        classes = _numbers("labels", labels)
        if classes.shape != (len(table),):
            raise ValueError(
                f"labels has the shape {classes.shape} beside {len(table)} rows; give one a row"
            )
    if ledger is not None:  # before a row is read
        ledger.charge(query.event(mechanism, noise_multiplier=noise_multiplier))
    total = mechanism.open_sum(query.parameters, clipping_norm=query.clipping_norm)
    at_once = max(1, _AT_ONCE // query.parameters)

    def parts(rows: Rows) -> Vectors:
        return query.parts(table[rows], None if classes is None else classes[rows])

    if person_ids is None:
        for rows in np.array_split(np.arange(len(table)), len(table) // at_once + 1):
            total.add(parts(rows))
    else:
        for group in _together(rows_by_person(person_ids, len(table)), at_once):
            if len(group) == 1:
                pieces = np.array_split(group[0], len(group[0]) // at_once + 1)
                sums = np.sum([parts(piece).sum(axis=0) for piece in pieces], axis=0)[None]
            else:  # each person's rows by themselves, in their order
                starts = np.cumsum([0, *map(len, group[:-1])])
                sums = np.add.reduceat(parts(np.concatenate(group)), starts, axis=0)
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


def _numbers(name: str, values: Any) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} is {shown(values)}, of {array.dtype}; give an array of numbers: text as "
            "numbers of its own, such as classes"
        )
    return array
