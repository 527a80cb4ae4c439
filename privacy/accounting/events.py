"""What a run pays for: releases of clients' data, as small frozen values.

An event says what was done, never what it cost; :mod:`privacy.accounting.composition` turns
events into ε. Every event can be written as JSON and read back without loss.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar

from privacy.arguments import number, of_kind, whole

# Squares and inverse squares of what is between them, summed over many events, fit a double.
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

    Raises
    ------
    ValueError
        If ``rate`` is not in (0, 1], or too small for doubles to account.
    """

    kind: ClassVar[str] = "poisson"
    rate: float

    def __post_init__(self) -> None:
        give = "the expected cohort divided by the population, in [1e-100, 1]"
        number("rate", self.rate, least=_SMALLEST, most=1, give=give)


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

    Raises
    ------
    ValueError
        If they are not whole numbers with 1 ≤ m ≤ N.
    """

    kind: ClassVar[str] = "fixed-size"
    cohort: int
    population: int

    def __post_init__(self) -> None:
        whole("cohort", self.cohort, least=1, most=LARGEST_COUNT)
        whole("population", self.population, least=1, most=LARGEST_COUNT)
        if self.cohort > self.population:
            raise ValueError(
                f"cohort is {self.cohort} and population {self.population}; "
                "a cohort without replacement cannot be larger than its population"
            )


Sampling = Poisson | Full | FixedSize


@dataclass(frozen=True)
class GaussianRelease:
    """A sum over a cohort, released with Gaussian noise.

    Parameters
    ----------
    noise_multiplier : float
        z: the noise's standard deviation is z·S where one client contributes a vector of norm
        at most S to the sum. The same number whatever the adjacency: under replace-one the
        accountant itself is given z/2. Zero is allowed and costs ε = ∞; what is not zero lies
        in [10⁻¹⁰⁰, 10¹⁰⁰].
    sampling : Poisson, Full or FixedSize
        How the cohort was drawn. ``Full()`` also describes a noised metric that is asked of
        everyone, or any release that claims no amplification.

    Raises
    ------
    TypeError
        If ``sampling`` is none of the three, or ``noise_multiplier`` not a number.
    ValueError
        If ``noise_multiplier`` is negative or not finite, or so small or large that doubles
        cannot account for it.

    Notes
    -----
    Several sums released from *one* cohort are one event, whose multiplier is given by
    :func:`joint_noise_multiplier`; they are not several sampled events.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float
    sampling: Sampling

    def __post_init__(self) -> None:
        z = number("noise_multiplier", self.noise_multiplier, least=0)
        if z:
            give = "0, for no noise, or a number in [1e-100, 1e100]: useful ones are 0.1 to 100"
            number("noise_multiplier", z, least=_SMALLEST, most=_LARGEST, give=give)
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

    Raises
    ------
    ValueError
        If ``delta`` is not in [0, 1].
    """

    kind: ClassVar[str] = "additive-delta"
    delta: float

    def __post_init__(self) -> None:
        number("delta", self.delta, least=0, most=1)


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
        How many independent shares are in what is released *and* unknown to whoever sees it.
        The same whoever takes part: the server completes the shares of a small cohort. If they
        are more than ``honest`` it is assumed to do so, to a sum that has overflowed its ring
        with probability at most 2⁻¹⁰⁰, for which 2⁻⁶⁰ of δ is charged.
    honest : int
        How many shares the server itself does not know, with all its colluding clients: the
        fewest survivors of a sum that is opened, less those clients. Only
        :func:`against_server` looks at it.
    sampling : Poisson or Full
        How the cohort was drawn.

    Raises
    ------
    TypeError
        If ``sampling`` is another one, or a number is none.
    ValueError
        If a number is out of range.
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
        number("variance", self.variance, least=0.25, give=give)
        for name in _WHOLE:
            whole(name, getattr(self, name), least=1, most=LARGEST_COUNT)
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
class Repeated:
    """Equal releases, one after the other: the steps of a training.

    Parameters
    ----------
    release : GaussianRelease
        One of them, each from a cohort of its own.
    times : int
        How many, at least 1.

    Raises
    ------
    TypeError
        If ``release`` is another event.
    ValueError
        If ``times`` is not a whole number of at least 1, or more than doubles can account for.
    """

    kind: ClassVar[str] = "repeated"
    release: GaussianRelease
    times: int

    def __post_init__(self) -> None:
        of_kind("release", self.release, GaussianRelease, "a GaussianRelease")
        whole("times", self.times, least=1, most=LARGEST_COUNT)


Release = GaussianRelease | DiscreteGaussianSum
Event = Release | AdditiveDelta | Repeated


def against_server(event: Event) -> Event:
    """What an event costs against the server that ran the round, as an event.

    The server drew the cohort and saw the opened sum: there is no amplification by sampling, and
    only noise that honest clients added counts. A sum that it noised itself it saw without.
    The neighbouring relation is ``ZERO_OUT_ONE``: who took part is no secret to it.

    Parameters
    ----------
    event : GaussianRelease, DiscreteGaussianSum, AdditiveDelta or Repeated

    Returns
    -------
    GaussianRelease, DiscreteGaussianSum or AdditiveDelta
        To be given to :func:`privacy.accounting.epsilon`.
    """
    if isinstance(event, GaussianRelease | Repeated):
        return GaussianRelease(0.0, Full())
    if isinstance(event, DiscreteGaussianSum):
        return replace(event, shares=event.honest, sampling=Full())
    return event


def without_amplification(event: Event) -> Event:
    """What an event costs against someone who learns who was drawn, as an event.

    Parameters
    ----------
    event : GaussianRelease, DiscreteGaussianSum, Repeated or AdditiveDelta

    Returns
    -------
    GaussianRelease, DiscreteGaussianSum, Repeated or AdditiveDelta
        As if the client had been drawn for certain, in every round. To be given to
        :func:`privacy.accounting.epsilon`; it hides what the client holds, not that it took part.
    """
    if isinstance(event, AdditiveDelta):
        return event
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

    Raises
    ------
    ValueError
        If there is none, or one is negative or not finite.
    """
    if not noise_multipliers:
        raise ValueError("joint_noise_multiplier needs at least one noise multiplier")
    for z in noise_multipliers:
        GaussianRelease(z, Full())
    if min(noise_multipliers) == 0:
        return 0.0
    smallest = min(noise_multipliers)
    joint = smallest / math.sqrt(math.fsum((smallest / z) ** 2 for z in noise_multipliers))
    if len(noise_multipliers) == 1:
        return joint
    return joint * (1 - 2.0**-50)


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as plain JSON values.

    Parameters
    ----------
    event : GaussianRelease, DiscreteGaussianSum, AdditiveDelta or Repeated

    Returns
    -------
    dict
        With ``"kind"`` first; :func:`event_from_dict` is its inverse.
    """
    if isinstance(event, AdditiveDelta):
        return {"kind": event.kind, "delta": float(event.delta)}
    if isinstance(event, Repeated):
        release = event_to_dict(event.release)
        return {"kind": event.kind, "times": int(event.times), "release": release}
    sampling: dict[str, Any] = {"kind": event.sampling.kind}
    if isinstance(event.sampling, Poisson):
        sampling["rate"] = float(event.sampling.rate)
    elif isinstance(event.sampling, FixedSize):
        sampling["cohort"] = int(event.sampling.cohort)
        sampling["population"] = int(event.sampling.population)
    if isinstance(event, DiscreteGaussianSum):
        sizes = {name: int(getattr(event, name)) for name in _WHOLE}
        return {
            "kind": event.kind,
            "variance": float(event.variance),
            **sizes,
            "sampling": sampling,
        }
    return {
        "kind": event.kind,
        "noise_multiplier": float(event.noise_multiplier),
        "sampling": sampling,
    }


def event_from_dict(fields: Mapping[str, Any]) -> Event:
    """Read an event that :func:`event_to_dict` wrote.

    Parameters
    ----------
    fields : mapping

    Returns
    -------
    GaussianRelease, DiscreteGaussianSum, AdditiveDelta or Repeated

    Raises
    ------
    TypeError
        If a field has the wrong type.
    ValueError
        If a field is missing, unknown or out of range.
    """
    if not isinstance(fields, Mapping):
        raise TypeError(f"an event must be an object, not {fields!r}")
    kind = fields.get("kind")
    if kind == AdditiveDelta.kind:
        _exactly(fields, {"kind", "delta"})
        return AdditiveDelta(fields["delta"])
    if kind == GaussianRelease.kind:
        _exactly(fields, {"kind", "noise_multiplier", "sampling"})
        return GaussianRelease(fields["noise_multiplier"], _sampling(fields["sampling"]))
    if kind == DiscreteGaussianSum.kind:
        _exactly(fields, {"kind", "variance", *_WHOLE, "sampling"})
        sampling = _sampling(fields["sampling"])
        if isinstance(sampling, FixedSize):
            raise ValueError("a discrete Gaussian sum over a cohort of fixed size is unknown")
        sizes = {name: fields[name] for name in _WHOLE}
        return DiscreteGaussianSum(variance=fields["variance"], sampling=sampling, **sizes)
    if kind == Repeated.kind:
        _exactly(fields, {"kind", "times", "release"})
        release = event_from_dict(fields["release"])
        if not isinstance(release, GaussianRelease):
            raise ValueError("only a Gaussian release is repeated")
        return Repeated(release, fields["times"])
    raise ValueError(
        f"the kind of an event is {kind!r}; known are 'gaussian', 'discrete-gaussian-sum', "
        "'additive-delta' and 'repeated'"
    )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    if not isinstance(fields, Mapping):
        raise TypeError(f"the sampling of an event must be an object, not {fields!r}")
    kind = fields.get("kind")
    if kind == Poisson.kind:
        _exactly(fields, {"kind", "rate"})
        return Poisson(fields["rate"])
    if kind == Full.kind:
        _exactly(fields, {"kind"})
        return Full()
    if kind == FixedSize.kind:
        _exactly(fields, {"kind", "cohort", "population"})
        return FixedSize(fields["cohort"], fields["population"])
    raise ValueError(f"the kind of sampling is {kind!r}; known are poisson, full, fixed-size")


def _exactly(fields: Mapping[str, Any], names: set[str]) -> None:
    if set(fields) != names:
        raise ValueError(f"the fields are {sorted(fields)}; they must be {sorted(names)}")
