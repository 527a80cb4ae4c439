"""ε of a list of events, at client level."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from privacy import arguments
from privacy.accounting.events import (
    LARGEST_COUNT,
    AdditiveDelta,
    Adjacency,
    DiscreteGaussianSum,
    Event,
    FixedSize,
    GaussianRelease,
    GroupRelease,
    Poisson,
    Release,
    Repeated,
    SiloSum,
)
from privacy.accounting.gaussian import (
    LARGEST_EPSILON,
    OVERFLOW_DELTA,
    as_gaussian,
    gaussian_epsilon,
)

Accountant = Literal["pld", "rdp"]
Events = (
    Iterable[Event]
    | Mapping[Event, int]
    | Mapping[GaussianRelease, int]
    | Mapping[DiscreteGaussianSum, int]
    | Mapping[SiloSum, int]
    | Mapping[AdditiveDelta, int]
    | Mapping[Repeated, int]
    | Mapping[GroupRelease, int]
)
UNMASKED = 2.0**-40  # the probability with which secure aggregation may fail to hide its vectors
_SMALLEST_DELTA = sys.float_info.min  # smaller ones have lost digits, and their inverse overflows


@dataclass(frozen=True)
class Budget:
    """The limit of one population's spending, over all runs.

    Parameters
    ----------
    epsilon, delta : float
        ε > 0 and δ in (0, 1), of at least 2.3·10⁻³⁰⁸. ``math.inf`` as ε sets no limit: spending
        is accounted only, and nothing can be calibrated to it.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        arguments.convert(self, "epsilon", arguments.maybe_infinite, above=0)
        arguments.convert(self, "delta", arguments.delta)


def epsilon(
    events: Events,
    *,
    delta: float,
    accountant: Accountant | None = None,
    adjacency: Adjacency | None = None,
) -> float:
    """ε at which all the events together are (ε, δ)-private for one client.

    Parameters
    ----------
    events : iterable of Event, or mapping of Event to int
        In any order; a mapping gives how often each happened. Equal events are composed at once,
        so a thousand equal rounds cost one composition.
    delta : float
        δ in (0, 1), at least 2.3·10⁻³⁰⁸.
    accountant : "pld" or "rdp", optional
        Privacy loss distributions (the tightest) or Rényi. By default "pld", or "rdp" where
        only that can express an event (a cohort of fixed size).
    adjacency : Adjacency, optional
        By default replace-one if a cohort has a fixed size, and else add-or-remove-one.

    Returns
    -------
    float
        An upper bound of the true ε. ``inf`` if something was released without noise, if the
        additive deltas reach δ, if δ is too small for the accountant to resolve, or if noise
        that a server completed (``shares`` above ``honest``) costs more than ε = 27.

    Raises
    ------
    ValueError
        If δ is out of range, a count is negative, or an event does not fit the adjacency or
        the accountant.

    Notes
    -----
    **Guarantee.** For cohorts that were drawn independently, from randomness an adversary does
    not see, and sums to which one client contributes norm at most S: the releases, chosen
    adaptively, are (ε, δ)-differentially private under ``adjacency``. Rounding errors of the
    computation are included (``docs/explanation/proofs/composition.md``, "Composition").

    **Assumptions.** Poisson cohorts are drawn over the whole population and never redrawn; a
    fixed-size cohort is uniform among all cohorts of its size.

    **Not covered.** Several sums released from one cohort as if their cohorts were independent:
    join them with :func:`joint_noise_multiplier` first.
    """
    delta = arguments.delta("delta", delta)
    counts = of_one_client(count_events(events))
    releases = {e: n for e, n in counts.items() if isinstance(e, Release)}
    adjacency = _fitting_adjacency(releases, adjacency)
    accountant = _fitting_accountant(releases, accountant)

    charged = math.fsum(n * e.delta for e, n in counts.items() if isinstance(e, AdditiveDelta))
    completed = sum(n for e, n in releases.items() if _is_completed(e))
    charged += completed * OVERFLOW_DELTA
    if charged > 0:
        delta = math.nextafter(delta - math.nextafter(charged, math.inf), 0.0)
    if delta < _SMALLEST_DELTA or any(release.noise_multiplier == 0 for release in releases):
        return math.inf
    if not releases:
        return 0.0
    bound = _bound(releases, float(delta), accountant, adjacency)
    return math.inf if completed and bound > LARGEST_EPSILON else bound


