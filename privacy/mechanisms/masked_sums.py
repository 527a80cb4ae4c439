"""Updates as integers that secure aggregation can add, and their opened sum as a model again.

Under secure aggregation the server cannot bound an update, for it cannot see one. So the halves of
``LatticeGaussian`` part: the client clips, weights and rounds its update, and masks the integers;
the server opens their sum, adds the noise, and turns it back into arrays.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event, Sampling
from privacy.arguments import convert, whole
from privacy.mechanisms.blockwise_sums import LatticeNoise, LatticeSum
from privacy.mechanisms.bounded_sums import LARGEST_RADIUS, GaussianAccount
from privacy.mechanisms.clipping_geometry import ClippingGeometry
from privacy.mechanisms.errors import UpdateError
from privacy.mechanisms.randomness import Randomness, SystemRandomness

Vector = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

_CELLS_PER_ROOT = 64
_ROW = 1 << 20


def lattice_radius(parameters: int) -> int:
    """The clipping norm in lattice cells that suits a model under secure aggregation.

    Rounding toward zero takes half a cell off a coordinate on average, together √d/2 cells of
    the R that a clipped update is long. The smallest power of two R ≥ 64·√d keeps that below
    1/128, at 24 bits a parameter for 100 clients and a million parameters; each bit less would
    double it (``docs/explanation/secure-sums.md``, "Arithmetic").

    Parameters
    ----------
    parameters : int
        d, how many numbers an update has, at least 1.

    Returns
    -------
    int
        R, at most 2^20.
    """
    parameters = whole("parameters", parameters, least=1)
    # 2^e >= 64 sqrt(d), that is 4^e >= 4096 d
    exponent = ((_CELLS_PER_ROOT**2 * parameters - 1).bit_length() + 1) // 2
    return min(1 << exponent, LARGEST_RADIUS)


@dataclass(frozen=True)
class MaskedMechanism(ABC):
    """A mechanism for secure aggregation: a half for the client, one for the server.

    Both halves must be given the same reference, geometry and noise multiplier.

    Parameters
    ----------
    radius : int
        R, the clipping norm S in lattice cells, in [1, 2^20]; see ``lattice_radius``.
    """

    name: ClassVar[str]
    """Its name in results."""
    radius: int

    def __post_init__(self) -> None:
        convert(self, "radius", whole, least=1, most=LARGEST_RADIUS)

    @abstractmethod
    def bound(self, *, parameters: int, noise_multiplier: float) -> int:
        """``bound`` of ``RoundTerms``, by which the ring is sized.

        n clients' sums stay below n times this bound: always without noise, except with
        probability 2^-100 with it.

        Parameters
        ----------
        parameters : int
            How many numbers an update has.
        noise_multiplier : float
            z.
        """

    @abstractmethod
    def account(self, *, parameters: int, noise_multiplier: float, sampling: Sampling) -> Event:
        """The event of one release, for the ledger.

        Parameters
        ----------
        parameters : int
            How many numbers an update has.
        noise_multiplier : float
            z.
        sampling : Sampling
            How the cohort was drawn.
        """

    def encode(
        self,
        arrays: Sequence[Vector],
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        weight: float,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> Integers:
        """The client's half: bound its update ``arrays - reference``, as integers to mask.

        Parameters
        ----------
        arrays : sequence of ndarray
            The trained model; floating-point.
        reference : sequence of ndarray
            The model that was sent, of the same shapes.
        geometry : ClippingGeometry
            How updates are clipped.
        weight : float
            w_k in (0, 1]. It never leaves the client.
        noise_multiplier : float
            z.
        randomness : Randomness
            Where the client's share of the noise comes from, if it has one.

        Returns
        -------
        ndarray of int64, shape (d,)
            In the order in which ``decode`` expects the sum.

        Raises
        ------
        UpdateError
            If the update cannot be bounded: NaN or infinite values, other shapes, a weight
            outside (0, 1].
        """
        integers = _bounded(arrays, reference, geometry, weight=weight, radius=self.radius)
        self._add_share(integers, noise_multiplier, randomness)
        return integers

    def decode(
        self,
        opened: Integers,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        survivors: int,
        noise_multiplier: float,
        randomness: Randomness,
        noise: LatticeNoise | None = None,
    ) -> list[Vector]:
        """The server's half: the opened sum, with its noise, in the model's units.

        Parameters
        ----------
        opened : ndarray of int64, shape (d,)
            The sum of the clients' ``encode``. It is overwritten.
        reference, geometry
            As in ``encode``.
        survivors : int
            How many clients the sum is of.
        noise_multiplier : float
            z; the noise on the sum has standard deviation z * S at least.
        randomness : Randomness
            Where the server's noise comes from.
        noise : LatticeNoise, optional
            To add in place of independent noise of the server's own.

        Returns
        -------
        list of ndarray
            The noisy sum of weighted, clipped updates, shaped as the reference.

        Raises
        ------
        ValueError
            If ``opened`` has another type or shape, or a sum of so many is not released.
        """
        central = self._complete(opened, survivors, noise_multiplier, randomness)
        total = LatticeSum(reference, geometry, central, randomness, radius=self.radius)
        total.import_integers(opened)
        if noise is not None:
            total.use_noise(noise)
        return total.release()

    @abstractmethod
    def _add_share(
        self, integers: Integers, noise_multiplier: float, randomness: Randomness
    ) -> None:
        """Add the client's share of the noise in place."""

    @abstractmethod
    def _complete(
        self, opened: Integers, survivors: int, noise_multiplier: float, randomness: Randomness
    ) -> float:
        """Add missing shares in place; returns the noise multiplier of the server's own noise."""


