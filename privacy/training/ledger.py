"""What a client's data set has spent: across rounds, runs and restarts."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from privacy.accounting import Budget
from privacy.mechanisms import Randomness, gaussian

from . import _opacus, _store
from ._store import Charge, Entry

log = logging.getLogger(__name__)

Accountant = Literal["prv", "rdp"]


class LocalBudgetSpent(RuntimeError):
    """The client declines: what is asked would overspend its own budget.

    The message carries no number, so that it may travel to the server as the reason.
    """

    def __init__(self) -> None:
        super().__init__("the local privacy budget does not allow this training")


def epsilon_of(charges: Iterable[Charge], *, delta: float, accountant: Accountant) -> float:
    """ε at ``delta`` of all ``charges`` together, by Opacus's accountant."""
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise_multiplier, charge.sampling_rate] += charge.steps
    if any(noise_multiplier == 0 for noise_multiplier, _ in steps):
        return math.inf
    history = tuple(sorted((z, q, count) for (z, q), count in steps.items()))
    return _epsilon(history, delta, accountant) if history else 0.0


@lru_cache(maxsize=1024)
def _epsilon(
    history: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant
) -> float:
    composed = _opacus.create_accountant(accountant)
    composed.history = list(history)
    with np.errstate(divide="ignore"):
        return float(composed.get_epsilon(delta=delta))


@dataclass
class _Page:
    """A data set's page while it is being written."""

    entry: Entry


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
        with self._page() as page:
            page.entry = self._allowed(page.entry, charges)

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
            At least 1; the same at every call.

        Raises
        ------
        LocalBudgetSpent, LedgerError
            As ``charge``.
        """
        with self._page() as page:
            known = page.entry.released_count
            if known is None:
                cost = Charge(noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=1)
                noise = gaussian(1, sigma=noise_multiplier, randomness=randomness)
                known = max(1, round(records + float(noise[0])))
                paid = self._allowed(page.entry, [cost])
                page.entry = replace(paid, released_count=known)
            return known

    @contextmanager
    def _page(self) -> Iterator[_Page]:
        """The data set's page, kept (on the disk) when the block ends without an error."""
        if self.path is None:
            page = _Page(self._entry)
            yield page
        else:
            with _store.locked(self.path):
                page = _Page(_store.read(self.path, self.dataset))
                before = page.entry
                yield page
                if page.entry != before:
                    _store.write(self.path, self.dataset, page.entry)
        self._entry = page.entry

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
