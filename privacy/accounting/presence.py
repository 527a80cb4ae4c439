"""The δ for rounds that one client's presence may open."""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.accounting.events import AdditiveDelta, FixedSize, Full, Sampling
from privacy.arguments import number, renamed, whole

_NEGLECTED = 1e-18  # probability that is counted as a failure instead of looked into


class Opening(Protocol):
    """The conditions for a round to open; ``privacy.secure_aggregation.RoundPlan`` is one."""

    @property
    def neighbours(self) -> int:
        """k, among how many others each client shares its secrets."""

    @property
    def threshold(self) -> int:
        """t, how many of them must survive."""

    @property
    def min_survivors(self) -> int:
        """How many clients must survive."""


@renamed(dropout="dropout_probability", largest="max_clients")
def presence_delta(
    *,
    population: int,
    sampling: Sampling,
    dropout_probability: float,
    opening: Callable[[int, int], Opening | None],
    max_clients: int | None = None,
) -> AdditiveDelta:
    """The probability that one client's presence decides whether a round opens.

    Every round that is begun is charged with it, opened or not: a round that did not open shows
    at most that somebody was there, or was not.

    Parameters
    ----------
    population : int
        N, at least 1.
    sampling : Poisson, Full or FixedSize
        How the cohort is drawn. Under a fixed size, where clients are exchanged and not added,
        the charge is 0.
    dropout_probability : float
        The probability, at most, with which a client that was drawn does not see the round
        through, in [0, 1).
    opening : callable
        The conditions with n clients that announced themselves, of m that were drawn (in this
        order); None if no such round opens.
    max_clients : int, optional
        The largest cohort that is begun with.

    Returns
    -------
    AdditiveDelta
        Rounded up; for each round that is begun.

    Notes
    -----
    **Guarantee.** With a public coin that shows "presence decided" with this probability, and
    otherwise the release as it is accounted without secure aggregation, everybody learns at
    least as much as from the round (``docs/explanation/proofs/secure-aggregation.md``, "Rounds
    that do not open").

    **Assumptions.** Clients drop out independently of each other and of each other's data, each
    with at most that probability. The server follows the protocol.

    **Not covered.** Dropouts that somebody arranges: who can leave exactly one client short of
    the threshold sees by whether the round opens that another client was drawn.
    """
    population = whole("population", population, least=1)
    name = "dropout_probability"
    dropout_probability = number(name, dropout_probability, least=0, below=1)
    if isinstance(sampling, FixedSize):
        return AdditiveDelta(0.0)
    from scipy.stats import binom

    others = population - 1
    rate = 1.0 if isinstance(sampling, Full) else float(sampling.rate)
    # Fewer than `fewest` of the others are drawn, or more than `most`: hardly ever.
    everybody = np.arange(population)
    at_most = binom.cdf(everybody, others, rate)
    fewest = int(np.searchsorted(at_most, _NEGLECTED, side="right"))
    most = int(np.argmax(binom.sf(everybody, others, rate) <= _NEGLECTED))
    if max_clients is not None:
        max_clients = whole("max_clients", max_clients)
        most = max(min(most, max_clients), fewest)
    needed, stray = _requirements(range(fewest, most + 2), dropout_probability, opening)
    drawn = np.arange(fewest, most + 1)
    # How many of the others may drop out, if the round is to open with the client and without.
    enough = drawn - np.maximum(needed[:-1], needed[1:])
    fails = np.where(enough >= 0, binom.sf(enough, drawn, dropout_probability), 1.0)
    fails += 2 * np.maximum(stray[:-1], stray[1:]) + _NEGLECTED
    if max_clients is not None:
        fails[drawn >= max_clients] = 1.0
    fails = np.minimum(fails, 1.0)
    likely = binom.pmf(drawn, others, rate)
    beyond = float(binom.sf(most, others, rate))
    total = float(np.sum(likely * fails)) + beyond + _NEGLECTED
    return AdditiveDelta(min(1.0, rate * total * (1 + 2.0**-20)))


def _requirements(
    cohorts: range, dropout_probability: float, opening: Callable[[int, int], Opening | None]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many survivors a cohort needs, and the probability that one of it is left alone.

    Alone, with fewer than t neighbours that survive. Both are the largest of all numbers that
    may announce themselves, of a cohort of m all but those who hardly ever drop out.
    """
    from scipy.stats import binom

    needed, stray = [], []
    for cohort in cohorts:
        everybody = np.arange(cohort + 1)
        lost = int(np.argmax(binom.sf(everybody, cohort, dropout_probability) <= _NEGLECTED)) + 1
        survivors, alone = 0, 0.0
        for clients in range(max(0, cohort - lost), cohort + 1):
            plan = opening(clients, cohort)
            if plan is None:
                survivors = max(survivors, clients + 1)
                continue
            survivors = max(survivors, plan.min_survivors)
            # Where everybody is a neighbour, those who survive are enough already.
            if plan.neighbours == clients - 1 and plan.min_survivors > plan.threshold:
                continue
            may_go = plan.neighbours - plan.threshold
            one = _tail(may_go, plan.neighbours, dropout_probability)
            alone = max(alone, min(1.0, clients * one))
        needed.append(survivors)
        stray.append(alone)
    return np.array(needed, dtype=np.int64), np.array(stray)


@lru_cache(maxsize=4096)
def _tail(may_go: int, neighbours: int, dropout_probability: float) -> float:
    from scipy.stats import binom

    return float(binom.sf(may_go, neighbours, dropout_probability))
