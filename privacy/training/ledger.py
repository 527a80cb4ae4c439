"""What a client's data set has spent: across rounds, runs and restarts."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from opacus.accountants import create_accountant

from privacy.accounting import Budget

from . import _store
from ._store import Charge, Entry

log = logging.getLogger(__name__)

Accountant = Literal["prv", "rdp"]


class LocalBudgetSpent(RuntimeError):
    """The client declines: what is asked would overspend its own budget.

    The message carries no number, so that it may travel to the server as the reason.
    """

    def __init__(self) -> None:
        super().__init__("the local privacy budget does not allow this training")


@lru_cache(maxsize=256)
def epsilon_of(charges: tuple[Charge, ...], *, delta: float, accountant: Accountant) -> float:
    """ε at ``delta`` of all ``charges`` together, by Opacus's accountant."""
    if not charges:
        return 0.0
    if any(charge.noise_multiplier == 0 for charge in charges):
        return math.inf
    opacus = create_accountant(mechanism=accountant)
    opacus.history = [(c.noise_multiplier, c.sampling_rate, c.steps) for c in charges]
    with np.errstate(divide="ignore"):
        return float(opacus.get_epsilon(delta=delta))


class ClientLedger:
    """The record of every use of one data set, with an optional budget.

    A charge is composed with all that came before it, in whatever run, and is on the disk before
    the noisy gradients are used: a client killed half-way has spent the whole charge.

    Parameters
    ----------
    dataset : str
        Names the data. Uses under one name compose; the same records under two names would be
        counted apart, so name the source of the records, or take ``fingerprint``.
    budget : Budget, optional
        ``charge`` refuses what would exceed it.
    path : Path, optional
        The file that holds the ledger, mode 0600; it may hold other data sets' too, and may be
        shared by processes. Without it the ledger lives in memory: keep ``as_record()``.
    accountant : {"prv", "rdp"}
        Opacus's accountant that composes.

    Raises
    ------
    LedgerError
        If the file is damaged or cannot be read. It is never started afresh.
    """

    def __init__(
        self,
        *,
        dataset: str,
        budget: Budget | None = None,
        path: Path | None = None,
        accountant: Accountant = "prv",
    ) -> None:
        if not dataset:
            raise ValueError("dataset is empty: name the data, or take fingerprint(...)")
        if accountant not in ("prv", "rdp"):
            raise ValueError(f"accountant is {accountant!r}: choose 'prv' or 'rdp'")
        self.dataset, self.budget, self.path, self.accountant = dataset, budget, path, accountant
        self._entry = Entry() if path is None else _store.read(path, dataset)

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        *,
        budget: Budget | None = None,
        accountant: Accountant = "prv",
    ) -> Self:
        """The ledger that ``as_record`` described, in memory.

        Raises
        ------
        LedgerError
            If the record is not one of a ledger.
        """
        dataset, entry = _store.from_record(record)
        ledger = cls(dataset=dataset, budget=budget, accountant=accountant)
        ledger._entry = entry
        return ledger

    def as_record(self) -> dict[str, Any]:
        """The ledger as text, numbers and lists of numbers, as Flower's ``ConfigRecord`` takes.

        It describes the client's own spending: keep it in the node's state, never send it.
        """
        return _store.as_record(self.dataset, self._entry)

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges so far, oldest first; equal neighbours are one with their steps added."""
        return self._entry.charges

    def epsilon(self, *, delta: float) -> float:
        """ε spent so far at ``delta``; infinite once the data was used without noise."""
        return epsilon_of(self.charges, delta=delta, accountant=self.accountant)

    def charge(self, *charges: Charge) -> None:
        """Spend ``charges``: when this returns, they are recorded (and on the disk).

        Raises
        ------
        LocalBudgetSpent
            If that would exceed the budget. Nothing is recorded then.
        LedgerError
            If the file cannot be read or written. Nothing may be used then.
        """
        if self.path is None:
            self._entry = self._allowed(self._entry, charges)
            return
        with _store.locked(self.path):
            entry = self._allowed(_store.read(self.path, self.dataset), charges)
            _store.write(self.path, self.dataset, entry)
            self._entry = entry

    def _allowed(self, entry: Entry, charges: Sequence[Charge]) -> Entry:
        after = entry.plus(charges)
        if self.budget is not None:
            spent = epsilon_of(after.charges, delta=self.budget.delta, accountant=self.accountant)
            if not spent <= self.budget.epsilon:
                log.warning(
                    "declined: data set %s would have spent %s of %s",
                    self.dataset,
                    spent,
                    self.budget,
                )
                raise LocalBudgetSpent
        return after
