"""Events: releases of clients' data, as small frozen values.

:mod:`privacy.accounting.composition` computes ε of events. Every event can be written as JSON and
read back without loss. A value of the wrong kind raises ``TypeError``, one out of range
``ValueError``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, get_args

from privacy.arguments import convert, number, of_kind, shown, text, whole

# Squares and inverse squares of numbers between them, summed over many events, fit a double.
_SMALLEST, _LARGEST = 1e-100, 1e100
LARGEST_COUNT = 10**100  # as far as doubles can account


class Adjacency(StrEnum):
    """Which two populations the guarantee calls neighbours."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    """One client more or less. One client moves a clipped sum by at most S."""

    REPLACE_ONE = "replace-one"
    """One client's data exchanged for other data. The sum moves by at most 2S."""

    ZERO_OUT_ONE = "zero-out-one"
    """One client's vector exchanged for zero; the client itself stays. It is asked, answers or
    drops out, and adds its share of the noise all the same. The sum moves by at most S."""


@dataclass(frozen=True)
class Poisson:
    """Each client of the population joins independently with probability ``rate``.

    Parameters
    ----------
    rate : float
        The sampling rate q in (0, 1], at least 10⁻¹⁰⁰.
    """

    kind: ClassVar[str] = "poisson"
    rate: float

    def __post_init__(self) -> None:
        give = "the expected cohort divided by the population, in [1e-100, 1]"
        convert(self, "rate", number, least=_SMALLEST, most=1, give=give)


@dataclass(frozen=True)
class Full:
    """Every client of the population takes part: no amplification by sampling."""

    kind: ClassVar[str] = "full"


@dataclass(frozen=True)
class FixedSize:
    """A cohort of exactly ``cohort`` of ``population`` clients, without replacement.

    Accounted with Rényi differential privacy only, under replace-one adjacency (Wang, Balle
    and Kasiviswanathan 2019, theorem 27), where the sensitivity of the sum is 2S.

    Parameters
    ----------
    cohort, population : int
        m and N, with 1 ≤ m ≤ N.
    """

    kind: ClassVar[str] = "fixed-size"
    cohort: int
    population: int

    def __post_init__(self) -> None:
        convert(self, "cohort", whole, least=1, most=LARGEST_COUNT)
        convert(self, "population", whole, least=1, most=LARGEST_COUNT)
        if self.cohort > self.population:
            raise ValueError(
                f"cohort is {self.cohort} and population {self.population}; "
                "a cohort without replacement cannot be larger than its population"
            )


Sampling = Poisson | Full | FixedSize


