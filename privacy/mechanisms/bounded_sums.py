"""Noisy sums of bounded updates: bound each, add noise once, release once.

A *sum mechanism* opens a round, takes one update after another, and releases their noisy sum.
No client moves the sum by more than the clipping norm S, whatever it sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from privacy.accounting import Event, GaussianRelease, Sampling
from privacy.arguments import convert, whole
from privacy.mechanisms.blockwise_sums import ContinuousSum, LatticeSum
from privacy.mechanisms.clipping_geometry import ClippingGeometry
from privacy.mechanisms.randomness import Randomness

Vector = npt.NDArray[Any]

LARGEST_RADIUS = 1 << 20  # the clipping norm in lattice cells


class RoundSum(Protocol):
    """The sum of one round."""

    def add(self, arrays: Sequence[Vector], *, weight: float) -> bool:
        """Bound one client's arrays against the reference and add them.

        Returns
        -------
        bool
            Whether the update was clipped: for the server's own use, never to be released
            without noise.

        Raises
        ------
        UpdateError
            If they cannot be bounded (NaN or infinite values, other shapes, a weight outside
            (0, 1]); the sum is as it was before.
        RuntimeError
            If the sum was released.
        """

    def release(self) -> list[Vector]:
        """Add the noise and return the sum, once.

        Raises
        ------
        RuntimeError
            If it was released before.
        """


class SumMechanism(Protocol):
    """Opens noisy sums. A small surface, so that other mechanisms can stand behind it."""

    @property
    def name(self) -> str:
        """Its name in results."""

    def open(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> RoundSum:
        """Begin the sum of updates ``arrays - reference``.

        Parameters
        ----------
        reference : sequence of ndarray
            The model that was sent, floating-point arrays of any shape.
        geometry : ClippingGeometry
            How the updates are clipped.
        noise_multiplier : float
            z; the noise on the sum has standard deviation z * S. Zero: no noise, no privacy.
        randomness : Randomness
            Where the noise comes from.
        """

    def account(self, *, noise_multiplier: float, sampling: Sampling) -> Event:
        """The event of one release over a cohort, for the ledger."""


class GaussianAccount:
    """Of mechanisms whose release is a Gaussian one, or post-processing of one."""

    def account(
        self, *, noise_multiplier: float, sampling: Sampling, parameters: int | None = None
    ) -> Event:
        """A Gaussian release, whatever the number of parameters."""
        return GaussianRelease(noise_multiplier, sampling)


@dataclass(frozen=True)
class LatticeGaussian(GaussianAccount):
    """Gaussian sum that is safe in finite precision.

    Each weighted, clipped update is rounded *toward zero* onto a lattice of cell S / R,
    R = ``radius``, which never raises its norm. The norm itself is bounded from above with a
    proved margin for every rounding in its computation, so that no input, however made, lands
    outside the ball. It is bounded once more on the integers that are added; where that bound
    leaves a doubt, their norm decides, exactly.
    Integers are summed without error, and the noise is the exactly sampled rounded Gaussian.
    Since round(sum + N(0, s^2)) = sum + round(N(0, s^2)) for an integer sum, the release is
    post-processing of the continuous Gaussian mechanism (``docs/explanation/proofs/noise.md``).

    Parameters
    ----------
    radius : int
        R, in [1, 2^20]. Rounding costs up to one cell a coordinate, so take the default unless
        the integers themselves have to be small.

    Notes
    -----
    **Guarantee.** That of the Gaussian mechanism with noise multiplier z under add or remove
    one client, for the noise as it is sampled and not for an idealisation of it.

    **Assumptions.** The operating system's randomness is unpredictable. No overflow: at most
    2^40 clients a round.

    **Not covered.** Timing: the time a round takes depends on the number of replies, and on how
    many of them are clipped.
    """

    name: ClassVar[str] = "lattice-gaussian"
    radius: int = LARGEST_RADIUS

    def __post_init__(self) -> None:
        convert(self, "radius", whole, least=1, most=LARGEST_RADIUS)

    def open(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> RoundSum:
        """Begin a round's sum; see ``SumMechanism.open``."""
        return LatticeSum(reference, geometry, noise_multiplier, randomness, radius=self.radius)


@dataclass(frozen=True)
class ContinuousGaussian(GaussianAccount):
    """Gaussian sum in floating point.

    Notes
    -----
    **Guarantee.** That of the Gaussian mechanism with noise multiplier z under add or remove
    one client, for real-number arithmetic.

    **Assumptions.** As ``LatticeGaussian``; and that nobody attacks the floating-point
    representation.

    **Not covered.** Mironov (2012, "On significance of the least significant bits for
    differential privacy") shows that floating-point noise can give values away through its
    lowest bits. ``LatticeGaussian`` has no such gap.
    """

    name: ClassVar[str] = "continuous-gaussian"

    def open(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> RoundSum:
        """Begin a round's sum; see ``SumMechanism.open``."""
        return ContinuousSum(reference, geometry, noise_multiplier, randomness)
