"""A ledger as text: JSON lines, each sealed by a digest that chains it to all before it.

The first line names the population and the adjacency; each other one is one event.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from privacy.accounting.composition import (
    UNMASKED,
    Accountant,
    Budget,
    check_adjacency,
    epsilon,
)
from privacy.accounting.errors import LedgerError
from privacy.accounting.events import (
    AdditiveDelta,
    Adjacency,
    DiscreteGaussianSum,
    Event,
    GaussianRelease,
    GroupRelease,
    Observer,
    Repeated,
    SiloSum,
    against,
    against_server,
    event_from_dict,
    event_to_dict,
    without_amplification,
)
from privacy.arguments import text, whole
from privacy.json_text import read_json

_SCHEMA = 1
_KIND = "bloomseal-privacy-ledger"
AT_THE_DATA = "client training"  # the run in a data set's own ledger, whose holder adds the noise
_CLIENTS = re.compile(r", (\d{1,18}) clients( \(seeded: not private\))?$")


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
        The day (UTC) on which the ledger was opened for it, ISO 8601 with the offset from UTC. Not
        when the round was: how long rounds take tells who was drawn, and a ledger is shown.
    event : Event
    digest : str
        Of this line and all before it.
    released : int, optional
        The noised number that the event released, where it is given again without paying again.
    """

    position: int
    run: str
    round: int
    time: str
    event: Event
    digest: str
    released: int | None = None


@dataclass(frozen=True)
class Position:
    """A point of a ledger that a checkpoint can name: how many events, and their digest."""

    records: int
    digest: str


class Payments:
    """Events that one population paid for, and their ε under one adjacency.

    Parameters
    ----------
    population : str
        Its name.
    adjacency : Adjacency
        The neighbouring relation of every record.
    records : tuple of Record
        Oldest first.
    """

    population: str
    adjacency: Adjacency
    records: tuple[Record, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """The events of the records, oldest first."""
        return tuple(record.event for record in self.records)

    @property
    def clients(self) -> int | None:
        """N, where the population's name holds it, as those of ``strategies`` do; else None."""
        match = _CLIENTS.search(self.population)
        return int(match[1]) if match and int(match[1]) else None

    def epsilon(self, delta: float, *, accountant: Accountant | None = None) -> float:
        """ε of all records together; see :func:`privacy.accounting.epsilon`."""
        return self._epsilon(self.events, delta, accountant)

    def epsilon_without_amplification(
        self, delta: float, *, accountant: Accountant | None = None
    ) -> float:
        """ε against whoever learns who was drawn; see :func:`without_amplification`."""
        return self._epsilon(map(without_amplification, self.events), delta, accountant)

    def epsilon_against_server(
        self, delta: float, *, accountant: Accountant | None = None
    ) -> float:
        """ε against the server that ran the rounds; infinite unless clients add the noise.

        In the ledger of a data set its holder added it, so that it counts against the server too.
        Under ``ZERO_OUT_ONE``; see :func:`privacy.accounting.against_server`. For each masked
        round the 2⁻⁴⁰ is charged with which secure aggregation may fail to hide its vectors.
        """
        masked = sum(isinstance(event, DiscreteGaussianSum) for event in self.events)
        return epsilon(
            [
                *[r.event if self._is_own(r) else against_server(r.event) for r in self.records],
                *[AdditiveDelta(UNMASKED)] * masked,
            ],
            delta=delta,
            accountant=accountant,
            adjacency=Adjacency.ZERO_OUT_ONE,
        )

    @property
    def has_silo_sums(self) -> bool:
        """Whether one of the events is a sum over silos."""
        return any(
            isinstance(event.release if isinstance(event, Repeated) else event, SiloSum)
            for event in self.events
        )

    def epsilon_by_observer(
        self, delta: float, *, accountant: Accountant | None = None
    ) -> dict[Observer, float]:
        """ε of all records together against each observer; see :func:`against`.

        Where the ledger is that of a data set, its holder added the noise of other events, which
        count the same against everybody.
        """
        by_observer = {}
        for observer in Observer:
            events: list[Event] = []
            for record in self.records:
                event = record.event
                events.append(event if self._is_own(record) else against(event, observer))
                if isinstance(event, DiscreteGaussianSum) and events[-1] is not event:
                    events.append(AdditiveDelta(UNMASKED))
            by_observer[observer] = self._epsilon(events, delta, accountant)
        return by_observer

    def _is_own(self, record: Record) -> bool:
        """Whether the ledger is a data set's, and its holder added this event's noise."""
        local = self.clients is None and record.run == AT_THE_DATA
        return local and _is_gaussian(record.event)

    def would_exceed(
        self, event: Event, budget: Budget, *, accountant: Accountant | None = None
    ) -> bool:
        """Whether one more ``event`` would bring this population past its budget."""
        total = self._epsilon([*self.events, event], budget.delta, accountant)
        return not total <= budget.epsilon

    def _epsilon(
        self, events: Iterable[Event], delta: float, accountant: Accountant | None
    ) -> float:
        return epsilon(events, delta=delta, accountant=accountant, adjacency=self.adjacency)


@dataclass(frozen=True)
class LedgerContents(Payments):
    """The contents of a ledger, up to ``position``, its end; see :func:`read_ledger`."""

    population: str
    adjacency: Adjacency
    records: tuple[Record, ...]
    position: Position
    unit: str | None = None
    """Whom a data set's ledger is for, a person with all rows or a row; None: it does not say."""


def _is_gaussian(event: Event) -> bool:
    release = event.release if isinstance(event, Repeated | GroupRelease) else event
    return isinstance(release, GaussianRelease)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT00:00+00:00")


@dataclass(frozen=True)
class LedgerText:
    """A ledger's lines and their contents, the same wherever they are stored.

    Parameters
    ----------
    content : bytes
        JSON lines in UTF-8, whole.
    contents : LedgerContents
        Their meaning.
    opened : str
        The day on which this object was made, the time of the records that are added to it.
    """

    content: bytes
    contents: LedgerContents
    opened: str = field(default_factory=_today)

    @classmethod
    def start(
        cls,
        population: str,
        adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
        *,
        unit: str | None = None,
    ) -> Self:
        """A ledger without payments, of a population whose name no other has."""
        population = text("population", population, "the name of the population")
        adjacency = Adjacency(adjacency)
        fields = {
            "ledger": _KIND,
            "schema": _SCHEMA,
            "population": population,
            "adjacency": adjacency.value,
        }
        if unit is not None:
            fields["unit"] = unit
        line, digest = _seal(fields, "")
        return cls(line, LedgerContents(population, adjacency, (), Position(0, digest), unit))

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """Read lines and check every digest; a ``LedgerError`` names ``name`` and the line."""
        return cls(content, _parse(content, name))

    def plus(self, event: Event, *, run: str, round: int, released: int | None = None) -> Self:
        """The ledger with one more event; its arguments are those of ``Ledger.append``."""
        run = text("run", run, "the name of the run")
        round = whole("round", round, least=0)
        before = self.contents
        check_adjacency(event, before.adjacency)
        position = before.position.records + 1
        fields = {
            "position": position,
            "run": run,
            "round": round,
            "time": self.opened,
            "adjacency": before.adjacency.value,
            "event": event_to_dict(event),
        }
        if released is not None:
            released = fields["released"] = whole("released", released)
        line, digest = _seal(fields, before.position.digest)
        contents = replace(
            before,
            records=(
                *before.records,
                Record(position, run, round, self.opened, event, digest, released),
            ),
            position=Position(position, digest),
        )
        return replace(self, content=self.content + line, contents=contents)


def _seal(fields: dict[str, Any], before: str) -> tuple[bytes, str]:
    digest = _digest(fields, before)
    sealed = {**fields, "digest": digest}
    return (json.dumps(sealed, allow_nan=False) + "\n").encode(), digest


def _digest(fields: dict[str, Any], before: str) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:32]