@dataclass(frozen=True)
class CyclicGroups:
    """Groups of clients that take turns: in round t group t mod ``groups`` is asked.

    Each client belongs to one group, by a hash of its identity under the run's key, and so
    independently of all others. It takes part every ``groups``-th round at most.

    Parameters
    ----------
    groups : int
        How many there are; a round's cohort is expected to be ``rate``/``groups`` of all clients.
    rate : float
        With which probability each client of the group is drawn, in (0, 1]. With 1, all of it is
        asked, and nothing needs to be kept secret; below, as for :class:`Poisson`, who was drawn.
    """

    kind: ClassVar[str] = "cyclic-groups"
    groups: int
    rate: float = 1.0

    def __post_init__(self) -> None:
        convert(self, "groups", whole, least=1, most=10**6)
        convert(self, "rate", number, least=_SMALLEST, most=1)

    @property
    def within(self) -> Poisson | Full:
        """How a cohort is drawn within its group."""
        return Full() if self.rate == 1 else Poisson(self.rate)

    def participations(self, rounds: int) -> int:
        """The most rounds that one client takes part in, of so many."""
        return -(-rounds // self.groups)


@dataclass(frozen=True)
class GaussianRelease:
    """A sum over a cohort, released with Gaussian noise.

    Parameters
    ----------
    noise_multiplier : float
        z: the noise's standard deviation is z·S where one client contributes a vector of norm
        at most S to the sum. The same number whatever the adjacency: under replace-one the
        accountant itself is given z/2. Zero is allowed and costs ε = ∞; other values lie in
        [10⁻¹⁰⁰, 10¹⁰⁰].
    sampling : Poisson, Full or FixedSize
        How the cohort was drawn. ``Full()`` also describes a noised metric that is asked of
        everyone, or any release that claims no amplification.

    Notes
    -----
    Several sums released from *one* cohort are one event, whose multiplier is given by
    :func:`joint_noise_multiplier`; they are not several sampled events.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float
    sampling: Sampling

    def __post_init__(self) -> None:
        convert(self, "noise_multiplier", number, least=0)
        if self.noise_multiplier:
            give = "0, for no noise, or a number in [1e-100, 1e100]: useful ones are 0.1 to 100"
            convert(self, "noise_multiplier", number, least=_SMALLEST, most=_LARGEST, give=give)
        kinds = "Poisson(rate), Full() or FixedSize(cohort, population)"
        of_kind("sampling", self.sampling, (Poisson, Full, FixedSize), kinds)


@dataclass(frozen=True)
class AdditiveDelta:
    """A probability with which something un-noised may have shown: (0, δ)-private.

    A round under secure aggregation is charged with the probability that one client's presence
    decides whether it opens (:func:`privacy.accounting.presence_delta`). Charges are subtracted
    from the δ at which ε is reported.

    Parameters
    ----------
    delta : float
        The probability, in [0, 1].
    """

    kind: ClassVar[str] = "additive-delta"
    delta: float

    def __post_init__(self) -> None:
        convert(self, "delta", number, least=0, most=1)


_WHOLE = ("sensitivity", "dimension", "shares", "honest")


@dataclass(frozen=True)
class DiscreteGaussianSum:
    """An integer sum whose noise is a sum of discrete Gaussians, which is no Gaussian itself.

    Distributed noise: each client of a secure aggregation adds a share of its own.

    Parameters
    ----------
    variance : float
        σ², the parameter of one share N_Z(0, σ²), in squares of the lattice's cells; at least
        1/4 (where σ ≥ 1/2 the bound for sums holds).
    sensitivity : int
        How far one client moves the sum, in cells: its clipping norm.
    dimension : int
        How many integers the sum has.
    shares : int
        How many independent shares are in the released sum *and* unknown to whoever sees it.
        The same whoever takes part: the server completes the shares of a small cohort. If they
        are more than ``honest`` it is assumed to do so, to a sum that has overflowed its ring
        with probability at most 2⁻¹⁰⁰, for which 2⁻⁶⁰ of δ is charged.
    honest : int
        How many shares the server itself does not know, with all its colluding clients: the
        fewest survivors of a sum that is opened, less those clients. Only
        :func:`against_server` looks at it.
    sampling : Poisson or Full
        How the cohort was drawn.
    """

    kind: ClassVar[str] = "discrete-gaussian-sum"
    variance: float
    sensitivity: int
    dimension: int
    shares: int
    honest: int
    sampling: Poisson | Full

    def __post_init__(self) -> None:
        give = "at least 1/4, from a finer lattice, or fewer shares of more noise each"
        convert(self, "variance", number, least=0.25, give=give)
        for name in _WHOLE:
            convert(self, name, whole, least=1, most=LARGEST_COUNT)
        if self.honest > self.shares:
            raise ValueError(
                f"honest is {self.honest} and shares {self.shares}; the server, which knows at "
                "least what everybody knows, cannot face more unknown shares"
            )
        of_kind("sampling", self.sampling, (Poisson, Full), "Poisson(rate) or Full()")

    @property
    def noise_multiplier(self) -> float:
        """√(shares·σ²)/sensitivity, which a Gaussian with that variance would have."""
        return math.sqrt(self.shares * self.variance) / self.sensitivity


@dataclass(frozen=True)
class SiloSum:
    """A sum over the persons of several silos, each of which draws its own and adds its own noise.

    Under secure aggregation nobody sees a single silo's sum. The noise is a sum of discrete
    Gaussians, one share a silo. Who was drawn is secret from the server too: the silo draws, from
    randomness of its own, and takes part whoever is drawn.

    Parameters
    ----------
    variance : float
        σ², the parameter of one silo's share N_Z(0, σ²), in squares of the lattice's cells; at
        least 1/4.
    sensitivity : int
        How far one person moves the sum, in cells, rounding included.
    dimension : int
        How many integers the sum has.
    silos : int
        The fewest silos whose sum is opened.
    colluders : int
        How many silos may tell the server, or each other, their shares of the noise; below
        ``silos``. ε of the event is that against the server with these.
    sampling : Poisson or Full
        How each silo draws its persons.

    Notes
    -----
    The 2⁻⁴⁰ with which secure aggregation may fail to hide a silo's sum is charged with the event,
    as a part of δ. That silos go missing costs nothing, as long as none leaves because of whom it
    drew or what it holds.
    """

    kind: ClassVar[str] = "silo-sum"
    variance: float
    sensitivity: int
    dimension: int
    silos: int
    colluders: int
    sampling: Poisson | Full

    def __post_init__(self) -> None:
        convert(self, "colluders", whole, least=0, most=LARGEST_COUNT)
        convert(self, "silos", whole, least=2, most=LARGEST_COUNT)
        if not self.colluders < self.silos:
            raise ValueError(
                f"colluders is {self.colluders} and silos {self.silos}; of the fewest silos whose "
                "sum is opened at least one must keep its share of the noise to itself"
            )
        checked = self.seen  # the other fields
        for name in ("variance", "sensitivity", "dimension"):
            object.__setattr__(self, name, getattr(checked, name))

    @property
    def seen(self) -> DiscreteGaussianSum:
        """The sum with the shares that the server and the colluders do not know."""
        honest = self.silos - self.colluders
        return DiscreteGaussianSum(
            self.variance, self.sensitivity, self.dimension, honest, honest, self.sampling
        )

    @property
    def noise_multiplier(self) -> float:
        """√((silos − colluders)·σ²)/sensitivity, which a Gaussian with that variance would have."""
        return self.seen.noise_multiplier


@dataclass(frozen=True)
class Repeated:
    """Equal releases, one after the other: the steps of a training.

    Parameters
    ----------
    release : GaussianRelease or SiloSum
        One of them, each from a cohort of its own.
    times : int
        How many, at least 1.
    """

    kind: ClassVar[str] = "repeated"
    release: GaussianRelease | SiloSum
    times: int

    def __post_init__(self) -> None:
        of_kind("release", self.release, (GaussianRelease, SiloSum), "a GaussianRelease or SiloSum")
        convert(self, "times", whole, least=1, most=LARGEST_COUNT)


@dataclass(frozen=True)
class GroupRelease:
    """A release of clients of one group, where groups take turns (:class:`CyclicGroups`).

    A client is in one group of an instance. So it pays for the releases of the group that has paid
    most, and not for those of the others. With correlated noise the release stands for all that
    one participation shows in that round and later ones
    (``docs/explanation/proofs/correlated-noise.md``, "Correlated noise on integers").

    Parameters
    ----------
    release : GaussianRelease or AdditiveDelta
        What it costs a client of the group.
    instance : str
        The name of the run of the mechanism, in which clients keep their groups.
    row : int
        The number of the round in the instance, from 0; its group is ``row`` mod ``groups``.
    groups : int
        How many groups there are.
    """

    kind: ClassVar[str] = "group-release"
    release: GaussianRelease | AdditiveDelta
    instance: str
    row: int
    groups: int

    def __post_init__(self) -> None:
        kinds = (GaussianRelease, AdditiveDelta)
        of_kind("release", self.release, kinds, "a GaussianRelease or AdditiveDelta")
        object.__setattr__(self, "instance", text("instance", self.instance))
        convert(self, "row", whole, least=0, most=LARGEST_COUNT)
        convert(self, "groups", whole, least=1, most=LARGEST_COUNT)

    @property
    def group(self) -> int:
        """Whose release it is."""
        return self.row % self.groups


Release = GaussianRelease | DiscreteGaussianSum
Event = Release | SiloSum | AdditiveDelta | Repeated | GroupRelease


def against_server(event: Event) -> Event:
    """The event as it counts against the server that ran the round, for :func:`epsilon`.

    The server drew the cohort and saw the opened sum: there is no amplification by sampling, and
    only noise that honest clients added counts. A sum that it noised itself it saw without.
    The neighbouring relation is ``ZERO_OUT_ONE``: who took part is no secret to it.

    A ``SiloSum`` is as it is: its silos draw, and the server does not learn whom.
    """
    if isinstance(event.release if isinstance(event, Repeated) else event, SiloSum):
        return event
    if isinstance(event, GroupRelease) and isinstance(event.release, AdditiveDelta):
        return event
    if isinstance(event, GaussianRelease | Repeated | GroupRelease):
        return GaussianRelease(0.0, Full())
    if isinstance(event, DiscreteGaussianSum):
        return replace(event, shares=event.honest, sampling=Full())
    return event


class Observer(StrEnum):
    """Who sees the sums of several silos, and what of their noise it knows."""

    OUTSIDE = "outside"
    """Everybody outside of the federation, who sees the models: no share of the noise."""

    SILO = "silo"
    """One of the silos, of persons in the others: its own share, and its own draw."""

    SERVER = "server"
    """The server, which sees the opened sums and the messages: no share, and nobody's draw."""

    SERVER_AND_SILOS = "server-and-silos"
    """The server with as many silos as the event says may collude: their shares and draws."""


def against(event: Event, observer: Observer) -> Event:
    """The event as it counts against an observer, for :func:`epsilon`.

    A :class:`SiloSum` is noised by the shares that the observer does not know, and amplified by
    sampling against each of them, for persons of a silo that does not collude with it. Other
    events count as :func:`against_server` says against the server, and as they are against others.
    """
    observer = Observer(observer)
    if isinstance(event, Repeated) and isinstance(event.release, SiloSum):
        release = against(event.release, observer)
        return replace(event, release=release)  # type: ignore[arg-type]
    if not isinstance(event, SiloSum):
        sees = observer in (Observer.SERVER, Observer.SERVER_AND_SILOS)
        return against_server(event) if sees else event
    if observer is Observer.SERVER_AND_SILOS:
        return event
    return replace(event, colluders=1 if observer is Observer.SILO else 0)


def without_amplification(event: Event) -> Event:
    """The event as it counts against someone who learns who was drawn, for :func:`epsilon`.

    As if the client had been drawn for certain, in every round: ε then hides the client's data,
    not that it took part.
    """
    if isinstance(event, AdditiveDelta):
        return event
    if isinstance(event, GroupRelease):
        if isinstance(event.release, AdditiveDelta):
            return event
        return replace(event, release=replace(event.release, sampling=Full()))
    if isinstance(event, Repeated):
        return replace(event, release=replace(event.release, sampling=Full()))
    return replace(event, sampling=Full())


def joint_noise_multiplier(*noise_multipliers: float) -> float:
    """The multiplier of several Gaussian sums that are released from one and the same cohort.

    Sums with multipliers z₁, z₂, … over one cohort are, after scaling, one Gaussian sum of a
    longer vector, with z = (Σ zᵢ⁻²)^−½ (Andrew et al. 2021, section 2, solve it for the split).

    Parameters
    ----------
    *noise_multipliers : float
        At least one, each finite and at least 0.

    Returns
    -------
    float
        The multiplier to put in the single :class:`GaussianRelease`, rounded down.
    """
    if not noise_multipliers:
        raise ValueError("joint_noise_multiplier needs at least one noise multiplier")
    all_z = [GaussianRelease(z, Full()).noise_multiplier for z in noise_multipliers]
    smallest = min(all_z)
    if smallest == 0:
        return 0.0
    joint = smallest / math.sqrt(math.fsum((smallest / z) ** 2 for z in all_z))
    return joint if len(all_z) == 1 else joint * (1 - 2.0**-50)


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as plain JSON values, its ``"kind"`` first; see :func:`event_from_dict`."""
    return _plain(event)


def event_from_dict(document: Mapping[str, Any]) -> Event:
    """Read an event that :func:`event_to_dict` wrote.

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is missing, unknown or out of range.
    """
    event: Event = _read(document, "an event", Event)
    return event


def _plain(part: Any) -> dict[str, Any]:
    values = {}
    for field in fields(part):
        value = getattr(part, field.name)
        # Numbers of other libraries, and 1 for 1.0, become what JSON reads back.
        values[field.name] = _plain(value) if is_dataclass(value) else field.type(value)  # type: ignore[operator]
    return {"kind": part.kind, **values}


def _read(document: Any, name: str, kinds: Any) -> Any:
    if not isinstance(document, Mapping):
        raise TypeError(f"{name} is {shown(document)}; it must be an object")
    kind, known = document.get("kind"), {kind.kind: kind for kind in get_args(kinds)}
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"the kind of {name} is {shown(kind)}; known are {', '.join(known)}")
    names = {field.name for field in fields(known[kind])}
    if set(document) != {"kind", *names}:
        raise ValueError(f"{name} has {sorted(document)}; a {kind} has {sorted(names)} and kind")
    nested = {"sampling": Sampling, "release": Release | SiloSum | AdditiveDelta}
    return known[kind](
        **{
            name: _read(document[name], name, nested[name]) if name in nested else document[name]
            for name in names
        }
    )
