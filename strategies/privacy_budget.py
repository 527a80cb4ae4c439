"""A population's ledger and budget: payments, and whether further events fit."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from privacy.accounting import (
    Accountant,
    Adjacency,
    Budget,
    Event,
    Ledger,
    LedgerContents,
    Observer,
    Position,
    Sampling,
    calibrate_noise_multiplier,
    epsilon,
    read_ledger,
)
from privacy.accounting.composition import Events, count_events
from privacy.accounting.errors import LedgerBusyError, LedgerError


class PrivacyBudget:
    """The ledger of a population, and the budget of all its runs.

    Parameters
    ----------
    path : Path
        The ledger's file; made if it is not there.
    population : str
        Its name in the ledger.
    adjacency : Adjacency
    accountant : "pld" or "rdp"
    budget : Budget
        Of all runs together.
    private : bool
        Whether randomness is the operating system's. A seeded run, which is private from nobody,
        keeps a ledger of its own: no private run may go on from it.
    at_least : callable
        Called while the ledger is held: the record that it must hold (otherwise an older one was
        put back), or None.
    reserved : sequence of Event
        To be paid from the budget after the rounds.
    """

    def __init__(
        self,
        path: Path,
        *,
        population: str,
        adjacency: Adjacency,
        accountant: Accountant,
        budget: Budget,
        private: bool,
        at_least: Callable[[], Position | None],
        reserved: Sequence[Event] = (),
    ) -> None:
        self.path = path
        self._population = population if private else f"{population} (seeded: not private)"
        self.adjacency = adjacency
        self.accountant: Accountant = accountant
        self._delta = budget.delta
        self.budget = budget
        self._private = private
        self.reserved = tuple(reserved)
        self._playing = Lock()  # of the run that uses this object, in whatever thread
        self._ledger = self._open(at_least)

    def _open(self, at_least: Callable[[], Position | None]) -> Ledger:
        try:
            return Ledger.open(
                self.path,
                population=self._population,
                adjacency=self.adjacency,
                at_least=at_least,
            )
        except OSError as error:
            raise LedgerError(
                f"the ledger {self.path} cannot be opened: {error.strerror}; nothing was begun"
            ) from error

    @contextmanager
    def held(self, at_least: Callable[[], Position | None]) -> Iterator[bool]:
        """The ledger is this run's alone in the block, and closed after it.

        Gives whether it was closed before, and so was opened again; it must hold the record
        ``at_least()`` then. A ``LedgerBusyError`` where another run uses this object.
        """
        if not self._playing.acquire(blocking=False):
            raise LedgerBusyError(
                f"the ledger {self.path} is held by another run, of this same strategy; wait for "
                "it to end"
            )
        try:
            again = self._ledger.closed
            if again:
                self._ledger = self._open(at_least)
            with self._ledger:
                yield again
        finally:
            self._playing.release()

    @property
    def limited(self) -> bool:
        """Whether there is a limit on ε."""
        return self.budget.epsilon < math.inf

    def __str__(self) -> str:
        """For errors and the log."""
        return f"the budget of ε = {self.budget.epsilon:g} at δ = {self.budget.delta:g}"

    @property
    def paid(self) -> Ledger | LedgerContents:
        """All payments by now, those of other runs since this one closed the ledger included.

        Whatever is asked of this object is told of these.
        """
        return read_ledger(self.path) if self._ledger.closed else self._ledger

    def epsilon(self) -> float:
        """ε of all payments of this population so far, over all runs; ∞ where seeded."""
        if not self._private:
            return math.inf
        return self.paid.epsilon(self._delta, accountant=self.accountant)

    def epsilon_without_amplification(self) -> float:
        """Likewise, against whoever learns who was drawn."""
        if not self._private:
            return math.inf
        return self.paid.epsilon_without_amplification(self._delta, accountant=self.accountant)

    def epsilon_against_server(self) -> float:
        """Likewise, against the server that ran the rounds, under zero-out adjacency."""
        if not self._private:
            return math.inf
        return self.paid.epsilon_against_server(self._delta)

    def epsilon_by_observer(self) -> dict[Observer, float]:
        """Likewise, against each of those who see sums of several silos."""
        if not self._private:
            return dict.fromkeys(Observer, math.inf)
        return self.paid.epsilon_by_observer(self._delta)

    def affordable(self, due: Events) -> bool:
        """Whether these events still fit the budget, and leave what is reserved."""
        if not self.limited:
            return True
        return self.epsilon_with(due) <= self.budget.epsilon

    def epsilon_with(self, due: Events) -> float:
        """ε of everything paid so far, with these events and what is reserved."""
        return self._together([record.event for record in self.paid.records], due)

    def rounds_affordable(self, due: Callable[[int], Events], most: int) -> int:
        """The number of rounds that still fit the budget, up to ``most``.

        ``due`` gives what is paid for a number of rounds.
        """
        if self.affordable(due(most)):
            return most
        fitting, beyond = 0, most
        while beyond - fitting > 1:
            middle = (fitting + beyond) // 2
            if self.affordable(due(middle)):
                fitting = middle
            else:
                beyond = middle
        return fitting

    def affordable_alone(self, due: Events) -> bool:
        """Whether these events would fit the budget if no earlier run had paid anything."""
        return self._together(due) <= self.budget.epsilon

    def _together(self, *events: Events) -> float:
        return self.cost(sum(map(count_events, (*events, self.reserved)), Counter()))

    def cost(self, events: Events) -> float:
        """ε of these events by themselves."""
        return epsilon(
            events,
            delta=self._delta,
            accountant=self.accountant,
            adjacency=self.adjacency,
        )

    def pay(self, events: Iterable[Event], *, run: str, number: int) -> None:
        """Write a round's events into the ledger; they are durable when this returns.

        Raises
        ------
        OSError
            If it cannot be written: nothing of the round may be released then.
        """
        try:
            for event in events:
                self._ledger.append(event, run=run, round=number)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the ledger {self.path} cannot be written, so round {number} "
                "was not released. Make room if the disk is full, and resume from the checkpoint",
            ) from error

    def calibrate(
        self,
        sampling: Sampling,
        *,
        rounds: int,
        release: Callable[[float], Event],
        besides: Events,
    ) -> float | None:
        """The least noise multiplier with which so many rounds fit; None if no noise is enough.

        Parameters
        ----------
        sampling : Sampling
        rounds : int
        release : callable
            The event of a round, given its noise multiplier.
        besides : events
            The run's other payments.
        """
        if not self.affordable(besides):  # so that below only noise can be the matter
            return None
        try:
            return calibrate_noise_multiplier(
                sampling=sampling,
                rounds=rounds,
                budget=self.budget,
                accountant=self.accountant,
                release=release,
                spent=count_events(record.event for record in self.paid.records)
                + count_events(besides)
                + count_events(self.reserved),
            )
        except ValueError:
            return None


def repeated(events: Iterable[Event], times: int) -> Counter[Event]:
    """Events that happen so many times; counted, since there may be very many."""
    return Counter({event: times * count for event, count in count_events(events).items()})
