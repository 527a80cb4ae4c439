"""Updates as integers that secure aggregation can add, and their opened sum as a model again.

Under secure aggregation the server cannot bound what it cannot see. So the two halves of
``LatticeGaussian`` part: the client clips, weights and rounds its update, and masks the integers;
the server opens their sum, adds the noise, and turns it back into arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event, GaussianRelease, Sampling
from privacy.arguments import whole
from privacy.mechanisms.bounded_sums import (
    LARGEST_RADIUS,
    ClippingGeometry,
    LatticeSum,
)
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
    double it (``docs/secure-aggregation.md``, "Arithmetic").

    Parameters
    ----------
    parameters : int
        d, how many numbers an update has, at least 1.

    Returns
    -------
    int
        R, at most 2^20.

    Raises
    ------
    ValueError
        If ``parameters`` is below 1.
    """
    parameters = whole("parameters", parameters, least=1)
    # 2^e >= 64 sqrt(d), that is 4^e >= 4096 d
    exponent = ((_CELLS_PER_ROOT**2 * parameters - 1).bit_length() + 1) // 2
    return min(1 << exponent, LARGEST_RADIUS)


class MaskedMechanism(Protocol):
    """What secure aggregation needs of a mechanism: a half for the client, one for the server.

    Both halves must be given the same reference, geometry and noise multiplier.
    """

    @property
    def name(self) -> str:
        """What results call it."""

    def bound(self, *, parameters: int, noise_multiplier: float) -> int:
        """What the ring must hold of each client: ``bound`` of ``RoundTerms``.

        The sum of n clients overflows n times this never, or with noise in it with probability
        at most 2^-100.

        Parameters
        ----------
        parameters : int
            How many numbers an update has.
        noise_multiplier : float
            z.
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
            What the client trained; floating-point.
        reference : sequence of ndarray
            The model that it was sent, of the same shapes.
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

    def decode(
        self,
        opened: Integers,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        survivors: int,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> list[Vector]:
        """The server's half: the opened sum, with its noise, in the model's units.

        Parameters
        ----------
        opened : ndarray of int64, shape (d,)
            The sum of what ``encode`` gave. It is used up.
        reference, geometry
            As in ``encode``.
        survivors : int
            How many clients the sum is of.
        noise_multiplier : float
            z; the noise on the sum has standard deviation z * S at least.
        randomness : Randomness
            Where the server's noise comes from.

        Returns
        -------
        list of ndarray
            The noisy sum of weighted, clipped updates, shaped as the reference.

        Raises
        ------
        ValueError
            If ``opened`` has another type or shape.
        """

    def account(self, *, parameters: int, noise_multiplier: float, sampling: Sampling) -> Event:
        """What one release costs, for the ledger.

        Parameters
        ----------
        parameters : int
            How many numbers an update has.
        noise_multiplier : float
            z.
        sampling : Sampling
            How the cohort was drawn.
        """


@dataclass(frozen=True)
class MaskedGaussian:
    """``LatticeGaussian`` of which the server sees the sum only: central noise on masked sums.

    Parameters
    ----------
    radius : int
        R, the clipping norm S in lattice cells, in [1, 2^20]; see ``lattice_radius``.

    **Guarantee.** That of ``LatticeGaussian(radius)``, of which it is the same computation cut in
    two: without noise both give the same sum, exactly. A client that follows ``encode`` moves
    the sum by at most S.

    **Assumptions.** As ``LatticeGaussian``. The server adds the noise before anyone sees the
    sum: it is itself trusted with the sum, though with no client's update. The sum does not
    overflow its ring: ``bound`` is R, the largest entry a vector of norm R can have.

    **Not covered.** Amplification by sampling against clients of a round: they see how large the
    cohort is, and under the protocol that withstands a malicious server who is in it. Clients
    that do not follow ``encode``: the server cannot clip what it
    cannot see. Honest clients' privacy does not depend on them; the model does.
    """

    name: ClassVar[str] = "masked-lattice-gaussian"
    radius: int

    def __post_init__(self) -> None:
        whole("radius", self.radius, least=1, most=LARGEST_RADIUS)

    def bound(self, *, parameters: int, noise_multiplier: float) -> int:
        """The radius; see ``MaskedMechanism.bound``."""
        return self.radius

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
        """The bounded update, without noise; see ``MaskedMechanism.encode``."""
        return bounded_cells(arrays, reference, geometry, weight=weight, radius=self.radius)

    def decode(
        self,
        opened: Integers,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        survivors: int,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> list[Vector]:
        """The sum plus exactly sampled rounded Gaussian noise; see ``MaskedMechanism.decode``."""
        total = LatticeSum(reference, geometry, noise_multiplier, randomness, radius=self.radius)
        total.put_cells(opened)
        return total.release()

    def account(self, *, parameters: int, noise_multiplier: float, sampling: Sampling) -> Event:
        """A Gaussian release; see ``MaskedMechanism.account``."""
        return GaussianRelease(noise_multiplier, sampling)


def bounded_cells(
    arrays: Sequence[Vector],
    reference: Sequence[Vector],
    geometry: ClippingGeometry,
    *,
    weight: float,
    radius: int,
) -> Integers:
    """One weighted, clipped update, rounded toward zero: the lattice sum of this update alone.

    Raises
    ------
    UpdateError
        If it cannot be bounded. Its length is computed once more from the integers themselves,
        exactly: they are what is sent.
    """
    alone = LatticeSum(reference, geometry, 0.0, SystemRandomness(), radius=radius)
    alone.add(arrays, weight=weight)
    cells = alone.take_cells()
    # Squares of at most R² ≤ 2⁴⁰ in rows of 2²⁰ stay below 2⁶³.
    if max(int(cells.max(initial=0)), -int(cells.min(initial=0))) > radius or (
        sum(int(np.vecdot(row, row)) for row in np.split(cells, range(_ROW, cells.size, _ROW)))
        > radius**2
    ):
        raise UpdateError("the rounded update lies outside the clipping norm")
    return cells