def _parse(text: bytes, name: str) -> LedgerContents:
    if not text:
        raise LedgerError(f"the ledger {name} is empty; put back what was there")
    lines = text.split(b"\n")
    if lines.pop():
        raise LedgerError(
            f"line {len(lines) + 1} of the ledger {name} is cut off; an event may be lost: "
            "put back an undamaged copy"
        )
    header = _unseal(lines[0], "", name, 1)
    try:
        if header.pop("ledger") != _KIND or header.pop("schema") != _SCHEMA:
            raise ValueError("it is not a ledger of this version")
        adjacency = Adjacency(header.pop("adjacency"))
        population = str(header.pop("population"))
        unit = header.pop("unit", None)
        digest = header.pop("digest")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(name, 1, error) from error
    records = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _unseal(line, digest, name, number)
        try:
            if fields["position"] != number - 1 or fields["adjacency"] != adjacency.value:
                raise ValueError("its position or adjacency is wrong")
            event = event_from_dict(fields["event"])
            check_adjacency(event, adjacency)
            digest = fields["digest"]
            record = Record(
                number - 1,
                fields["run"],
                fields["round"],
                fields["time"],
                event,
                digest,
                fields.get("released"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(name, number, error) from error
        records.append(record)
    end = Position(len(records), digest)
    return LedgerContents(population, adjacency, tuple(records), end, unit)


def _unseal(line: bytes, before: str, name: str, number: int) -> dict[str, Any]:
    try:
        fields = read_json(line)
        if not isinstance(fields, dict) or "digest" not in fields:
            raise ValueError("it has no digest")
        body = {name: value for name, value in fields.items() if name != "digest"}
        if _digest(body, before) != fields["digest"]:
            raise ValueError("its digest does not fit it and the lines before it")
    except ValueError as error:
        raise _damaged(name, number, error) from error
    return fields


def _damaged(name: str, number: int, error: Exception) -> LedgerError:
    return LedgerError(
        f"line {number} of the ledger {name} is damaged ({error}); put back an undamaged copy"
    )
