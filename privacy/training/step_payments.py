"""Payments for a run's steps: several at a time, one line in the ledger, one step taken of them."""

import json
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
from privacy.training.errors import LocalBudgetError
from privacy.training.ledger import ClientLedger

_AHEAD = 25  # steps; so many, less one, are paid in vain where a run ends and no other takes them
_KINDS = 8  # of steps, of which what is left is kept


class StepPayments:
    """Pays for equal steps some at a time, so that a long run costs a ledger few lines.

    A payment is in the ledger before the first of its steps, and each step is taken off it, on the
    disk, before it is made. What is left serves the next step of the same kind, of any run; where
    it is lost, steps were paid in vain.

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
        self._left: dict[str, int] = {str(k): int(v) for k, v in (record or {}).items()}

    def as_record(self) -> dict[str, int]:
        """What is left, as Flower's ``ConfigRecord`` takes it; it stays on the node."""
        return dict(self._left)

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
            steps = left.pop(_text(event), 0) or self._charge(event, min(planned, _AHEAD))
            if steps > 1:
                left[_text(event)] = steps - 1
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

    def _read(self) -> dict[str, int]:
        if self._path is None:
            return dict(self._left)
        try:
            left = json.loads(self._path.read_text())
            if not all(type(steps) is int and steps > 0 for steps in left.values()):
                raise ValueError("not numbers of steps")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise LedgerError(
                f"{self._path} cannot be read ({error}): it has how many steps are paid and not "
                "taken. Move it away, and these are forgotten; the ledger beside it counts them"
            ) from error
        return dict(left)

    def _write(self, left: dict[str, int]) -> None:
        if self._path is None:
            self._left = left
        else:
            write_durably(self._path, json.dumps(left).encode())


def _text(event: SiloSum) -> str:
    return json.dumps(event_to_dict(event), sort_keys=True)