@dataclass(frozen=True)
class MaskedGaussian(GaussianAccount, MaskedMechanism):
    """``LatticeGaussian`` of which the server sees the sum only: central noise on masked sums.

    Parameters
    ----------
    radius : int
        R, the clipping norm S in lattice cells, in [1, 2^20]; see ``lattice_radius``.

    Notes
    -----
    **Guarantee.** That of ``LatticeGaussian(radius)``, the same computation cut in two: without
    noise both give the same sum, exactly. A client that follows ``encode`` moves the sum by at
    most S.

    **Assumptions.** As ``LatticeGaussian``. The server adds the noise before anyone sees the
    sum: it is itself trusted with the sum, though with no client's update. The sum does not
    overflow its ring: ``bound`` is R, the largest entry a vector of norm R can have.

    **Not covered.** Amplification by sampling against clients of a round: they see how large the
    cohort is, and under the protocol that withstands a malicious server, who is in it. Clients
    that do not follow ``encode``: the server cannot clip their vectors. Honest clients' privacy
    does not depend on them; the model does.
    """

    name: ClassVar[str] = "masked-lattice-gaussian"

    def bound(self, *, parameters: int, noise_multiplier: float) -> int:
        """The radius; see ``MaskedMechanism.bound``."""
        return self.radius

    def _add_share(
        self, integers: Integers, noise_multiplier: float, randomness: Randomness
    ) -> None:
        """None: the noise is the server's."""

    def _complete(
        self, opened: Integers, survivors: int, noise_multiplier: float, randomness: Randomness
    ) -> float:
        return noise_multiplier


def _bounded(
    arrays: Sequence[Vector],
    reference: Sequence[Vector],
    geometry: ClippingGeometry,
    *,
    weight: float,
    radius: int,
) -> Integers:
    """One weighted, clipped update, rounded toward zero: the lattice sum of this update alone.

    Its length is computed once more from the integers themselves, exactly: they are sent.
    """
    alone = LatticeSum(reference, geometry, 0.0, SystemRandomness(), radius=radius)
    alone.add(arrays, weight=weight)
    integers = alone.export_integers()
    # Squares of at most R² ≤ 2⁴⁰ in rows of 2²⁰ stay below 2⁶³.
    rows = np.split(integers, range(_ROW, integers.size, _ROW))
    if max(int(integers.max(initial=0)), -int(integers.min(initial=0))) > radius or (
        sum(int(np.vecdot(row, row)) for row in rows) > radius**2
    ):
        raise UpdateError("the rounded update lies outside the clipping norm")
    return integers
