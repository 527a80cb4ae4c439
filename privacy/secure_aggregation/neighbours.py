"""How many neighbours and what threshold a cohort needs.

Every client shares its secrets among, and is masked pairwise with, k neighbours: those at most
k/2 places away on a random ring. (Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead", CCS 2020, section 3; with k = n - 1 it is Bonawitz et
al., CCS 2017.) With γ the share of corrupt clients and δ that of dropouts, the paper's three
conditions, computed without approximation:

1. no client has t corrupt neighbours: n · P[Hyp(n-1, γn, k) >= t];
2. the ring without corrupt clients and dropouts hangs together. It falls apart only where k/2
   places in a row are empty: n · P[k/2 given places are all among the (γ+δ)n];
3. every client keeps t neighbours: n · P[Hyp(n-1, (1-δ)n, k) < t].

The first two fail with probability at most 2^-40, the third, which only costs the round, 2^-20.
Corrupt clients are counted from the m that were drawn, not the n that advertised their keys:
honest ones may be away, and C = ⌈γm⌉ corrupt ones be left among n.

A malicious server chooses who drops out *after* it has seen the ring, so condition 2 cannot rest
on chance. With at most c corrupt neighbours anywhere, t > k/2 + c does instead: next to a gap of
k/2 places at most k/2 + c neighbours would open a client's mask. It also rules out that both kinds
of share are gathered for one client (2t > k + c). The ring is laid out by the digest of the signed
roster, of which the server may try many: c is exceeded with probability at most 2^-104, which
leaves 2^-40 after 2^64 tries. ``docs/explanation/proofs/secure-aggregation.md`` has the proofs.
"""

import math
import struct
from bisect import bisect_left
from dataclasses import astuple, dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from privacy import arguments
from privacy.secure_aggregation._crypto import KEY_BYTES
from privacy.secure_aggregation._masking import MASK_KEY_BYTES, add_mask
from privacy.secure_aggregation.errors import MalformedMessageError, ThresholdTooLowError
from privacy.secure_aggregation.terms import LARGEST_COHORT, Adversary, ServerModel, check_adversary

SECURITY_BITS = 40
GRINDING_BITS = 64
FAILURE_BITS = 20
MOST_NEIGHBOURS = 1 << 12  # a client's work grows with its square
_HALF_BITS = SECURITY_BITS + 1  # one half of 2^-40 each for conditions 1 and 2
_SLACK = 1e-3  # bits by which a plan is better than needed, so that libraries' last digits agree
_FORM = struct.Struct("<5I")


@dataclass(frozen=True)
class RoundPlan:
    """The graph and thresholds of a round.

    Parameters
    ----------
    clients : int
        n, who advertised keys.
    neighbours : int
        k, even and below n - 1, or n - 1: everybody.
    threshold : int
        t, how many neighbours open a client's secret, in [1, k].
    min_survivors : int
        The fewest clients whose sum is opened.
    cohort : int
        m, who were drawn, at least n: of these at most γm are corrupt.
    """

    clients: int
    neighbours: int
    threshold: int
    min_survivors: int
    cohort: int

    def __post_init__(self) -> None:
        for name in ("clients", "neighbours", "threshold", "min_survivors", "cohort"):
            arguments.convert(self, name, arguments.whole)
        n, k = self.clients, self.neighbours
        if not 3 <= n <= self.cohort <= LARGEST_COHORT:
            raise ValueError(
                f"clients is {n} and cohort {self.cohort}; they must lie in that order in "
                f"[3, {LARGEST_COHORT}]"
            )
        if k > MOST_NEIGHBOURS:
            raise ValueError(f"neighbours is {k}; it must be at most {MOST_NEIGHBOURS}")
        if not (k == n - 1 or (k % 2 == 0 and 2 <= k < n - 1)):
            raise ValueError(f"neighbours is {k}; it must be {n - 1} or even and below that")
        if not 1 <= self.threshold <= k:
            raise ValueError(f"threshold is {self.threshold}; it must lie in [1, {k}]")
        if not 3 <= self.min_survivors <= n:
            raise ValueError(f"min_survivors is {self.min_survivors}; it must lie in [3, {n}]")

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.neighbours == self.clients - 1

    def to_bytes(self) -> bytes:
        """The plan as it is sent."""
        return _FORM.pack(*astuple(self))

    def max_corrupt(self, adversary: Adversary) -> int:
        """C, how many of the clients may be corrupt."""
        return min(self.clients, adversary.max_corrupt(self.cohort))

    def quorum(self, adversary: Adversary) -> int:
        """The smallest number of clients of which two sets always share an honest one."""
        return _quorum(self.clients, self.max_corrupt(adversary))

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "RoundPlan":
        """Read what ``to_bytes`` wrote; ``MalformedMessageError`` if it is not that."""
        try:
            return cls(*_FORM.unpack(encoded))
        except (struct.error, ValueError) as error:
            raise MalformedMessageError(f"not the plan of a round: {error}") from error

    def check(self, adversary: Adversary) -> None:
        """Make sure that it withstands an adversary; ``ThresholdTooLowError`` if it does not."""
        least = _least_threshold(
            self.clients,
            self.neighbours,
            self.min_survivors,
            self.max_corrupt(adversary),
            adversary.server,
            slack=0.0,
        )
        if least is None or self.threshold < least:
            needed = "no threshold would do" if least is None else f"{least} is needed"
            raise ThresholdTooLowError(
                f"threshold {self.threshold} among {self.neighbours} neighbours of "
                f"{self.clients} clients, with {self.min_survivors} survivors, does not withstand "
                f"{adversary.max_corrupt_fraction:.0%} of the {self.cohort} drawn and a "
                f"{adversary.server.value} server: {needed}"
            )


