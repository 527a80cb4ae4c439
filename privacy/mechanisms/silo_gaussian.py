"""Noise for sums over the persons of silos: a share from each silo, none from the server."""

from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from privacy.accounting import FixedSize, Full, Poisson, Sampling, SiloSum
from privacy.arguments import convert, number, whole
from privacy.mechanisms.bounded_sums import LARGEST_RADIUS
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian
from privacy.mechanisms.distributed_gaussian import OVERFLOW_BITS, share_variance, tail_of_shares
from privacy.mechanisms.person_sums import Integers, PersonSum, summed_sensitivity
from privacy.mechanisms.randomness import Randomness


@dataclass(frozen=True)
class SiloGaussian:
    """Sums over the persons of several silos, to which each silo adds a share of the noise.

    A step: each silo draws its own persons, bounds the vector of each, sums them
    (``PersonSum``), adds its share of discrete Gaussian noise, and masks the integers; the
    server opens the sum of ``min_silos`` silos or more. A share is sized for the fewest *honest*
    silos of a sum that is opened, ``min_silos - colluders``, and fixed before the run: the noise
    of a step only grows with the silos that take part.

    Parameters
    ----------
    min_silos : int
        The fewest silos whose sum is opened, as in ``RoundTerms``.
    colluders : int
        How many silos may pool their shares of the noise, with the server or without it; at
        least 1, for every silo knows its own share and sees the model.
    radius : int
        R, the clipping norm S of one person in lattice cells, in [1, 2^20].

    Notes
    -----
    **Guarantee.** ε of the event that ``account`` gives, for adding or removing one person of a
    silo that does not collude, against the server together with the colluders, amplified by
    Poisson sampling; so too against each of them alone and everybody outside, with more noise
    (``privacy.accounting.Observer``; ``docs/explanation/proofs/distributed-noise.md``, "Sums over
    the persons of silos").

    **Assumptions.** All but ``colluders`` of the silos follow the protocol and keep draws and
    shares secret; the operating system's randomness is unpredictable; sums of fewer than
    ``min_silos`` silos are not opened; a silo does not leave a step because of whom it drew or
    what it holds. Sums are opened for the ``persons`` by which the ring's ``bound`` is worked out:
    others may wrap around it.

    **Not covered.** A person in two silos counts as two. The time that a silo takes for a step
    depends on how many persons it drew. A person's own silo, which holds the data.
    """

    name: ClassVar[str] = "silo-discrete-gaussian"
    min_silos: int
    colluders: int = 1
    radius: int = 1 << 16

    def __post_init__(self) -> None:
        give = "at least 1: each silo knows its own share of the noise and sees the model"
        convert(self, "colluders", whole, least=1, give=give)
        convert(self, "min_silos", whole)
        convert(self, "radius", whole, least=1, most=LARGEST_RADIUS)
        if not self.colluders < self.min_silos:
            raise ValueError(
                f"min_silos is {self.min_silos}; it must lie above colluders ({self.colluders}), "
                "or nobody's share of the noise would be secret"
            )

    @property
    def honest(self) -> int:
        """How many shares the server and the colluders cannot know: the noise is sized for them."""
        return self.min_silos - self.colluders

    def share_variance(self, noise_multiplier: float) -> float:
        """σ² of one silo's share, in cells²: ``honest`` of them make (z·R)², rounded up."""
        return share_variance(noise_multiplier, radius=self.radius, honest=self.honest)

    def sensitivity(self, parameters: int) -> int:
        """How far one person moves the sum, in cells: R + √d, rounded up."""
        return summed_sensitivity(whole("parameters", parameters, least=1), self.radius)

    def account(self, *, parameters: int, noise_multiplier: float, sampling: Sampling) -> SiloSum:
        """The event of one sum, for the ledger of each silo and of the server.

        Parameters
        ----------
        parameters : int
            d, how many numbers the sum has.
        noise_multiplier : float
            z: of the fewest honest silos' noise, relative to S.
        sampling : Poisson or Full
            How each silo draws its persons.

        Raises
        ------
        ValueError
            If the sampling is of fixed size, or there is too little noise for the lattice.
        """
        if isinstance(sampling, FixedSize):
            raise ValueError(
                "sampling is of fixed size, for which silos' sums are not accounted; use Poisson"
            )
        return SiloSum(
            variance=self.share_variance(noise_multiplier),
            sensitivity=self.sensitivity(parameters),
            dimension=parameters,
            silos=self.min_silos,
            colluders=self.colluders,
            sampling=sampling,
        )

    def bound(
        self, *, parameters: int, noise_multiplier: float, persons: int, sampling: Poisson | Full
    ) -> int:
        """B for ``RoundTerms``: n ≥ ``min_silos`` silos' noisy sum stays within ±nB.

        With probability 1 - 2^-100, whatever the silos hold, if each opens its sum (``open_sum``)
        for as many ``persons``.

        Parameters
        ----------
        parameters, noise_multiplier, sampling
            As for ``account``.
        persons : int
            N, a public number over all silos.
        """
        largest = self.largest_entry(persons=persons, sampling=sampling)
        noise = tail_of_shares(
            self.share_variance(noise_multiplier), parameters, clients=self.min_silos
        )
        return largest + ceil(noise)

    def largest_entry(self, *, persons: int, sampling: Poisson | Full) -> int:
        """C in cells: entries of one silo's sum, without noise, are cut to ±C.

        No sum is cut, but with probability 2^-102, where all silos together hold at most
        ``persons``: even one that holds them all draws fewer than C / R. Beyond that a sum wraps
        around no ring; it is cut, which moves it no further when a person comes or goes.
        """
        persons = whole("persons", persons, least=1)
        logarithm = (OVERFLOW_BITS + 2) * log(2)
        drawn = float(persons)
        if isinstance(sampling, Poisson):  # Bernstein's inequality
            mean = persons * sampling.rate
            beyond = logarithm / 3 + sqrt(logarithm**2 / 9 + 2 * logarithm * mean)
            drawn = min(drawn, mean + beyond)
        return ceil(drawn) * self.radius

    def open_sum(
        self,
        parameters: int,
        *,
        clipping_norm: float,
        persons: int,
        sampling: Poisson | Full | None = None,
    ) -> PersonSum:
        """An empty sum of one silo's persons, each of them clipped to ``clipping_norm``.

        Parameters
        ----------
        parameters : int
        clipping_norm : float
        persons : int
        sampling : optional
            As for ``bound``: entries of the sum are cut to ``largest_entry``.
        """
        limit = self.largest_entry(persons=persons, sampling=sampling or Full())
        return PersonSum(parameters, clipping_norm=clipping_norm, radius=self.radius, limit=limit)

    def add_share(
        self, integers: Integers, *, noise_multiplier: float, randomness: Randomness
    ) -> None:
        """Add one silo's share of the noise to its sum, in place, before it is masked."""
        variance = self.share_variance(noise_multiplier)
        add_discrete_gaussian(integers, variance=variance, randomness=randomness)

    def decode(self, opened: Integers, *, clipping_norm: float) -> npt.NDArray[np.float64]:
        """The opened sum in the units of the clipping norm, shape (d,); its noise is in it.

        Divide by the public expected number of persons, p·N: how many were drawn is secret.
        """
        norm = number("clipping_norm", clipping_norm, above=0)
        if opened.dtype != np.int64 or opened.ndim != 1:
            raise ValueError(
                f"the opened sum must be one row of int64, got {opened.dtype} of shape "
                f"{opened.shape}"
            )
        return opened.astype(np.float64) * (norm / self.radius)
