"""What it costs that a client's presence can decide whether a round opens."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .events import AdditiveDelta, FixedSize, Full, Sampling

_NEGLECTED = 1e-18  # probability that is counted as a failure instead of looked into


class Opening(Protocol):
    """What must hold for a round to open; ``privacy.secure_aggregation.RoundPlan`` is one."""

    @property
    def neighbours(self) -> int:
        """k, among how many others each client shares its secrets."""

    @property
    def threshold(self) -> int:
        """t, how many of them must survive."""

    @property
    def survivors(self) -> int:
        """How many clients must survive."""


def presence_delta(
    *,
    population: int,
    sampling: Sampling,
    dropout: float,
    opening: Callable[[int], Opening | None],
    largest: int | None = None,
) -> AdditiveDelta:
    """The probability that one client's presence decides whether a round opens.

    Every round that is begun is charged with it, opened or not: what a round that did not open
    shows is at most that somebody was there, or was not.

    Parameters
    ----------
    population : int
        N, at least 1.
    sampling : Poisson, Full or FixedSize
        How the cohort is drawn. Under a fixed size, where clients are exchanged and not added,
        the charge is 0.
    dropout : float
        The probability, at most, with which a client that was drawn does not see the round
        through, in [0, 1).
    opening : callable
        What must hold with n clients that announced themselves; None if that never opens.
    largest : int, optional
        The largest cohort that is begun with.

    Returns
    -------
    AdditiveDelta
        Rounded up; for each round that is begun.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    *Guarantee.* With a public coin that shows "presence decided" with this probability, and
    otherwise the release as it is accounted without secure aggregation, everybody learns at
    least as much as from the round (``docs/proofs.md``, "Rounds that do not open").

    *Assumptions.* Clients drop out independently of each other and of each other's data, each
    with at most that probability. The server follows the protocol.

    *Not covered.* Dropouts that somebody arranges: who can leave exactly one client short of
    the threshold sees by whether the round opens that another client was drawn.
    """
    if isinstance(population, bool) or not isinstance(population, int) or population < 1:
        raise ValueError(f"population is {population!r}; it must be a whole number of at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a probability in [0, 1)")
    if isinstance(sampling, FixedSize):
        return AdditiveDelta(0.0)
    from scipy.stats import binom

    others = population - 1
    rate = 1.0 if isinstance(sampling, Full) else float(sampling.rate)
    # Fewer than `fewest` of the others survive, or more than `most` are drawn: hardly ever.
    everybody = np.arange(population)
    survive = binom.cdf(everybody, others, rate * (1 - dropout))
    fewest = int(np.searchsorted(survive, _NEGLECTED, side="right"))
    most = int(np.argmax(binom.sf(everybody, others, rate) <= _NEGLECTED))
    if largest is not None:
        most = max(min(most, largest), fewest)
    needed, stray = _requirements(range(fewest, most + 2), dropout, opening)
    drawn = np.arange(fewest, most + 1)
    # How many of the others may drop out, and how many hardly ever do.
    enough = drawn - np.maximum.accumulate(needed)[1:]
    lost = [int(np.argmax(binom.sf(everybody[: n + 1], n, dropout) <= _NEGLECTED)) for n in drawn]
    alone = [stray[max(0, i - gone) : i + 2].max() for i, gone in enumerate(lost)]
    fails = np.where(enough >= 0, binom.sf(enough, drawn, dropout), 1.0)
    fails += 2 * np.array(alone) + _NEGLECTED
    if largest is not None:
        fails[drawn >= largest] = 1.0
    fails = np.minimum(fails, 1.0)
    likely = binom.pmf(drawn, others, rate)
    beyond = float(binom.sf(most, others, rate))
    total = float(np.sum(likely * fails)) + beyond + _NEGLECTED
    return AdditiveDelta(min(1.0, rate * total * (1 + 2.0**-20)))


def _requirements(
    announced: range, dropout: float, opening: Callable[[int], Opening | None]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many survivors so many clients need, and the probability that one is left alone.

    Alone, with fewer than t neighbours that survive.
    """
    from scipy.stats import binom

    needed, stray = [], []
    for clients in announced:
        plan = opening(clients)
        if plan is None:
            needed.append(clients + 1)
            stray.append(0.0)
            continue
        needed.append(plan.survivors)
        # Where everybody is a neighbour, those who survive are enough already.
        complete = plan.neighbours == clients - 1 and plan.survivors > plan.threshold
        may_go = plan.neighbours - plan.threshold
        one = 0.0 if complete else float(binom.sf(may_go, plan.neighbours, dropout))
        stray.append(min(1.0, clients * one))
    return np.array(needed, dtype=np.int64), np.array(stray)
