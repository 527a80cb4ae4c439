"""How many neighbours and what threshold a cohort needs.

Every client shares its secrets among, and is masked pairwise with, k neighbours on a ring that
is laid out at random: those at most k/2 places away. (Bell, Bonawitz, Gascón, Lepoint, Raykova,
"Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, section 3; with
k = n - 1 it is Bonawitz et al., CCS 2017.) With γ the share of corrupt clients and δ that of
dropouts, the paper's three conditions, computed without approximation:

1. no client has t corrupt neighbours: n · P[Hyp(n-1, γn, k) >= t];
2. the ring without corrupt clients and dropouts hangs together. It falls apart only where k/2
   places in a row are empty: n · P[k/2 given places are all among the (γ+δ)n];
3. every client keeps t neighbours: n · P[Hyp(n-1, (1-δ)n, k) < t].

The first two fail with probability at most 2^-40, the third, which only costs the round, 2^-20.

A malicious server chooses who drops out *after* it has seen the ring, so condition 2 cannot rest
on chance. With at most c corrupt neighbours anywhere, t > k/2 + c does instead: next to a gap of
k/2 places a client has at most k/2 + c neighbours that would open its mask. It also rules out
that both kinds of share are gathered for one client (2t > k + c). The ring is laid out by the
digest of the signed roster, of which the server may try many: c is exceeded with probability at
most 2^-104, which leaves 2^-40 after 2^64 tries. ``docs/secure-aggregation.md`` has the proofs.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from privacy.secure_aggregation.errors import Malformed, ThresholdTooLow
from privacy.secure_aggregation.terms import Adversary, ServerModel

SECURITY_BITS = 40
GRINDING_BITS = 64
FAILURE_BITS = 20
_SLACK = 1e-3  # bits by which a plan is better than needed, so that libraries' last digits agree
_FORM = struct.Struct("<4I")


@dataclass(frozen=True)
class RoundPlan:
    """The graph and thresholds of a round.

    Parameters
    ----------
    clients : int
        n, who announced keys.
    neighbours : int
        k, even and below n - 1, or n - 1: everybody.
    threshold : int
        t, how many neighbours open a client's secret, in [1, k].
    survivors : int
        The fewest clients whose sum is opened.
    """

    clients: int
    neighbours: int
    threshold: int
    survivors: int

    def __post_init__(self) -> None:
        n, k = self.clients, self.neighbours
        if not (k == n - 1 or (k % 2 == 0 and 2 <= k < n - 1)):
            raise ValueError(f"neighbours is {k}; it must be {n - 1} or even and below that")
        if not 1 <= self.threshold <= k:
            raise ValueError(f"threshold is {self.threshold}; it must lie in [1, {k}]")
        if not 3 <= self.survivors <= n:
            raise ValueError(f"survivors is {self.survivors}; it must lie in [3, {n}]")

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.neighbours == self.clients - 1

    def to_bytes(self) -> bytes:
        """The plan as it is sent."""
        return _FORM.pack(self.clients, self.neighbours, self.threshold, self.survivors)

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "RoundPlan":
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        Malformed
            If it is not that.
        """
        try:
            return cls(*_FORM.unpack(encoded))
        except (struct.error, ValueError) as error:
            raise Malformed(f"not the plan of a round: {error}") from error

    def check(self, adversary: Adversary) -> None:
        """Make sure that the plan withstands an adversary.

        Raises
        ------
        ThresholdTooLow
            If it does not.
        """
        least = _least_threshold(
            self.clients, self.neighbours, self.survivors, adversary, slack=0.0
        )
        if least is None or self.threshold < least:
            needed = "no threshold would do" if least is None else f"{least} is needed"
            raise ThresholdTooLow(
                f"threshold {self.threshold} among {self.neighbours} neighbours of "
                f"{self.clients} clients, with {self.survivors} survivors, does not withstand "
                f"{adversary.corrupt:.0%} of the clients and a {adversary.server.value} server: "
                f"{needed}"
            )


