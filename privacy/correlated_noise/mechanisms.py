"""Mechanisms of correlated noise: what a strategy is given, and the factor and noise of a run."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from privacy.accounting import CyclicGroups
from privacy.arguments import convert, number, whole
from privacy.correlated_noise.buffered import blt_factor
from privacy.correlated_noise.coefficients import banded_coefficients
from privacy.correlated_noise.factors import BandedFactor, BLTFactor, Factor
from privacy.mechanisms import (
    ClippingGeometry,
    LatticeGaussian,
    LatticeNoise,
    Randomness,
    RoundSum,
    SystemRandomness,
)
from privacy.mechanisms.blockwise_sums import LatticeSum
from privacy.mechanisms.bounded_sums import LARGEST_RADIUS, GaussianAccount

Vector = npt.NDArray[Any]


class CorrelatedMechanism(GaussianAccount, ABC):
    """Noise that later rounds take back in part, for clients in groups that take turns.

    A mechanism of this kind has a ``factor`` for a run, and says which turns it is accounted for.
    """

    name: ClassVar[str]
    radius: int

    @abstractmethod
    def factor(self, *, rounds: int, momentum: float, groups: int) -> Factor:
        """C for so many planned rounds, the server's momentum, and groups that take turns."""

    @abstractmethod
    def check_turns(self, turns: CyclicGroups) -> None:
        """Refuse turns for which it is not accounted, with a ``ValueError``."""

    @abstractmethod
    def fits(self, factor: Factor, groups: int) -> bool:
        """Whether C, as a file has it, is accounted for where so many groups take turns."""

    @property
    def correlates(self) -> bool:
        """Whether rounds take back anything; False: independent noise."""
        return True

    def sigma(self, factor: Factor, *, noise_multiplier: float, radius: int, size: int) -> float:
        """The deviation of a row's own noise, z times what a participation moves, rounded up.

        In cells, for a clipping norm of ``radius`` of them and rows of ``size`` integers.
        """
        reach = factor.reach(radius, size)
        largest = factor.largest_sigma / reach * (1 - 2.0**-40)
        give = (
            f"at most {largest:.6g} for these rounds, by a larger budget, fewer rounds or a "
            "smaller radius"
        )
        z = number("noise_multiplier", noise_multiplier, least=0, most=largest, give=give)
        return float(np.nextafter(z * reach * (1 + 2.0**-50), np.inf)) if z else 0.0

    def open(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> RoundSum:
        """Begin a sum with independent noise, as that of metrics."""
        return LatticeGaussian(self.radius).open(
            reference, geometry, noise_multiplier=noise_multiplier, randomness=randomness
        )

    def open_row(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        noise: LatticeNoise,
    ) -> RoundSum:
        """Begin the sum of a round, to which its row is added."""
        total = LatticeSum(
            reference, geometry, noise_multiplier, SystemRandomness(), radius=self.radius
        )
        total.use_noise(noise)
        return total


@dataclass(frozen=True)
class BandedMF(CorrelatedMechanism):
    """Banded matrix factorisation: noise that later rounds take back in part.

    No cohort has to stay secret. Each client belongs to one of b or more groups that take turns,
    so that it takes part every b-th round at most; noise is correlated over b rounds, and of it
    less stays in the models (Choquette-Choo et al. 2023, arXiv 2306.08153). Coefficients are
    optimised for the planned rounds and the server's momentum when a run starts.

    Parameters
    ----------
    bands : int
        b, in [1, 4096]: over how many rounds noise is correlated, at most the number of groups.
        As many as groups is best, and takes the memory of b - 1 models. 1: independent noise.
    radius : int
        R, the clipping norm in cells of the lattice; see :class:`LatticeGaussian`.

    Notes
    -----
    **Guarantee.** Each time that a client takes part costs one Gaussian release with noise
    multiplier z, whoever knows when that was. For integers as they are drawn and rounded, and not
    for an idealisation of them (``docs/explanation/proofs/correlated-noise.md``, "Correlated noise
    on integers").

    **Assumptions.** Those of :class:`CorrelatedNoise`, whose rows are a run's rounds.

    **Not covered.** A single round's model is noisier than with independent noise; whoever needs
    every round's own sum (adaptive optimizers and clipping) loses by it.
    """

    name: ClassVar[str] = "banded-mf"
    bands: int
    radius: int = LARGEST_RADIUS

    def __post_init__(self) -> None:
        convert(self, "bands", whole, least=1, most=4096)
        convert(self, "radius", whole, least=1, most=LARGEST_RADIUS)

    def factor(self, *, rounds: int, momentum: float, groups: int) -> BandedFactor:
        """C for so many planned rounds and the server's momentum, whatever the groups."""
        coefficients = banded_coefficients(self.bands, rounds=rounds, momentum=momentum)
        return BandedFactor.nearest(coefficients)

    def check_turns(self, turns: CyclicGroups) -> None:
        """Refuse more bands than groups."""
        if self.bands > turns.groups:
            raise ValueError(
                f"mechanism has {self.bands} bands and sampling {turns.groups} groups; a "
                "client would take part again while its last noise is still taken back: give at "
                "most as many bands as groups (more would gain next to nothing), or BLT()"
            )

    def fits(self, factor: Factor, groups: int) -> bool:
        """Whether C is banded, and a client's columns end before its next."""
        return isinstance(factor, BandedFactor) and factor.bands <= min(self.bands, groups)

    @property
    def correlates(self) -> bool:
        """Whether there are more bands than one."""
        return self.bands > 1


@dataclass(frozen=True)
class BLT(CorrelatedMechanism):
    """Buffered linear Toeplitz noise: as :class:`BandedMF`, in the memory of a few buffers.

    Each round takes back a part of all noise before it, which a few decaying sums remember
    (Dvijotham et al. 2024, arXiv 2404.16706; McMahan et al. 2024, arXiv 2408.08868, for clients
    that take part again and again). They are optimised for the planned rounds, the groups and the
    server's momentum when a run starts.

    Parameters
    ----------
    buffers : int
        How many decaying sums at most, in [1, 8], of 8 bytes a parameter each. A run uses as few as
        come within a thousandth of the noise of all: one or two, mostly.
    radius : int
        R, the clipping norm in cells of the lattice; see :class:`LatticeGaussian`.

    Notes
    -----
    **Guarantee, Assumptions, Not covered.** Those of :class:`BandedMF`. A client's columns
    overlap, and buffers are rounded: both are paid for in the noise
    (``docs/explanation/proofs/correlated-noise.md``, "Buffers"). All groups of a turn are asked
    whole: a cohort that is drawn within its group is refused.
    """

    name: ClassVar[str] = "blt"
    buffers: int = 4
    radius: int = LARGEST_RADIUS

    def __post_init__(self) -> None:
        convert(self, "buffers", whole, least=1, most=8)
        convert(self, "radius", whole, least=1, most=LARGEST_RADIUS)

    def factor(self, *, rounds: int, momentum: float, groups: int) -> BLTFactor:
        """C for so many planned rounds, and one turn of all groups more."""
        return blt_factor(self.buffers, rounds=rounds, momentum=momentum, separation=groups)

    def check_turns(self, turns: CyclicGroups) -> None:
        """Refuse cohorts drawn within a group."""
        if turns.rate < 1:
            raise ValueError(
                f"mechanism is {self} and sampling {turns}; what one participation shows goes on "
                "into the next, so that drawing clients within a group is not accounted for: give "
                f"sampling=CyclicGroups({turns.groups}), or mechanism=BandedMF({turns.groups})"
            )

    def fits(self, factor: Factor, groups: int) -> bool:
        """Whether C is a BLT, sized for clients that come as often as every so many rows."""
        return isinstance(factor, BLTFactor) and factor.separation <= groups
