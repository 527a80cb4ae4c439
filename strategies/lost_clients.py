"""Clients whose replies are missing or dropped: how they are logged, and when they end a run."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from logging import WARNING

from flwr.supercore import log

from privacy.untrusted_text import one_line, quoted
from strategies.errors import Fault


def _on_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


# The operator's own log: actual cohorts, node ids and reasons go here and nowhere else. It is
# silent until the operator gives it a handler, and apart from the log that users see. An entry is
# one line: clients' words are quoted where they are logged, and escaped here in any case.
operator_log = logging.getLogger("bloomseal.operator")
operator_log.propagate = False
operator_log.addFilter(_on_one_line)
operator_log.addHandler(logging.NullHandler())
operator_log.setLevel(logging.INFO)


# So many clients without a usable reply, in one round or in several, end a run; never one alone.
# Dropped replies are no accident, least before any was used; silence may be a failure of the
# network.
_DROPPED_AT_FIRST, _DROPPED, _SILENT = 2, 5, 20

NO_REPLY = "no reply was usable"
TOO_FEW_JOINED = "too few clients joined"


class FaultLog:
    """Logs how clients are lost to one run.

    The server's console gets each kind of trouble once, in words that hold nothing a client
    wrote. Who, when and how often goes to the operator's log.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()
        self._faults: list[Fault] = []
        self._present: dict[int, int] = {}

    def dropped(self, round_name: str, fault: Fault | None) -> None:
        """A reply was dropped; nothing is logged if its client is only offline or late."""
        if fault is not None and fault not in self._faults:
            self._faults.append(fault)
            log(
                WARNING,
                "%s: dropped a reply, and will drop others like it: %s. This is said once a run; "
                "whose they are stands in the log 'bloomseal.operator' alone.",
                round_name,
                fault,
            )

    def metrics_left_out(self, round_name: str, fault: str) -> None:
        """A client's metrics, or all, were left out of metrics that are public."""
        operator_log.warning("%s: left metrics out: %s", round_name, fault)
        self.once(
            f"{round_name}: left metrics out, and will leave out others like them: {fault}. This "
            "is said once a run.",
            about=fault,
        )

    def metrics_counted_as_middle(
        self, round_name: str, fault: str, names: Iterable[str] = ()
    ) -> None:
        """For the operator's log alone, since it follows from one client's noised metrics."""
        came = quoted(", ".join(names))
        operator_log.warning(
            "%s: metrics without a value: %s; the client's are named %s", round_name, fault, came
        )

    def metrics_never_sent(self, round_name: str, missing: Iterable[str]) -> None:
        """All of several replies lack noised metrics of these names, which the operator gave.

        As with the names of arrays, it is the app that sends them, or not, whatever its data are.
        The names that clients send instead are for the operator's log.
        """
        for name in missing:
            phase = round_name.rpartition(", ")[2]
            self.once(
                f"In a round no reply to {phase} has a number named {name!r}, which "
                "NoisedMetrics(ranges) names: its average is noise around the middle of its range. "
                "Clients and ranges must use one name; the log 'bloomseal.operator' has the names "
                "that came."
            )

    def connected(self, node_of: Mapping[int, int]) -> None:
        """Note who is connected now, by place, and log that nodes of before have gone."""
        gone = sorted(node for place, node in self._present.items() if place not in node_of)
        if gone:
            operator_log.warning("nodes of the population that have gone: %s", gone)
            self.once(
                "A node of the population that was connected has gone. It adds nothing to a round "
                "until it is back; which one stands in the log 'bloomseal.operator' alone."
            )
        self._present = dict(node_of)

    def once(self, line: str, *, about: str | None = None) -> None:
        """Log a line on the console, once a run; of lines about the same thing, the first."""
        about = about or line
        if about not in self._logged:
            self._logged.add(about)
            log(WARNING, line)

    def reasons(self) -> str:
        """Why replies were dropped so far, for the line that ends the run."""
        return (
            "; ".join(self._faults)
            or "nobody answered in time, or with anything that can be decoded"
        )

    def remedy(self) -> str:
        """The operator's remedy before another try, for the line that ends the run."""
        if self._faults and {Fault.DECLINED, Fault.REFUSED}.issuperset(self._faults):
            return "ask the nodes for what their owners allow, or their owners to allow more"
        return "mend the clients, or what they are sent"


@dataclass(frozen=True)
class RoundReplies:
    """The replies to a round's messages.

    Attributes
    ----------
    asked : frozenset of int
        The nodes that were asked.
    dropped : frozenset of int
        Those whose replies were dropped for a fault of their own.
    used : int
        How many replies were used.
    """

    asked: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    used: int = 0


class AskedInVain:
    """Of one kind of message: which clients were asked since a reply was last used.

    Rounds in which nobody was asked, because nobody was drawn or is connected, do not count.

    Parameters
    ----------
    population : int
        N.
    any_used : bool
        Whether a reply was used before: by what a resumed run goes on from.
    """

    def __init__(self, population: int, *, any_used: bool = False) -> None:
        self._population = population
        self._asked: set[int] = set()
        self._dropped: set[int] = set()
        self._excused = False
        self.any_used = any_used

    def add(self, round_: RoundReplies, *, moved: bool = False, fewest: int = 0) -> bool:
        """Count a round; True if with it too many gave no usable reply to go on.

        Parameters
        ----------
        round_ : RoundReplies
            Its replies.
        moved : bool
            Whether noise alone moved the model. Clients that refused the old model have no reason
            to refuse the new one, so the round does not count, unless the one before it was such.
        fewest : int
            Where nobody was asked to train: how many clients must join. If of the population fewer
            are left beside those dropped, the replies of these are of no use.
        """
        excused, self._excused = moved and not self._excused, moved
        if excused:
            return False
        if round_.used and self._population - len(round_.dropped) >= fewest:
            self._asked.clear()
            self._dropped.clear()
            self.any_used = True
            return False
        self._asked |= round_.asked
        self._dropped |= round_.dropped
        dropped = min(self._population, _DROPPED if self.any_used else _DROPPED_AT_FIRST)
        silent = min(self._population, _SILENT)
        return bool(round_.asked) and (len(self._dropped) >= dropped or len(self._asked) >= silent)
