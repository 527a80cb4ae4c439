"""Payments for a run's steps: several at a time, one line in the ledger, one step taken of them."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from privacy.accounting import Repeated, SiloSum
from privacy.accounting.errors import LedgerError
from privacy.accounting.events import event_to_dict
from privacy.arguments import whole
from privacy.files import write_durably
from privacy.json_text import read_json
from privacy.training.errors import LocalBudgetError
from privacy.training.ledger import ClientLedger

_AHEAD = 25  # steps; so many, less one, are paid in vain where a run ends and no other takes them
_KINDS = 8  # of steps, of which what is left is kept
_RECORD = "ahead"

_log = logging.getLogger(__name__)


class StepPayments:
    """Pays for equal steps some at a time, so that a long run costs a ledger few lines.

    A payment is in the ledger before the first of its steps, and each step is taken off it, on the
    disk, before it is made. What is left serves the next step of the same kind, of any run over the
    same ledger; where it is lost, steps were paid in vain. Steps that another ledger paid for, of
    another data set or of another year's, are not taken; the log says so.

    Parameters
    ----------
    ledger : ClientLedger
        Of the data set.
    path : Path, optional
        The file of what is left; processes may share it. Do not put an older one back: its steps
        were taken. Without it, it is in memory: keep ``as_record()``.
    record : mapping, optional
        What ``as_record`` returned.
    """

    def __init__(
        self,
        ledger: ClientLedger,
        *,
        path: Path | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self._ledger, self._path = ledger, path
        self._text: str | None = None if not record else str(record.get(_RECORD, ""))

    def as_record(self) -> dict[str, str]:
        """What is left, as Flower's ``ConfigRecord`` takes it; it stays on the node."""
        return {} if self._text is None else {_RECORD: self._text}

    def check(self, event: SiloSum) -> None:
        """Refuse as ``take`` would, without spending anything."""
        if _text(event) not in self._read():
            self._ledger.check(event)

    def take(self, event: SiloSum, *, planned: int) -> None:
        """Pay for one step; it is paid, and on the disk, when this returns.

        Parameters
        ----------
        event : SiloSum
            The step.
        planned : int
            How many such steps the run plans from here on, this one included.

        Raises
        ------
        LocalBudgetError
            If the ledger's budget does not allow one step more.
        LedgerError
            If the ledger, or what is left, cannot be read or written.
        """
        planned = whole("planned", planned, least=1)
        with self._locked():
            left = self._read()
            steps, paid = left.pop(_text(event), (0, ""))
            if not steps:
                steps = self._charge(event, min(planned, _AHEAD))
                paid = self._ledger.digests[-1]  # of a ledger that holds the payment
            if steps > 1:
                left[_text(event)] = (steps - 1, paid)
            self._write(dict(list(left.items())[-_KINDS:]))

    def _charge(self, event: SiloSum, steps: int) -> int:
        """Charge for as many steps as the budget allows, by halves; how many."""
        while steps > 1:
            try:
                self._ledger.charge(Repeated(event, steps))
                return steps
            except LocalBudgetError:
                steps //= 2
        self._ledger.charge(event)
        return 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        try:
            with FileLock(f"{self._path}.lock"):
                yield
        except OSError as error:
            raise LedgerError(f"{self._path} cannot be written ({error}); train nothing") from error

    def _read(self) -> dict[str, tuple[int, str]]:
        """By kind, how many steps are left and the digest of the ledger once they were paid."""
        text, name = self._text, "the node's state"
        if self._path is not None:
            name = str(self._path)
            try:
                text = self._path.read_text()
            except FileNotFoundError:
                text = None
            except (OSError, ValueError) as error:
                raise _unreadable(name, error) from error
        if text is None:
            return {}
        try:
            dataset, left = _parsed(text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _unreadable(name, error) from error
        digests = set(self._ledger.digests)
        own = {
            kind: (steps, paid)
            for kind, (steps, paid) in left.items()
            if dataset == self._ledger.dataset and paid in digests
        }
        if len(own) < len(left):
            _log.warning(
                "%s has steps that another ledger paid for, of data set %r: they are not taken, "
                "and the ledger of %r pays for its own",
                name,
                dataset,
                self._ledger.dataset,
            )
        return own

    def _write(self, left: dict[str, tuple[int, str]]) -> None:
        listed = {kind: {"steps": steps, "paid": paid} for kind, (steps, paid) in left.items()}
        text = json.dumps({"dataset": self._ledger.dataset, "left": listed})
        if self._path is None:
            self._text = text
        else:
            write_durably(self._path, text.encode())


def _parsed(text: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """The data set, and what is left of its payments."""
    given = read_json(text)
    left = {str(kind): (each["steps"], each["paid"]) for kind, each in given["left"].items()}
    if not all(
        type(steps) is int and steps > 0 and type(paid) is str for steps, paid in left.values()
    ):
        raise ValueError("not numbers of steps")
    return str(given["dataset"]), left


def _unreadable(name: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"{name} cannot be read ({error}): it has how many steps are paid and not taken. Move it "
        "away, and these are forgotten; the ledger beside it counts them"
    )


def _text(event: SiloSum) -> str:
    return json.dumps(event_to_dict(event), sort_keys=True)
