"""Noisy sums of bounded updates: bound each, add noise once, release once.

A *sum mechanism* opens a round, takes one update after another, and releases their noisy sum.
No client moves the sum by more than the clipping norm S, whatever it sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event, GaussianRelease, Sampling
from privacy.arguments import convert, number, whole
from privacy.mechanisms._blockwise_updates import Block, Blocks
from privacy.mechanisms.errors import UpdateError
from privacy.mechanisms.gaussian import add_gaussian, add_rounded_gaussian
from privacy.mechanisms.randomness import Randomness

Vector = npt.NDArray[Any]

_AT_ONCE = 1 << 12  # elements made noisy together; their wide integers take little room
LARGEST_RADIUS = 1 << 20  # the clipping norm in lattice cells
_LARGEST_MULTIPLIER = 2.0**20  # the noise sampler's limit at this radius
_SMALLEST_FACTOR = 2.0**-100  # that multiplies in single precision
_SMALLEST_NORM, _LARGEST_NORM = 1e-30, 1e30  # beyond, single precision could overflow


@dataclass(frozen=True)
class ClippingGeometry:
    """Which arrays are clipped together, and to which norm.

    Parameters
    ----------
    norms : tuple of float
        The clipping norm S_l of each group, in the units of the model's parameters.
    group_of : tuple of int
        For each array, the index of its group in ``norms``.
    """

    norms: tuple[float, ...]
    group_of: tuple[int, ...]

    def __post_init__(self) -> None:
        norms = tuple(
            number("a clipping norm", norm, least=_SMALLEST_NORM, most=_LARGEST_NORM)
            for norm in self.norms
        )
        groups = tuple(whole("a group", group) for group in self.group_of)
        object.__setattr__(self, "norms", norms)
        object.__setattr__(self, "group_of", groups)
        if any(not 0 <= group < len(self.norms) for group in self.group_of):
            raise ValueError(f"group_of names a group outside 0..{len(self.norms) - 1}")

    @property
    def total_norm(self) -> float:
        """The clipping norm S = sqrt(sum of S_l^2) of the whole update."""
        return sqrt(sum(norm * norm for norm in self.norms))


class LatticeNoise(Protocol):
    """Noise on a sum of integers, whatever it is made of."""

    def add_to(self, integers: npt.NDArray[np.int64], part: slice) -> None:
        """Add the noise of a part of the vector in place; parts come one after another, once."""


@dataclass(frozen=True)
class _IndependentNoise:
    """Rounded Gaussian noise, afresh for each integer."""

    sigma: float
    randomness: Randomness

    def add_to(self, integers: npt.NDArray[np.int64], part: slice) -> None:
        add_rounded_gaussian(integers, sigma=self.sigma, randomness=self.randomness)


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

    **Not covered.** Timing: the time a round takes depends on the number of replies.
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
        return _ContinuousSum(reference, geometry, noise_multiplier, randomness)


class _BlockwiseSum:
    """Of both sums: the arguments, the update and its norm, the one release."""

    def __init__(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> None:
        if len(reference) != len(geometry.group_of):
            raise ValueError(
                f"{len(reference)} arrays but the clipping geometry names {len(geometry.group_of)}"
            )
        self._blocks = Blocks(reference, geometry.group_of)
        self._geometry = geometry
        self._noise_multiplier = number("noise_multiplier", noise_multiplier, least=0)
        self._randomness = randomness
        self._released = False

    def _read(self, arrays: Sequence[Vector], weight: float) -> tuple[list[float], bool]:
        """Read an update and bound it.

        Returns the factor of each group that clips and weights it, and whether any was clipped.
        """
        self._check_open()
        if not 0 < weight <= 1:
            raise UpdateError("weight outside (0, 1]")
        if [array.shape for array in arrays] != self._blocks.shapes:
            raise UpdateError("arrays of other shapes")
        if any(array.dtype.kind != "f" for array in arrays):
            raise UpdateError("arrays that are not floating-point")
        self._blocks.read(arrays)
        lengths = [sqrt(square) for square in self._blocks.squares()]
        if not all(isfinite(length) for length in lengths):
            raise UpdateError("NaN, infinite or overflowing values")
        pairs = list(zip(self._geometry.norms, lengths, strict=True))
        factors = [weight * (norm / length if length > norm else 1.0) for norm, length in pairs]
        return factors, any(length > norm for norm, length in pairs)

    def _check_open(self) -> None:
        if self._released:
            raise RuntimeError("this round's sum was already released; open a new one")

    def _seal(self) -> None:
        self._check_open()
        self._released = True
        self._blocks.close()


class LatticeSum(_BlockwiseSum):
    """The sum that ``LatticeGaussian`` opens; masked sums are its two halves."""

    def __init__(self, *arguments: Any, radius: int) -> None:
        super().__init__(*arguments)
        if self._noise_multiplier > _LARGEST_MULTIPLIER:
            raise ValueError(
                f"noise_multiplier is {self._noise_multiplier!r}; give at most "
                f"{_LARGEST_MULTIPLIER:g}, by a larger budget or fewer rounds"
            )
        self._radius = radius
        self._cell = self._geometry.total_norm / radius
        self._spill_after = (1 << 31) // radius - 1  # additions that can never overflow 32 bits
        self._sum = np.zeros(self._blocks.vector.size, dtype=np.int32)
        self._spilled: npt.NDArray[np.int64] | None = None
        self._noise: LatticeNoise = _IndependentNoise(
            self._noise_multiplier * radius, self._randomness
        )
        self._additions = 0

    def add(self, arrays: Sequence[Vector], *, weight: float) -> bool:
        """Bound, round and add; see ``RoundSum.add``."""
        factors, clipped = self._read(arrays, weight)
        if self._additions >= self._spill_after:
            self._spill()
        self._additions += 1
        # The margin covers the rounding of the factor and of the product.
        self._round_and_add([factor / self._cell * (1 - 2.0**-20) for factor in factors])
        return clipped

    def _round_and_add(self, scales: Sequence[float]) -> None:
        """Scale the update, round it toward zero and add it, unless it is too long then.

        The length of the integers decides, whatever the scales were meant to achieve: a bound of
        it, and where that leaves a doubt, the exact one.

        Raises
        ------
        UpdateError
            If the integers lie outside the clipping norm; the sum is as it was.
        """
        squares: list[float] = []

        def add(block: Block) -> None:
            np.multiply(block.update, scales[block.group], out=block.update)
            block.square()
            total = self._sum[block.span]
            np.add(total, block.update, out=total, dtype=np.int32, casting="unsafe")

        def square(block: Block) -> None:
            """Exact up to 2^53, and above 2^52 beyond that."""
            integers = block.update.astype(np.int32)
            squares.append(float(np.square(integers, dtype=np.float64).sum()))

        def take_back(block: Block) -> None:
            """Sums of integers wrap around, so that nothing of the update stays."""
            total = self._sum[block.span]
            np.subtract(total, block.update, out=total, dtype=np.int32, casting="unsafe")

        self._blocks.step(add)
        if sum(self._blocks.squares()) <= self._radius**2:
            return
        self._blocks.step(square)
        if sum(squares) > self._radius**2:
            self._blocks.step(take_back)
            raise UpdateError("the rounded update lies outside the clipping norm")

    def _spill(self) -> None:
        """Move the 32-bit sums into 64-bit ones before they could overflow."""
        if self._spilled is None:
            self._spilled = np.zeros(self._sum.size, dtype=np.int64)
        self._spilled += self._sum
        self._sum.fill(0)
        self._additions = 0

    def export_integers(self) -> npt.NDArray[np.int64]:
        """The sum in cells, without noise, in place of its release: for a client to mask."""
        self._seal()
        integers = self._sum.astype(np.int64)
        if self._spilled is not None:
            integers += self._spilled
        return integers

    def import_integers(self, opened: npt.NDArray[np.int64]) -> None:
        """Take an opened sum for this one, which must be empty."""
        if opened.dtype != np.int64 or opened.shape != self._sum.shape:
            raise ValueError(
                f"the opened sum must be {self._sum.size} int64, got {opened.dtype} of shape "
                f"{opened.shape}"
            )
        self._spilled = opened

    def use_noise(self, noise: LatticeNoise) -> None:
        """Have this noise added in place of independent noise of z·R cells."""
        self._check_open()
        self._noise = noise

    def release(self) -> list[Vector]:
        """The noisy sum in the model's units, once; see ``RoundSum.release``."""
        self._seal()
        vector = self._blocks.vector
        for begin in range(0, vector.size, _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            integers = self._sum[part].astype(np.int64)
            if self._spilled is not None:
                integers += self._spilled[part]
            self._noise.add_to(integers, part)
            np.multiply(integers, self._cell, out=vector[part], casting="unsafe")
        del self._sum, self._spilled
        return self._blocks.arrays()


class _ContinuousSum(_BlockwiseSum):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sum = np.zeros(self._blocks.vector.size, dtype=np.float64)

    def add(self, arrays: Sequence[Vector], *, weight: float) -> bool:
        factors, clipped = self._read(arrays, weight)

        def add(block: Block) -> None:
            # A tiny factor is subnormal in single precision, and may be rounded upward by much.
            factor = factors[block.group]
            dtype = block.update.dtype if factor >= _SMALLEST_FACTOR else np.dtype(np.float64)
            np.multiply(block.update, factor, out=block.update, dtype=dtype, casting="same_kind")
            total = self._sum[block.span]
            np.add(total, block.update, out=total)

        self._blocks.step(add)
        return clipped

    def release(self) -> list[Vector]:
        self._seal()
        sigma = self._noise_multiplier * self._geometry.total_norm
        add_gaussian(self._sum, sigma=sigma, randomness=self._randomness)
        np.copyto(self._blocks.vector, self._sum, casting="same_kind")
        del self._sum
        return self._blocks.arrays()
