"""Distributed noise: each client adds a share, so that the server sees only a private sum."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, inf, log, nextafter, sqrt
from typing import ClassVar

from privacy import arguments
from privacy.accounting import DiscreteGaussianSum, Event, FixedSize, Sampling
from privacy.arguments import convert, number, whole
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian
from privacy.mechanisms.masked_sums import Integers, MaskedMechanism
from privacy.mechanisms.randomness import Randomness

OVERFLOW_BITS = 100


def share_variance(noise_multiplier: float, *, radius: int, honest: int) -> float:
    """σ² of one share, in cells², ``honest`` of which make (z·R)², rounded up."""
    z = Fraction(number("noise_multiplier", noise_multiplier, least=0))
    exact = (z * radius) ** 2 / honest
    return nextafter(float(exact), inf) if exact else 0.0


def tail_of_shares(variance: float, parameters: int, *, clients: int) -> float:
    """A bound of n ≥ ``clients`` shares' sum, divided by n, that fails with less than 2^-100.

    A discrete Gaussian is subgaussian with its own σ², so n of them pass ±a with probability
    at most 2·exp(−a²/2nσ²) a coordinate (``docs/explanation/proofs/bounded-sums.md``, "The ring of
    a noisy sum").
    """
    bits = OVERFLOW_BITS + 1
    square = 2 * variance * (bits * log(2) + log(parameters))
    return sqrt(square / clients) * (1 + 2.0**-40)


@arguments.renamed(minimum="min_clients", largest="max_clients")
@dataclass(frozen=True)
class DistributedGaussian(MaskedMechanism):
    """Masked sums to which each client adds a share of discrete Gaussian noise.

    The distributed discrete Gaussian (Kairouz, Liu and Steinke 2021, arXiv 2102.06387), with
    rounding toward zero in place of their rotation and randomised rounding. A share is sized for
    the fewest *honest* survivors of a sum that is opened, ``min_clients - colluders``, so that z
    and ε are fixed before the round: however many more survive, the noise only grows.

    Parameters
    ----------
    radius : int
        R, the clipping norm S in lattice cells, in [1, 2^20]; see ``lattice_radius``.
    min_clients : int
        The fewest survivors whose sum is opened, as in ``RoundTerms``.
    colluders : int
        How many clients may pool their knowledge, with the server or without it; at least 1,
        for every client knows its own share and sees the model.
    max_clients : int
        The largest cohort; a round in which more are drawn must be given up. The server brings
        the shares of every sum up to that many before anyone sees it: else the amount of noise
        would tell who was drawn, and sampling would amplify nothing.

    Notes
    -----
    **Guarantee.** Two. Against those who see the models and know the shares of the colluders: with
    ``max_clients - colluders`` shares, amplified by Poisson sampling. Against the server together
    with the colluders: with ``min_clients - colluders`` shares, noise multiplier z, no
    amplification, and zero-out adjacency, as the server knows who takes part. Both are in the
    one event that ``account`` gives (``docs/explanation/proofs/distributed-noise.md``, "Sums of
    discrete Gaussians").

    **Assumptions.** All but ``colluders`` of the survivors follow ``encode`` and keep their
    shares secret; the operating system's randomness is unpredictable; sums of fewer than
    ``min_clients`` are not opened. Against those who see the model: the server follows ``decode``
    and keeps the cohort and its own noise secret.

    **Not covered.** The first figure does not hold against clients of a round for that round: they
    see how large the cohort is, and under the protocol that withstands a malicious server who is
    in it. Against them, and the server apart, it is that of as many shares without amplification.
    A client that leaves because of its data shows that to the server. Overflow of the ring,
    with probability at most 2^-100 a round, spoils the sum; its cost to the first figure is
    charged, and the second has none. Clients that do not follow ``encode``, as in
    ``MaskedGaussian``.
    """

    name: ClassVar[str] = "distributed-discrete-gaussian"
    min_clients: int
    colluders: int
    max_clients: int

    def __post_init__(self) -> None:
        super().__post_init__()
        give = "at least 1: each client knows its own share of the noise and sees the model"
        convert(self, "colluders", whole, least=1, give=give)
        for name in ("min_clients", "max_clients"):
            convert(self, name, whole)
        if not self.colluders < self.min_clients <= self.max_clients:
            raise ValueError(
                f"min_clients is {self.min_clients}; it must lie above colluders "
                f"({self.colluders}) and not above max_clients ({self.max_clients})"
            )

    @property
    def honest(self) -> int:
        """How many shares the server cannot know: the noise is sized for them."""
        return self.min_clients - self.colluders

    def share_variance(self, noise_multiplier: float) -> float:
        """σ² of one client's share, in cells²: ``honest`` of them make (z·R)², rounded up."""
        return share_variance(noise_multiplier, radius=self.radius, honest=self.honest)

    def bound(self, *, parameters: int, noise_multiplier: float) -> int:
        """The radius and a share of the noise's tail; see ``MaskedMechanism.bound``."""
        variance = self.share_variance(noise_multiplier)
        return self.radius + ceil(tail_of_shares(variance, parameters, clients=self.min_clients))

    def _add_share(
        self, integers: Integers, noise_multiplier: float, randomness: Randomness
    ) -> None:
        variance = self.share_variance(noise_multiplier)
        add_discrete_gaussian(integers, variance=variance, randomness=randomness)

    def _complete(
        self, opened: Integers, survivors: int, noise_multiplier: float, randomness: Randomness
    ) -> float:
        if not self.min_clients <= survivors <= self.max_clients:
            raise ValueError(
                f"survivors is {survivors}; a released sum is that of {self.min_clients} to "
                f"{self.max_clients} clients"
            )
        # Exactly as much as is missing, in rationals: who was drawn must not show in it.
        missing = (self.max_clients - survivors) * Fraction(self.share_variance(noise_multiplier))
        add_discrete_gaussian(opened, variance=missing, randomness=randomness)
        return 0.0

    def account(self, *, parameters: int, noise_multiplier: float, sampling: Sampling) -> Event:
        """A sum of discrete Gaussians; see ``MaskedMechanism.account``.

        Raises
        ------
        ValueError
            If the cohort has a fixed size, or there is too little noise for the lattice.
        """
        if isinstance(sampling, FixedSize):
            raise ValueError(
                "sampling is of fixed size, for which distributed noise is not accounted; use "
                "Poisson"
            )
        return DiscreteGaussianSum(
            variance=self.share_variance(noise_multiplier),
            sensitivity=self.radius,
            dimension=parameters,
            shares=self.max_clients - self.colluders,
            honest=self.honest,
            sampling=sampling,
        )
