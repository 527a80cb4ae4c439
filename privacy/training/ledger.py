"""The ledger of a client's data set: every use of it, across rounds, runs and restarts."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import NoneType
from typing import Any, Literal, Self

import numpy as np

from privacy.accounting import (
    Budget,
    Event,
    Full,
    GaussianRelease,
    Ledger,
    LedgerText,
    Record,
    epsilon,
)
from privacy.accounting.errors import LedgerError
from privacy.accounting.ledger_text import AT_THE_DATA
from privacy.arguments import lasting_file, of_kind, shown, text
from privacy.mechanisms import Randomness, add_gaussian
from privacy.training.errors import LocalBudgetError

Unit = Literal["person", "row"]
"""Whom the guarantee is for: a person with all rows, or a row."""
UNITS: tuple[Unit, ...] = ("person", "row")

_log = logging.getLogger(__name__)

_IN_MEMORY = Lock()  # shared by all ledgers: one of its own could be neither copied nor pickled
_SECONDS_TO_WAIT = 60.0  # for another process, which locks the file while it writes one line
_FORMER_FORMAT = b'{\n "format": '


@dataclass
class _LedgerInMemory:
    text: LedgerText

    @property
    def records(self) -> tuple[Record, ...]:
        return self.text.contents.records

    def append(self, event: Event, *, run: str, round: int, released: int | None = None) -> None:
        self.text = self.text.plus(event, run=run, round=round, released=released)


LedgerPage = Ledger | _LedgerInMemory  # one that nobody else writes to meanwhile


class ClientLedger:
    """The record of every use of one data set, with an optional budget.

    An event composes with all before it and is on the disk before the noisy gradients are used: a
    client killed half-way has spent all of it. The file is a :class:`privacy.accounting.Ledger`'s.

    Parameters
    ----------
    dataset : str
        Names the data by where it comes from and whose it is, which a record more or less does not
        change. All uses under one name compose.
    budget : Budget, optional
        ``charge`` refuses an event that would exceed it.
    path : str or Path, optional
        The ledger's file, of this data set alone, mode 0600; processes may share it. Absolute, or
        from ``~``. Without it the ledger lives in memory: keep ``as_record()``.
    unit : "person" or "row"
        Whose ε it adds up. It stands in the file: what was spent on rows says nothing of a person
        who has several, so a ledger of rows is never read as one of persons, nor the reverse.

    Raises
    ------
    LedgerError
        If the file is damaged, cannot be read, or belongs to a data set of another name or to
        another unit. It is never started afresh.
    TypeError, ValueError
        If an argument is of another kind, by name.
    """

    def __init__(
        self,
        *,
        dataset: str,
        budget: Budget | None = None,
        path: str | Path | None = None,
        unit: Unit = "row",
    ) -> None:
        text("dataset", dataset, "a name by where the data comes from, such as 'ward-7/2025'")
        of_kind("budget", budget, (Budget, NoneType), "Budget(epsilon=…, delta=…), or None")
        if unit not in UNITS:
            raise ValueError(f"unit is {shown(unit)}; give 'person' or 'row'")
        self.dataset, self.budget, self.unit = dataset, budget, unit
        self.path = None if path is None else lasting_file("path", path)
        self._memory = _LedgerInMemory(self._start())
        self._read()  # a ledger that cannot be kept is refused before any training

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, budget: Budget | None = None) -> Self:
        """The ledger in memory that ``as_record`` described; ``LedgerError`` for another record."""
        lines = record.get("ledger")
        if not isinstance(lines, str):
            raise LedgerError("the record holds no ledger; keep what as_record() returned")
        parsed = LedgerText.parse(lines.encode(), "in the node's state")
        unit: Unit = "person" if parsed.contents.unit == "person" else "row"
        ledger = cls(dataset=parsed.contents.population, budget=budget, unit=unit)
        ledger._memory.text = parsed
        return ledger

    def as_record(self) -> dict[str, Any]:
        """The ledger's lines as Flower's ``ConfigRecord`` takes them.

        Keep them in the node's state and never send them.
        """
        return {"ledger": self._read().content.decode()}

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event so far, oldest first."""
        return self._read().contents.events

    def epsilon(self, *, delta: float) -> float:
        """ε spent so far at ``delta``; infinite once the data was used without noise."""
        return self._read().contents.epsilon(delta)

    @property
    def digests(self) -> tuple[str, ...]:
        """One for each payment so far, of it and all before it; no other ledger has the same."""
        return tuple(record.digest for record in self._read().contents.records)

    @property
    def released_count(self) -> int | None:
        """The noised number of records, once it was released."""
        return _released_count(self._read().contents.records)

    def check(self, *events: Event) -> None:
        """Refuse as ``charge`` would, without spending anything."""
        self._check_budget(self._read().contents.records, events)

    def charge(self, *events: Event) -> None:
        """Spend ``events``: when this returns, they are recorded (and on the disk).

        Raises
        ------
        LocalBudgetError
            If that would exceed the budget. Nothing is recorded then.
        LedgerError
            If the file cannot be read or written. Nothing may be used then.
        """
        with self._locked() as page:
            self._pay(page, events)

    def release_count(
        self, records: int, *, noise_multiplier: float, randomness: Randomness
    ) -> int:
        """The data set's number of records with Gaussian noise: drawn and paid for once.

        Parameters
        ----------
        records : int
            The true number.
        noise_multiplier : float
            The noise's standard deviation, in records. Of no effect after the first release.
        randomness : Randomness
            The noise's source.

        Returns
        -------
        int
            At least 1; the same at every call. It is refused as a ``charge`` is.
        """
        with self._locked() as page:
            before = _released_count(page.records)
            if before is not None:
                return before
            noisy = np.array([float(records)])
            add_gaussian(noisy, sigma=noise_multiplier, randomness=randomness)
            count = max(1, round(float(noisy[0])))
            event = GaussianRelease(float(noise_multiplier), Full())
            self._pay(page, [event], released=count)
            return count

    def _start(self) -> LedgerText:
        return LedgerText.start(self.dataset, unit=_in_header(self.unit))

    def _read(self) -> LedgerText:
        """The ledger as it stands now: other processes may have written to its file."""
        if self.path is None:
            return self._memory.text
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return self._start()
        except OSError as error:
            raise LedgerError(f"ledger {self.path} cannot be read ({error})") from error
        if content.startswith(_FORMER_FORMAT):
            raise LedgerError(
                f"ledger {self.path} was written by an earlier version, whose format this one does "
                "not read. What it holds is spent all the same: ask that version for the ε of all "
                "its data sets, take their sum off the budget, and give the rest to a new file"
            )
        ledger = LedgerText.parse(content, str(self.path))
        if ledger.contents.population != self.dataset:
            raise LedgerError(
                f"ledger {self.path} belongs to the data set {ledger.contents.population!r}, not "
                f"to {self.dataset!r}: if these are the same records, give them that name; if not, "
                "give this data set a file of its own"
            )
        if ledger.contents.unit != _in_header(self.unit):
            raise LedgerError(
                f"ledger {self.path} adds up what was spent on each "
                f"{ledger.contents.unit or 'row'}, not on each {self.unit}, which it does not "
                "tell: go back to that unit, or begin a ledger of its own in another file, with "
                "what the budget has left after all uses of the data"
            )
        return ledger

    @contextmanager
    def _locked(self) -> Iterator[LedgerPage]:
        if self.path is None:
            with _IN_MEMORY:
                yield self._memory
            return
        self._read()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with Ledger.open(
                self.path,
                population=self.dataset,
                unit=_in_header(self.unit),
                timeout=_SECONDS_TO_WAIT,
            ) as ledger:
                yield ledger
        except OSError as error:
            raise LedgerError(
                f"ledger {self.path} cannot be written ({error}); train nothing"
            ) from error

    def _pay(
        self, page: LedgerPage, events: Sequence[Event], *, released: int | None = None
    ) -> None:
        self._check_budget(page.records, events)
        for event in events:
            page.append(event, run=AT_THE_DATA, round=0, released=released)

    def _check_budget(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        if self.budget is None:
            return
        spent = epsilon([*(record.event for record in records), *events], delta=self.budget.delta)
        if not spent <= self.budget.epsilon:
            _log.warning(
                "declined: data set %s would have spent ε = %s of %s",
                self.dataset,
                spent,
                self.budget,
            )
            raise LocalBudgetError


def _in_header(unit: Unit) -> Unit | None:
    """Rows are what a header without a unit is about."""
    return None if unit == "row" else unit


def _released_count(records: Sequence[Record]) -> int | None:
    return next((each.released for each in records if each.released is not None), None)