@arguments.renamed(minimum="min_clients", dropout="max_dropout_fraction")
def plan_round(
    clients: int,
    *,
    adversary: Adversary,
    max_dropout_fraction: float | None,
    min_clients: int = 3,
    cohort: int | None = None,
) -> RoundPlan:
    """The fewest neighbours that withstand the adversary and the dropouts.

    Parameters
    ----------
    clients : int
        n, who advertised keys; at least 3.
    adversary : Adversary
    max_dropout_fraction : float or None
        δ, the share of the clients that may vanish after they advertised keys, in [0, 1). None, for
        few clients: everybody is everybody's neighbour, and as many may vanish as leave
        ``min_clients``.
    min_clients : int
        The fewest clients whose sum may be opened.
    cohort : int, optional
        m, who were drawn. Default: all of them advertised keys.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or no graph withstands them.
    """
    check_adversary("adversary", adversary)
    tolerated = max_dropout_fraction
    if tolerated is not None:
        tolerated = arguments.number("max_dropout_fraction", tolerated, least=0, below=1)
    clients = arguments.whole("clients", clients)
    min_clients = arguments.whole("min_clients", min_clients)
    drawn = clients if cohort is None else arguments.whole("cohort", cohort)
    corrupt = min(clients, adversary.max_corrupt(drawn))
    if tolerated is None:
        everybody = _complete_graph(clients, corrupt, adversary.server, min_clients)
        if everybody is None:
            raise ValueError(
                f"{clients} clients, of which {min_clients} must be left, cannot withstand "
                f"{corrupt} corrupt ones and a {adversary.server.value} server: assume fewer "
                "corrupt ones, or let more clients take part"
            )
        return RoundPlan(clients, *everybody, drawn)
    graph = _smallest_graph(clients, corrupt, adversary.server, tolerated, min_clients)
    if graph is None:
        raise ValueError(
            f"{clients} clients of {drawn} drawn cannot withstand "
            f"{adversary.max_corrupt_fraction:.0%} corrupt ones of these, a "
            f"{adversary.server.value} server and {tolerated:.0%} dropouts with "
            f"{min_clients} left: draw more clients or expect fewer dropouts"
        )
    return RoundPlan(clients, *graph, drawn)


@lru_cache(maxsize=1 << 16)
def _smallest_graph(
    clients: int, corrupt: int, server: ServerModel, max_dropout_fraction: float, min_clients: int
) -> tuple[int, int, int] | None:
    """The neighbours, threshold and survivors of a plan; None if no graph does."""
    dropped = int(max_dropout_fraction * clients)
    remaining = clients - dropped
    most = _quorum(clients, corrupt)
    evens = range(2, min(clients - 1, MOST_NEIGHBOURS + 1), 2)
    if server is not ServerModel.MALICIOUS:
        whole = partial(
            _hangs_together, clients, corrupt, max(min_clients, remaining), slack=_SLACK
        )
        evens = evens[bisect_left(evens, True, key=whole) :]
    everybody = [clients - 1] if 3 <= clients <= MOST_NEIGHBOURS + 1 else []
    for neighbours in [*evens, *everybody]:
        complete = neighbours == clients - 1
        needed = most if server is ServerModel.MALICIOUS else 3 if complete else remaining
        survivors = max(min_clients, needed)
        if survivors > remaining:
            continue
        least = _least_threshold(clients, neighbours, survivors, corrupt, server, slack=_SLACK)
        if least is None:
            continue
        alive = remaining - 1 if complete else _kept_neighbours(clients, neighbours, dropped)
        if least > alive:
            continue
        # What dropouts leave room for beyond the least makes a client's secret harder to open.
        threshold = max(least, min(alive, most)) if complete else alive
        if complete:
            survivors = max(survivors, threshold + 1)
        return neighbours, threshold, survivors
    return None