def _is_completed(release: Release) -> bool:
    """Whether the server adds noise to an opened sum, which may have overflowed its ring."""
    return isinstance(release, DiscreteGaussianSum) and release.shares > release.honest


def _bound(
    releases: Mapping[Release, int], delta: float, accountant: Accountant, adjacency: Adjacency
) -> float:
    if accountant == "rdp":
        return _renyi(frozenset(releases.items()), delta, adjacency)

    # Sums of discrete Gaussians differ from a Gaussian by a factor, which costs ε and δ.
    gaussians: Counter[GaussianRelease] = Counter()
    distance = 0.0
    for release, times in releases.items():
        if isinstance(release, DiscreteGaussianSum):
            near, apart = as_gaussian(release)
            gaussians[near] += times
            distance += times * apart
        else:
            gaussians[release] += times
    if distance == 0:
        return _compose(frozenset(gaussians.items()), delta, adjacency)
    distance = math.nextafter(distance * (1 + 2.0**-40), math.inf)
    shrunk = math.nextafter(delta * math.exp(-distance) * (1 - 2.0**-50), 0.0)
    bound = math.inf
    if shrunk > 0:
        total = _compose(frozenset(gaussians.items()), shrunk, adjacency)
        bound = (total + 2 * distance) * (1 + 2.0**-50)
    return min(bound, _renyi(frozenset(releases.items()), delta, adjacency, bound))


@lru_cache(maxsize=4096)
def _renyi(
    releases: frozenset[tuple[Release, int]],
    delta: float,
    adjacency: Adjacency,
    below: float = math.inf,
) -> float:
    # Imported here: dp-accounting takes a second, and much of this package does not need it.
    from privacy.accounting.renyi import renyi_epsilon

    return renyi_epsilon(dict(releases), delta=delta, adjacency=adjacency, below=below)


@lru_cache(maxsize=4096)
def _compose(
    releases: frozenset[tuple[GaussianRelease, int]], delta: float, adjacency: Adjacency
) -> float:
    # Unsampled Gaussian releases add up to one (Dong, Roth and Su 2022, corollary 3.3).
    shrink = 0.5 if adjacency is Adjacency.REPLACE_ONE else 1.0
    alike: Counter[tuple[float, float]] = Counter()
    for release, times in releases:
        alike[shrink * float(release.noise_multiplier), _rate(release)] += times
    joint = _joint({z: n for (z, q), n in alike.items() if q == 1})
    sampled = {(z, q): n for (z, q), n in alike.items() if q < 1}
    if not sampled:
        return gaussian_epsilon(joint, delta)

    # Bounds in closed form, where PLD's grid resolves nothing: amplification by sampling only
    # lowers ε; and whoever is never drawn pays nothing, which fails with probability `drawn`.
    everything = Counter({z: n for (z, q), n in alike.items() if q == 1})
    for (z, _), times in sampled.items():
        everything[z] += times
    bounds = [gaussian_epsilon(_joint(everything), delta)]
    drawn = -math.expm1(math.fsum(n * math.log1p(-q) for (_, q), n in sampled.items()))
    drawn = math.nextafter(drawn * (1 + 2.0**-40), math.inf)
    if drawn < delta:
        bounds.append(gaussian_epsilon(joint, math.nextafter(delta - drawn, 0.0)))
    from privacy.accounting.privacy_loss import sampled_epsilon

    if joint < math.inf:
        sampled[joint, 1.0] = 1
    bounds.append(sampled_epsilon(sampled, delta))
    # The Rényi bound is hardly ever tighter, but resolves any δ.
    best = min(bounds)
    return min(best, _renyi(releases, delta, adjacency, best))


def _joint(releases: Mapping[float, int]) -> float:
    """The z of unsampled releases together, rounded down: 1/z² adds up. ∞ if there is none."""
    smallest = min(releases, default=math.inf)
    precision = math.fsum(n * (smallest / z) ** 2 for z, n in releases.items())
    return smallest * (1 - 2.0**-48) / math.sqrt(precision) if precision else math.inf


