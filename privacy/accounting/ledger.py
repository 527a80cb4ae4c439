"""The ledger: what has been paid on one population, by all runs, written ahead.

A file of JSON lines. The first names the population and the adjacency; each other line is one
event. Every line carries a digest that chains it to all lines before it.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from privacy.durable import remove_leftovers, write_durably

from .composition import Accountant, Budget, check_adjacency, epsilon
from .events import (
    AdditiveDelta,
    Adjacency,
    DiscreteGaussianSum,
    Event,
    against_server,
    event_from_dict,
    event_to_dict,
)

_SCHEMA = 1
_KIND = "bloomseal-privacy-ledger"
_UNMASKED = 2.0**-40


class LedgerError(Exception):
    """A ledger that cannot be trusted, or is not the one that was meant."""


class LedgerBusyError(LedgerError):
    """Another process holds the ledger."""


@dataclass(frozen=True)
class Record:
    """One line of the ledger.

    Parameters
    ----------
    position : int
        1 for the first event.
    run : str
        Which run paid.
    round : int
        Which of its rounds.
    time : str
        When, ISO 8601 with the offset from UTC.
    event : Event
    digest : str
        Of this line and all before it.
    """

    position: int
    run: str
    round: int
    time: str
    event: Event
    digest: str


@dataclass(frozen=True)
class Position:
    """A point of a ledger that a checkpoint can name: how many events, and their digest."""

    records: int
    digest: str


@dataclass(frozen=True)
class LedgerContents:
    """What a ledger file says; :func:`read_ledger` makes it.

    Parameters
    ----------
    population : str
    adjacency : Adjacency
    records : tuple of Record
    position : Position
        The end of the file.
    """

    population: str
    adjacency: Adjacency
    records: tuple[Record, ...]
    position: Position

    def epsilon(self, delta: float, *, accountant: Accountant | None = None) -> float:
        """ε of all records together; see :func:`privacy.accounting.epsilon`."""
        return epsilon(
            [record.event for record in self.records],
            delta=delta,
            accountant=accountant,
            adjacency=self.adjacency,
        )

    def epsilon_against_server(
        self, delta: float, *, accountant: Accountant | None = None
    ) -> float:
        """ε against the server that ran the rounds; infinite unless clients add the noise.

        Under ``ZERO_OUT_ONE``; see :func:`privacy.accounting.against_server`. For each masked
        round the 2⁻⁴⁰ is charged with which secure aggregation may fail to hide its vectors.
        """
        events = [record.event for record in self.records]
        masked = sum(isinstance(event, DiscreteGaussianSum) for event in events)
        return epsilon(
            [*map(against_server, events), *[AdditiveDelta(_UNMASKED)] * masked],
            delta=delta,
            accountant=accountant,
            adjacency=Adjacency.ZERO_OUT_ONE,
        )


class Ledger:
    """The ledger of one population, held by one process at a time.

    Use :meth:`open`, and close it (or use it as a context manager).

    Notes
    -----
    *Guarantee.* When :meth:`append` returns, the event is on disk. At every instant the file
    is one complete ledger, the old or the new, whatever is killed or unplugged: a new version
    is written beside it, synchronised, and renamed over it, and the folder synchronised. A file
    that ends in half a line was damaged by something else, and is refused.

    *Assumptions.* The file system honours ``fsync`` and renames atomically; the lock file
    beside the ledger is honoured by everyone who writes.

    *Not covered.* Someone who rewrites the file on purpose (the digest has no key), and an old
    copy put back: a checkpoint's :class:`Position`, given to :meth:`open`, finds that out.
    """

    def __init__(self, path: Path, contents: LedgerContents, text: bytes, lock: FileLock) -> None:
        self._path = path
        self._contents = contents
        self._text = text
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        population: str,
        adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
        at_least: Position | None = None,
    ) -> Self:
        """Open the ledger at ``path`` for writing, or start it there.

        Parameters
        ----------
        path : path-like
            The file; its folder must exist. ``path`` with ``.lock`` appended is created too.
        population : str
            A name that no other population has: see :func:`population_fingerprint`.
        adjacency : Adjacency
            Constant for the life of the ledger.
        at_least : Position, optional
            Where a checkpoint stood; the file must contain it.

        Returns
        -------
        Ledger

        Raises
        ------
        LedgerBusyError
            If another process has it open.
        LedgerError
            If the file is damaged (the line is named), belongs to another population or
            adjacency, or does not contain ``at_least``.
        ValueError
            If ``population`` is empty.
        """
        if not isinstance(population, str) or not population:
            raise ValueError(f"population is {population!r}; give the name of the population")
        adjacency = Adjacency(adjacency)
        file = Path(path).resolve()
        if not file.parent.is_dir():
            raise LedgerError(f"the folder of the ledger {file} does not exist; create it first")
        lock = FileLock(str(file) + ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LedgerBusyError(
                f"the ledger {file} is held by another run; wait for it to end"
            ) from None
        try:
            remove_leftovers(file)
            if not file.exists():
                if at_least is not None:
                    raise LedgerError(
                        f"the ledger {file} is missing, but a checkpoint says it held "
                        f"{at_least.records} events; put it back"
                    )
                write_durably(file, _header_line(population, adjacency))
            text = file.read_bytes()
            contents = _parse(text, file)
            _check_same(contents, file, population, adjacency, at_least)
        except BaseException:
            lock.release()
            raise
        return cls(file, contents, text, lock)

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    @property
    def population(self) -> str:
        """The name of the population."""
        return self._contents.population

    @property
    def adjacency(self) -> Adjacency:
        """The neighbouring relation of every record."""
        return self._contents.adjacency

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, oldest first."""
        return self._contents.records

    @property
    def position(self) -> Position:
        """The end of the ledger, for a checkpoint to keep."""
        return self._contents.position

    @property
    def closed(self) -> bool:
        """Whether this object has let go of the file."""
        return not self._lock.is_locked

    def append(self, event: Event, *, run: str, round: int) -> Record:
        """Write an event down; it is durable when this returns.

        Call it *before* the noisy result is used or shown. A round that is played again is
        appended again: it is paid again.

        Parameters
        ----------
        event : Event
        run : str
            The name of the run.
        round : int
            At least 0.

        Returns
        -------
        Record

        Raises
        ------
        LedgerError
            If the ledger is closed, or the file has changed behind its back.
        ValueError
            If the event does not fit the ledger's adjacency, or a name is empty.
        OSError
            If it cannot be written; nothing has been appended then, or it is on disk and may
            be paid without having been used.
        """
        if not isinstance(run, str) or not run:
            raise ValueError(f"run is {run!r}; give the name of the run")
        if isinstance(round, bool) or not isinstance(round, int) or round < 0:
            raise ValueError(f"round is {round!r}; it must be a whole number of at least 0")
        check_adjacency(event, self.adjacency)
        if not self._lock.is_locked:
            raise LedgerError(f"the ledger {self._path} is closed; open it again")
        if self._path.stat().st_size != len(self._text):
            raise LedgerError(
                f"the ledger {self._path} was changed while this run held it; find out by whom"
            )
        position = self.position.records + 1
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields = {
            "position": position,
            "run": run,
            "round": round,
            "time": time,
            "adjacency": self.adjacency.value,
            "event": event_to_dict(event),
        }
        line, digest = _seal(fields, self.position.digest)
        write_durably(self._path, self._text + line)
        record = Record(position, run, round, time, event, digest)
        self._text += line
        self._contents = LedgerContents(
            self.population,
            self.adjacency,
            (*self.records, record),
            Position(position, digest),
        )
        return record

    def epsilon(self, delta: float, *, accountant: Accountant | None = None) -> float:
        """ε of everything this population has paid; see :func:`privacy.accounting.epsilon`."""
        return self._contents.epsilon(delta, accountant=accountant)

    def epsilon_against_server(
        self, delta: float, *, accountant: Accountant | None = None
    ) -> float:
        """ε against the server; see :meth:`LedgerContents.epsilon_against_server`."""
        return self._contents.epsilon_against_server(delta, accountant=accountant)

    def would_exceed(
        self, event: Event, budget: Budget, *, accountant: Accountant | None = None
    ) -> bool:
        """Whether one more ``event`` would bring this population past its budget.

        Parameters
        ----------
        event : Event
        budget : Budget
        accountant : "pld" or "rdp", optional

        Returns
        -------
        bool
        """
        events = [*(record.event for record in self.records), event]
        total = epsilon(events, delta=budget.delta, accountant=accountant, adjacency=self.adjacency)
        return not total <= budget.epsilon

    def close(self) -> None:
        """Let another run have the ledger."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_ledger(path: str | os.PathLike[str]) -> LedgerContents:
    """Read a ledger without holding it; safe while a run appends to it.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    LedgerContents

    Raises
    ------
    LedgerError
        If the file is missing or damaged; the line is named.
    """
    file = Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise LedgerError(f"the ledger {file} cannot be read: {error.strerror}") from error
    return _parse(text, file)


def population_fingerprint(identities: Iterable[str], *, key: bytes) -> str:
    """A name for a population that says nothing about who is in it without the key.

    Parameters
    ----------
    identities : iterable of str
        The clients, in any order.
    key : bytes
        At least 16 random bytes that the operator keeps. A plain hash would let anyone who
        knows all clients but one test guesses for the last.

    Returns
    -------
    str
        64 hexadecimal digits: HMAC-SHA-256 of the sorted identities.

    Raises
    ------
    ValueError
        If there is no identity, one occurs twice, or the key is short.
    """
    names = sorted(identities)
    if not names:
        raise ValueError("identities is empty; a population has at least one client")
    for left, right in pairwise(names):
        if left == right:
            raise ValueError(f"identities holds {left!r} twice; name each client once")
    if len(key) < 16:
        raise ValueError(f"key has {len(key)} bytes; give at least 16 random ones")
    text = json.dumps(names, ensure_ascii=True).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def _header_line(population: str, adjacency: Adjacency) -> bytes:
    fields = {
        "ledger": _KIND,
        "schema": _SCHEMA,
        "population": population,
        "adjacency": adjacency.value,
    }
    return _seal(fields, "")[0]


def _seal(fields: dict[str, Any], before: str) -> tuple[bytes, str]:
    digest = _digest(fields, before)
    sealed = {**fields, "digest": digest}
    return (json.dumps(sealed, allow_nan=False) + "\n").encode(), digest


def _digest(fields: dict[str, Any], before: str) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:32]


def _parse(text: bytes, file: Path) -> LedgerContents:
    if not text:
        raise LedgerError(f"the ledger {file} is empty; put back what was there, or delete it")
    lines = text.split(b"\n")
    if lines.pop():
        raise LedgerError(
            f"line {len(lines) + 1} of the ledger {file} is cut off; an event may be lost: "
            "put back an undamaged copy"
        )
    header = _unseal(lines[0], "", file, 1)
    try:
        if header.pop("ledger") != _KIND or header.pop("schema") != _SCHEMA:
            raise ValueError("it is not a ledger of this version")
        adjacency = Adjacency(header.pop("adjacency"))
        population = str(header.pop("population"))
        digest = header.pop("digest")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, 1, error) from error
    records = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _unseal(line, digest, file, number)
        try:
            if fields["position"] != number - 1 or fields["adjacency"] != adjacency.value:
                raise ValueError("its position or adjacency is wrong")
            event = event_from_dict(fields["event"])
            check_adjacency(event, adjacency)
            digest = fields["digest"]
            record = Record(
                number - 1, fields["run"], fields["round"], fields["time"], event, digest
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(file, number, error) from error
        records.append(record)
    return LedgerContents(population, adjacency, tuple(records), Position(len(records), digest))


def _unseal(line: bytes, before: str, file: Path, number: int) -> dict[str, Any]:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict) or "digest" not in fields:
            raise ValueError("it has no digest")
        body = {name: value for name, value in fields.items() if name != "digest"}
        if _digest(body, before) != fields["digest"]:
            raise ValueError("its digest does not fit it and the lines before it")
    except ValueError as error:
        raise _damaged(file, number, error) from error
    return fields


def _damaged(file: Path, number: int, error: Exception) -> LedgerError:
    return LedgerError(
        f"line {number} of the ledger {file} is damaged ({error}); put back an undamaged copy"
    )


def _check_same(
    contents: LedgerContents,
    file: Path,
    population: str,
    adjacency: Adjacency,
    at_least: Position | None,
) -> None:
    if contents.population != population:
        raise LedgerError(
            f"the ledger {file} belongs to population {contents.population!r}, not to "
            f"{population!r}; each population has its own ledger"
        )
    if contents.adjacency is not adjacency:
        raise LedgerError(
            f"the ledger {file} is kept under {contents.adjacency.value}, the run asks for "
            f"{adjacency.value}; one ledger holds one adjacency"
        )
    if at_least is None or at_least.records == 0:
        return
    records = contents.records
    if len(records) < at_least.records or records[at_least.records - 1].digest != at_least.digest:
        raise LedgerError(
            f"the ledger {file} does not contain event {at_least.records} that a checkpoint "
            "saw; an old or another copy was put in its place"
        )