def _complete_graph(
    clients: int, corrupt: int, server: ServerModel, min_clients: int
) -> tuple[int, int, int] | None:
    """As ``_smallest_graph``: everybody, a threshold by majority, and the fewest survivors."""
    most = _quorum(clients, corrupt)
    needed = most if server is ServerModel.MALICIOUS else corrupt + 1
    # A survivor has one neighbour fewer than there are survivors.
    survivors = max(min_clients, 3, needed + 1)
    if survivors > clients or clients > MOST_NEIGHBOURS + 1:
        return None
    return clients - 1, max(needed, min(survivors - 1, most)), survivors


def _quorum(clients: int, corrupt: int) -> int:
    return (clients + corrupt) // 2 + 1


def _least_threshold(
    clients: int,
    neighbours: int,
    survivors: int,
    corrupt: int,
    server: ServerModel,
    *,
    slack: float,
) -> int | None:
    """The lowest threshold that withstands the adversary; None if none does."""
    most = _quorum(clients, corrupt)
    complete = neighbours == clients - 1
    if server is ServerModel.MALICIOUS:
        if survivors < most:
            return None
        if complete:
            return most
        bits = SECURITY_BITS + GRINDING_BITS + slack
        return neighbours // 2 + _most_corrupt(clients, neighbours, corrupt, bits) + 1
    if complete:
        return corrupt + 1
    if not _hangs_together(clients, corrupt, survivors, neighbours, slack=slack):
        return None
    return _most_corrupt(clients, neighbours, corrupt, _HALF_BITS + slack) + 1


def _hangs_together(
    clients: int, corrupt: int, survivors: int, neighbours: int, *, slack: float
) -> bool:
    """Condition 2; what has it for k neighbours has it for more."""
    empty = min(clients, corrupt + clients - survivors)
    return _gap_log2(clients, neighbours // 2, empty) <= -(_HALF_BITS + slack)


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
        return -math.inf
    chosen = math.lgamma(empty + 1) - math.lgamma(empty - run + 1)
    among = math.lgamma(clients + 1) - math.lgamma(clients - run + 1)
    return math.log2(clients) + (chosen - among) / math.log(2)


def _log_choose(whole: int, part: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    from scipy.special import gammaln  # a client whose updates are in the clear does without

    value: npt.NDArray[np.float64] = (
        gammaln(whole + 1.0) - gammaln(part + 1.0) - gammaln(whole - part + 1.0)
    )
    return value


def _tail_log2(population: int, marked: int, draws: int) -> npt.NDArray[np.float64]:
    """log2 P[Hyp(population, marked, draws) >= i] for i = 0 ... draws + 1."""
    log_pmf = np.full(draws + 2, -np.inf)
    low, high = max(0, draws - (population - marked)), min(draws, marked)
    i = np.arange(low, high + 1)
    log_pmf[low : high + 1] = (
        _log_choose(marked, i)
        + _log_choose(population - marked, draws - i)
        - _log_choose(population, np.array(draws))
    )
    tail: npt.NDArray[np.float64] = np.logaddexp.accumulate(log_pmf[::-1])[::-1] / np.log(2)
    return np.minimum(tail, 0.0)


class Ring:
    """A random ring of clients, laid out by a key of 32 bytes.

    A client's neighbours come in a fixed order, by distance; the one at place p has the share at
    the point p + 1.
    """

    def __init__(self, plan: RoundPlan, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key has {len(key)} bytes; it must have {KEY_BYTES}")
        drawn = np.zeros(plan.clients, dtype=np.uint64)
        add_mask(drawn, key[:MASK_KEY_BYTES])
        self._at: npt.NDArray[np.int64] = np.argsort(drawn, kind="stable")
        self._place_of = np.argsort(self._at, kind="stable")
        if plan.complete:
            self._offsets = np.arange(1, plan.clients)
        else:
            near = np.arange(1, plan.neighbours // 2 + 1)
            self._offsets = np.concatenate([near, -near])
        self._label_of = {
            int(offset) % plan.clients: label for label, offset in enumerate(self._offsets)
        }

    def neighbours(self, client: int) -> list[int]:
        """The neighbours of a client, in the order of their labels."""
        places = (self._place_of[client] + self._offsets) % len(self._at)
        neighbours: list[int] = self._at[places].tolist()
        return neighbours

    def label(self, owner: int, holder: int) -> int:
        """At which place among the owner's neighbours the holder stands."""
        distance = (self._place_of[holder] - self._place_of[owner]) % len(self._at)
        return self._label_of[int(distance)]