def count_events(events: Events) -> Counter[Event]:
    """How often each event happened, 10¹⁰⁰ times at most; repeated ones one by one.

    A ``SiloSum`` is counted as the sum that the server and its colluders see, and the δ with which
    secure aggregation may fail.
    """
    if isinstance(events, Mapping):
        counts: Counter[Event] = Counter()
        for event, given in events.items():
            times = arguments.whole(f"the count of {event}", given, least=0, most=LARGEST_COUNT)
            if times:
                counts[event] = times
    else:
        counts = Counter(events)
    for event in counts:
        if not isinstance(event, Event):
            raise TypeError(
                f"{event!r} is not an event; give GaussianRelease, DiscreteGaussianSum, SiloSum, "
                "AdditiveDelta, Repeated or GroupRelease"
            )
    for event in [event for event in counts if isinstance(event, Repeated)]:
        counts[event.release] += event.times * counts.pop(event)
    for event in [event for event in counts if isinstance(event, SiloSum)]:
        times = counts.pop(event)
        counts[event.seen] += times
        counts[AdditiveDelta(UNMASKED)] += times
    return counts


def of_one_client(counts: Counter[Event]) -> Counter[Event]:
    """What one client pays at most: of groups that take turns, what the busiest one pays.

    Of each kind of release by itself, which is more where the busiest of two kinds differ.
    """
    by_group: dict[tuple[str, int, Event], Counter[int]] = {}
    total: Counter[Event] = Counter()
    for event, times in counts.items():
        if isinstance(event, GroupRelease):
            key = (event.instance, event.groups, event.release)
            by_group.setdefault(key, Counter())[event.group] += times
        else:
            total[event] += times
    for (_, _, release), groups in by_group.items():
        total[release] += max(groups.values())
    return total


def large_delta(delta: float, population: int, *, unit: str = "client") -> str | None:
    """Why a δ of one over the population or more is too large; None where δ is smaller.

    A sentence without its full stop. ``unit`` is what the population consists of, and who is
    protected: "client", "person", "row".
    """
    delta = arguments.number("delta", delta, above=0, below=1)
    population = arguments.whole("population", population, least=1)
    if delta * population < 1:
        return None
    return (
        f"δ = {delta:g} is no less than one over the population of {population:,}: a release that "
        f"gives away one {unit} at random, whole, would pass. Choose a δ well below "
        f"{1 / population:.1g}"
    )


def check_adjacency(event: Event, adjacency: Adjacency) -> None:
    """Refuse a cohort of fixed size but under replace-one, and a Poisson cohort under it."""
    if isinstance(event, Repeated | GroupRelease):
        event = event.release
    if not isinstance(event, Release | SiloSum):
        return
    if isinstance(event.sampling, FixedSize) and adjacency is not Adjacency.REPLACE_ONE:
        raise ValueError(
            f"a cohort of fixed size cannot be accounted under {adjacency.value}: "
            "its size gives away a client; use replace-one, or Poisson sampling"
        )
    if isinstance(event.sampling, Poisson) and adjacency is Adjacency.REPLACE_ONE:
        raise ValueError(
            f"a Poisson cohort is not accounted under {adjacency.value}; "
            "use add-or-remove-one, or a cohort of fixed size"
        )


def _fitting_adjacency(releases: Iterable[Release], adjacency: Adjacency | None) -> Adjacency:
    releases = list(releases)
    if adjacency is None:
        fixed = any(isinstance(release.sampling, FixedSize) for release in releases)
        adjacency = Adjacency.REPLACE_ONE if fixed else Adjacency.ADD_OR_REMOVE_ONE
    adjacency = Adjacency(adjacency)
    for release in releases:
        check_adjacency(release, adjacency)
    return adjacency


def _fitting_accountant(releases: Iterable[Release], accountant: Accountant | None) -> Accountant:
    fixed = any(isinstance(release.sampling, FixedSize) for release in releases)
    if accountant is None:
        return "rdp" if fixed else "pld"
    if accountant not in ("pld", "rdp"):
        raise ValueError(f"accountant is {accountant!r}; it must be 'pld' or 'rdp'")
    if accountant == "pld" and fixed:
        raise ValueError(
            "accountant is 'pld', which has no event for a cohort of fixed size; use 'rdp'"
        )
    return accountant


def _rate(release: GaussianRelease) -> float:
    return float(release.sampling.rate) if isinstance(release.sampling, Poisson) else 1.0
