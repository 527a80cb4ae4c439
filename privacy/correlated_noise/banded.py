"""The banded mechanism: what a strategy is given, and the factor and noise of one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from privacy.arguments import convert, number, whole
from privacy.correlated_noise.coefficients import banded_coefficients
from privacy.correlated_noise.rows import LARGEST_SIGMA, Factor
from privacy.mechanisms import (
    ClippingGeometry,
    LatticeGaussian,
    LatticeNoise,
    Randomness,
    RoundSum,
    SystemRandomness,
)
from privacy.mechanisms.bounded_sums import LARGEST_RADIUS, GaussianAccount, LatticeSum

Vector = npt.NDArray[Any]


@dataclass(frozen=True)
class BandedMF(GaussianAccount):
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

    def factor(self, *, rounds: int, momentum: float) -> Factor:
        """C for so many planned rounds and the server's momentum."""
        return Factor.nearest(banded_coefficients(self.bands, rounds=rounds, momentum=momentum))

    def sigma(self, factor: Factor, *, noise_multiplier: float, radius: int) -> float:
        """The deviation of a row's own noise, z·R·‖c‖ cells, rounded up."""
        largest = LARGEST_SIGMA / (radius * factor.norm) * (1 - 2.0**-40)
        give = f"at most {largest:.6g} with these bands, by a larger budget or fewer rounds"
        z = number("noise_multiplier", noise_multiplier, least=0, most=largest, give=give)
        return float(np.nextafter(z * radius * factor.norm * (1 + 2.0**-50), np.inf)) if z else 0.0

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