@lru_cache(maxsize=256)
def plan_round(
    clients: int, *, adversary: Adversary, dropout: float, minimum: int = 3
) -> RoundPlan:
    """The fewest neighbours that withstand the adversary and the dropouts.

    Parameters
    ----------
    clients : int
        n, who announced keys; at least 3.
    adversary : Adversary
        Whom the round must withstand.
    dropout : float
        δ, the share of the clients that may vanish during the round, in [0, 1).
    minimum : int
        The fewest clients whose sum may be opened.

    Raises
    ------
    ValueError
        If no graph does.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; a share of clients in [0, 1)")
    dropped = int(dropout * clients)
    kept = clients - dropped
    malicious = adversary.server is ServerModel.MALICIOUS
    most = quorum(clients, adversary)
    for neighbours in [*range(2, clients - 1, 2), clients - 1] if clients >= 3 else []:
        complete = neighbours == clients - 1
        alive = kept - 1 if complete else _kept_neighbours(clients, neighbours, dropped)
        needed = most if malicious else 3 if complete else kept
        survivors = max(minimum, needed)
        if survivors > kept:
            continue
        least = _least_threshold(clients, neighbours, survivors, adversary, slack=_SLACK)
        if least is None or least > alive:
            continue
        # What dropouts leave room for beyond the least makes a client's secret harder to open.
        threshold = max(least, min(alive, most)) if complete else alive
        if complete:
            survivors = max(survivors, threshold + 1)
        return RoundPlan(clients, neighbours, threshold, survivors)
    raise ValueError(
        f"{clients} clients cannot withstand {adversary.corrupt:.0%} corrupt ones, a "
        f"{adversary.server.value} server and {dropout:.0%} dropouts with {minimum} left: draw "
        "more clients or expect fewer dropouts"
    )


def quorum(clients: int, adversary: Adversary) -> int:
    """The smallest number of which two sets always share an honest client."""
    return (clients + adversary.corrupted(clients)) // 2 + 1


def _least_threshold(
    clients: int, neighbours: int, survivors: int, adversary: Adversary, *, slack: float
) -> int | None:
    """The lowest threshold that withstands the adversary; None if none does."""
    corrupt = adversary.corrupted(clients)
    most = quorum(clients, adversary)
    complete = neighbours == clients - 1
    if adversary.server is ServerModel.MALICIOUS:
        if survivors < most:
            return None
        if complete:
            return most
        bits = SECURITY_BITS + GRINDING_BITS + slack
        return neighbours // 2 + _most_corrupt(clients, neighbours, corrupt, bits) + 1
    if complete:
        return corrupt + 1
    bits = SECURITY_BITS + 1 + slack  # one half of 2^-40 each for conditions 1 and 2
    empty = corrupt + clients - survivors
    if _gap_log2(clients, neighbours // 2, empty) > -bits:
        return None
    return _most_corrupt(clients, neighbours, corrupt, bits) + 1


def _most_corrupt(clients: int, neighbours: int, corrupt: int, bits: float) -> int:
    """The smallest c such that some client has more corrupt neighbours with at most 2^-bits."""
    at_least = _tail_log2(clients - 1, min(corrupt, clients - 1), neighbours)
    return int(np.argmax(at_least + np.log2(clients) <= -bits)) - 1


def _kept_neighbours(clients: int, neighbours: int, dropped: int) -> int:
    """The largest t such that some client keeps fewer neighbours with at most 2^-20."""
    at_least = _tail_log2(clients - 1, min(dropped, clients - 1), neighbours)
    lost = int(np.argmax(at_least + np.log2(clients) <= -FAILURE_BITS)) - 1
    return neighbours - lost


def _gap_log2(clients: int, run: int, empty: int) -> float:
    """log2 of n times the probability that given places are all among the empty ones."""
    if empty < run:
        return -np.inf
    places = np.arange(run)
    return float(np.log2(clients) + np.log2((empty - places) / (clients - places)).sum())


def _tail_log2(population: int, marked: int, draws: int) -> npt.NDArray[np.float64]:
    """log2 P[Hyp(population, marked, draws) >= i] for i = 0 ... draws + 1."""

    def choose(whole: int, part: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        value: npt.NDArray[np.float64] = (
            gammaln(whole + 1.0) - gammaln(part + 1.0) - gammaln(whole - part + 1.0)
        )
        return value

    found = np.full(draws + 2, -np.inf)
    low, high = max(0, draws - (population - marked)), min(draws, marked)
    i = np.arange(low, high + 1)
    found[low : high + 1] = (
        choose(marked, i)
        + choose(population - marked, draws - i)
        - choose(population, np.array(draws))
    )
    tail: npt.NDArray[np.float64] = np.logaddexp.accumulate(found[::-1])[::-1] / np.log(2)
    return np.minimum(tail, 0.0)
