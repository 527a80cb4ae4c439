"""A silo's records by person: who is drawn, and is protected, is a person with all their rows."""

from collections.abc import Sequence
from copy import copy

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from privacy.mechanisms.person_sums import MOST_PERSONS, PersonIds, Rows, rows_by_person
from privacy.training.records import Records, records_of


class Persons:
    """Records, grouped by whose they are.

    Make it where the silo's program starts: its errors are for the data's owner, and tell of the
    data.

    Parameters
    ----------
    data : sequence of Tensor, or Dataset
        (input, ..., targets), as for ``train``. There may be no record at all.
    person_ids : sequence of int or str, optional
        Of length n: whose each row is. Rows with an equal id are one person's; whole numbers are
        equal however they are written (7, 7.0, "7", "007"). A row whose id is missing, or neither
        a whole number nor text, is nobody's and adds nothing; the log says how many are. Default:
        every row is another person's.

    Raises
    ------
    TypeError, ValueError
        If the ids are another number than the rows or none can be used, or ``data`` is not as
        ``train`` takes it.

    Notes
    -----
    **Guarantee.** What is private for one person holds for all their rows here together. It says
    nothing of a person who has one row more or less: ``by_row`` is for that.

    **Not covered.** A person under two ids, or in two silos, is two persons, unless silos that
    share identifiers find them and leave them out of one (``keyed_person_ids``).
    """

    def __init__(
        self,
        data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]],
        person_ids: PersonIds | None = None,
    ) -> None:
        self.records: Records = records_of(data)
        count = len(self.records)
        self.groups: list[Rows]
        """Each person's rows, in the order of the data; persons by their first row."""
        if person_ids is None:
            self.groups = list(np.arange(count, dtype=np.int64)[:, None])
        else:
            self.groups = rows_by_person(person_ids, count)
        if len(self.groups) >= MOST_PERSONS:
            raise ValueError(
                f"data holds {len(self.groups)} persons; one silo's sum takes fewer than "
                f"{MOST_PERSONS}: divide them among several"
            )

    @classmethod
    def empty(cls) -> "Persons":
        """Nobody: for a silo whose data cannot be read, whose part in a step is noise then."""
        return cls(_Nothing())

    def by_row(self) -> "Persons":
        """The same records, each row a unit of its own: what a run over rows sums."""
        rows = copy(self)
        rows.groups = [row for group in self.groups for row in group[:, None]]
        return rows

    @property
    def person_of_row(self) -> Rows:
        """Whose each row is: the person's number, from 0, or -1: nobody's; shape (rows,)."""
        owners = np.full(self.rows, -1, dtype=np.int64)
        for person, rows in enumerate(self.groups):
            owners[rows] = person
        return owners

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows (int64, ascending, each once): inputs, then targets."""
        return self.records.take(rows)

    def __len__(self) -> int:
        """How many persons there are."""
        return len(self.groups)

    @property
    def rows(self) -> int:
        """How many rows there are, nobody's included."""
        return len(self.records)


class _Nothing(Dataset[tuple[Tensor, ...]]):
    def __len__(self) -> int:
        return 0
