"""The ledger file of one population: all runs' payments, each written before its use."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from privacy.accounting.errors import LedgerBusyError, LedgerError
from privacy.accounting.events import Adjacency, Event
from privacy.accounting.ledger_text import LedgerContents, LedgerText, Payments, Position, Record
from privacy.arguments import seconds
from privacy.files import remove_leftovers, write_durably


class Ledger(Payments):
    """The ledger of one population, held by one object of one process at a time.

    Use :meth:`open`, and close it (or use it as a context manager), in whatever thread; threads
    may share it.

    Notes
    -----
    **Guarantee.** When :meth:`append` returns, the event is on disk. At every instant the file
    is one complete ledger, the old or the new, whatever is killed or unplugged: a new version
    is written beside it, synchronised, and renamed over it, and the folder synchronised. A file
    that ends in half a line was damaged by something else, and is refused.

    **Assumptions.** The file system honours ``fsync`` and renames atomically; the lock file
    beside the ledger is honoured by everyone who writes.

    **Not covered.** Someone who rewrites the file on purpose (the digest has no key), and an old
    copy put back: a checkpoint's :class:`Position`, given to :meth:`open`, finds that out.
    """

    def __init__(self, path: Path, text: LedgerText, lock: FileLock) -> None:
        self._path = path
        self._text = text
        self._lock = lock
        self._turn = Lock()  # of a thread that appends or closes

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        population: str,
        adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
        unit: str | None = None,
        at_least: Position | Callable[[], Position | None] | None = None,
        timeout: float = 0.0,
    ) -> Self:
        """Open the ledger at ``path`` for writing, or start it there.

        Parameters
        ----------
        path : path-like
            The file; its folder must exist. ``path`` with ``.lock`` appended is created too.
        population : str
            A name that no other population has. It stands in the file: a hash without a key
            would let anyone who knows all clients but one test guesses for the last.
        adjacency : Adjacency
            Constant for the life of the ledger.
        unit : str, optional
            Whom a data set's ledger is for; constant too.
        at_least : Position or callable, optional
            Where a checkpoint stood; the file must contain it. A function is called once nobody
            else can write the ledger: what it reads belongs to the ledger as it stands.
        timeout : float
            For how many seconds to wait if it is open elsewhere.

        Raises
        ------
        LedgerBusyError
            If it is open elsewhere: in another process, or by another call in this one.
        LedgerError
            If the file is damaged (the line is named), belongs to another population, adjacency
            or unit, or does not contain ``at_least``.
        ValueError
            If ``population`` is empty.
        """
        timeout = seconds("timeout", timeout, least=0)
        new = LedgerText.start(population, adjacency, unit=unit)
        file = Path(path).resolve()
        if not file.parent.is_dir():
            raise LedgerError(f"the folder of the ledger {file} does not exist; create it first")
        # Of the object, not of the thread that opens it: another may append and close.
        lock = FileLock(str(file) + ".lock", thread_local=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise LedgerBusyError(
                f"the ledger {file} is held by another run; wait for it to end"
            ) from None
        try:
            position = at_least() if callable(at_least) else at_least
            remove_leftovers(file)
            if not file.exists():
                if position is not None:
                    raise LedgerError(
                        f"the ledger {file} is missing, but a checkpoint says it held "
                        f"{position.records} events; put it back"
                    )
                write_durably(file, new.content)
            text = LedgerText.parse(file.read_bytes(), str(file))
            _check_same(text.contents, file, new.contents, position)
        except BaseException:
            lock.release()
            raise
        return cls(file, text, lock)

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    @property
    def population(self) -> str:  # type: ignore[override]
        """The name of the population."""
        return self._text.contents.population

    @property
    def adjacency(self) -> Adjacency:  # type: ignore[override]
        """The neighbouring relation of every record."""
        return self._text.contents.adjacency

    @property
    def records(self) -> tuple[Record, ...]:  # type: ignore[override]
        """All records, oldest first."""
        return self._text.contents.records

    @property
    def position(self) -> Position:
        """The end of the ledger, for a checkpoint."""
        return self._text.contents.position

    @property
    def closed(self) -> bool:
        """Whether this object has released the file."""
        return not self._lock.is_locked

    def append(self, event: Event, *, run: str, round: int, released: int | None = None) -> Record:
        """Append an event; it is durable when the call returns.

        Call it *before* the noisy result is used or shown. A round that is played again is
        appended again: it is paid again.

        Parameters
        ----------
        event : Event
        run : str
            The name of the run.
        round : int
            At least 0.
        released : int, optional
            The noised number that the event released, to be given again without paying again.

        Raises
        ------
        LedgerError
            If the ledger is closed, or another process has changed the file.
        ValueError
            If the event does not fit the ledger's adjacency, or a name is empty.
        OSError
            If it cannot be written; nothing has been appended then, or it is on disk and may
            be paid without having been used.
        """
        with self._turn:
            longer = self._text.plus(event, run=run, round=round, released=released)
            if not self._lock.is_locked:
                raise LedgerError(f"the ledger {self._path} is closed; open it again")
            if self._path.stat().st_size != len(self._text.content):
                raise LedgerError(
                    f"the ledger {self._path} was changed while this run held it; find out by whom"
                )
            write_durably(self._path, longer.content)
            self._text = longer
            return longer.contents.records[-1]

    def close(self) -> None:
        """Let another run have the ledger, once what is being appended is there."""
        with self._turn:
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

    A ``LedgerError`` says that the file is missing, or which line is damaged.
    """
    file = Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise LedgerError(f"the ledger {file} cannot be read: {error.strerror}") from error
    return LedgerText.parse(text, str(file)).contents


def _check_same(
    contents: LedgerContents,
    file: Path,
    asked: LedgerContents,
    at_least: Position | None,
) -> None:
    if contents.population != asked.population:
        raise LedgerError(
            f"the ledger {file} belongs to population {contents.population!r}, not to "
            f"{asked.population!r}; each population has its own ledger"
        )
    if contents.adjacency is not asked.adjacency:
        raise LedgerError(
            f"the ledger {file} is kept under {contents.adjacency.value}, the run asks for "
            f"{asked.adjacency.value}; one ledger holds one adjacency"
        )
    if contents.unit != asked.unit:
        raise LedgerError(
            f"the ledger {file} is kept for unit {contents.unit!r}, the run asks for "
            f"{asked.unit!r}; one ledger holds one unit"
        )
    if at_least is None or at_least.records == 0:
        return
    records = contents.records
    if len(records) < at_least.records or records[at_least.records - 1].digest != at_least.digest:
        raise LedgerError(
            f"the ledger {file} does not contain event {at_least.records} that a checkpoint "
            "saw; an old or another copy was put in its place"
        )
