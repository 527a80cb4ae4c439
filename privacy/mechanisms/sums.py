"""Noisy sums of bounded updates: bound each, add noise once, release once.

A *sum mechanism* opens a round, takes one update after another, and releases their noisy sum.
What it promises is the sensitivity: no client moves the sum by more than the clipping norm S,
whatever it sends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.noise import add_gaussian, add_rounded_gaussian
from privacy.mechanisms.randomness import Randomness

Vector = npt.NDArray[Any]

_BLOCK = 1 << 16  # elements; a block and its scratch stay in the second-level cache
_ROW = 256  # elements added up in single precision before double precision takes over
_RADIUS = 1 << 20  # the clipping norm in lattice cells
_SPILL_AFTER = (1 << 31) // _RADIUS - 1  # additions that can never overflow 32 bits


class RejectedUpdate(ValueError):
    """An update that cannot be bounded, and so never reaches the sum."""


@dataclass(frozen=True)
class ClippingGeometry:
    """Which arrays are clipped together, and to what norm.

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
        for norm in self.norms:
            if not (isfinite(norm) and norm > 0):
                raise ValueError(f"a clipping norm must be finite and positive, got {norm}")
        if any(not 0 <= group < len(self.norms) for group in self.group_of):
            raise ValueError(f"group_of names a group outside 0..{len(self.norms) - 1}")

    @property
    def total_norm(self) -> float:
        """The clipping norm S = sqrt(sum of S_l^2) of the whole update."""
        return sqrt(sum(norm * norm for norm in self.norms))


@dataclass(frozen=True)
class Contribution:
    """What the server may use of one update's bounding (never released un-noised)."""

    clipped: bool


class RoundSum(Protocol):
    """The sum of one round."""

    def add(self, arrays: Sequence[Vector], *, weight: float) -> Contribution:
        """Bound one client's arrays against the reference and add them.

        Raises
        ------
        RejectedUpdate
            If they cannot be bounded (NaN or infinite values); the sum is as it was before.
        """

    def release(self) -> list[Vector]:
        """Add the noise and hand out the sum, once."""


class SumMechanism(Protocol):
    """Opens noisy sums. A small surface, so that other mechanisms can stand behind it."""

    @property
    def name(self) -> str:
        """What results call it."""

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


@dataclass(frozen=True)
class LatticeGaussian:
    """Gaussian sum that is safe in finite precision.

    Each weighted, clipped update is rounded *toward zero* onto a lattice of cell S / 2^20,
    which never raises its norm. The norm itself is bounded from above with a proved margin for
    every rounding in its computation, so that no input, however made, lands outside the ball.
    Integers are summed without error, and the noise is the exactly sampled rounded Gaussian.
    Since round(sum + N(0, s^2)) = sum + round(N(0, s^2)) for an integer sum, what is released is
    post-processing of the continuous Gaussian mechanism (``docs/proofs.md``).

    **Guarantee.** That of the Gaussian mechanism with noise multiplier z under add or remove
    one client, for what is sampled and not for an idealisation of it.

    **Assumptions.** The operating system's randomness is unpredictable. No overflow: at most
    2^40 clients a round.

    **Not covered.** Timing: the time a round takes depends on the number of replies.
    """

    name: ClassVar[str] = "lattice-gaussian"

    def open(
        self,
        reference: Sequence[Vector],
        geometry: ClippingGeometry,
        *,
        noise_multiplier: float,
        randomness: Randomness,
    ) -> RoundSum:
        """Begin a round's sum; see ``SumMechanism.open``."""
        return _LatticeSum(reference, geometry, noise_multiplier, randomness)


@dataclass(frozen=True)
class ContinuousGaussian:
    """Gaussian sum in floating point.

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


def _blocks(size: int) -> Iterator[slice]:
    """Cut ``size`` elements into blocks."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


def _squares_at_most(block: Vector) -> float:
    """The sum of squares of a block, never below the exact one.

    A sum of n products in floating point, in any order and with or without fused operations,
    is off by at most n u / (1 - n u) of itself (Higham 2002, section 3.1) and by 2^-149 a
    product that underflows. Rows of 256 in single precision (u = 2^-24) are off by less than
    2^-15.
    """
    whole = block.size - block.size % _ROW
    rows = block[:whole].reshape(-1, _ROW)
    tail = block[whole:]
    squares = float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.dot(tail, tail))
    return squares * (1 + 2.0**-15) + block.size * 2.0**-126


class _BlockwiseSum:
    """What both sums share: the update in blocks, its norm by group, the one release."""

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
        if not (isfinite(noise_multiplier) and noise_multiplier >= 0):
            raise ValueError(
                f"noise_multiplier must be finite and not negative, got {noise_multiplier}"
            )
        self._reference = [np.ascontiguousarray(array).reshape(-1) for array in reference]
        self._shapes = [array.shape for array in reference]
        self._geometry = geometry
        self._noise_multiplier = noise_multiplier
        self._randomness = randomness
        self._released = False
        self._scratch = [
            np.empty(array.size, dtype=np.result_type(array.dtype, np.float32))
            for array in self._reference
        ]

    def _take(self, arrays: Sequence[Vector], weight: float) -> tuple[list[float], bool]:
        """Read the update into the scratch as differences from the reference.

        Returns the factor of each group that clips and weights it, and whether any was clipped.
        """
        if not 0 < weight <= 1:
            raise RejectedUpdate("weight outside (0, 1]")
        squares = [0.0] * len(self._geometry.norms)
        with np.errstate(all="ignore"):  # NaN, infinity and overflow are caught by the norm
            for index, (array, reference, scratch) in enumerate(
                zip(arrays, self._reference, self._scratch, strict=True)
            ):
                flat = array.reshape(-1)
                group = self._geometry.group_of[index]
                for part in _blocks(flat.size):
                    block = scratch[part]
                    np.subtract(flat[part], reference[part], out=block)
                    squares[group] += _squares_at_most(block)
        if not all(isfinite(square) for square in squares):
            raise RejectedUpdate("NaN, infinite or overflowing values")
        factors, clipped = [], False
        for norm, square in zip(self._geometry.norms, squares, strict=True):
            length = sqrt(square)
            clipped |= length > norm
            factors.append(weight * (norm / length if length > norm else 1.0))
        return factors, clipped

    def _seal(self) -> None:
        if self._released:
            raise RuntimeError("this round's sum was already released; open a new one")
        self._released = True


class _LatticeSum(_BlockwiseSum):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._cell = self._geometry.total_norm / _RADIUS
        self._sum = [np.zeros(array.size, dtype=np.int32) for array in self._reference]
        self._spilled: list[npt.NDArray[np.int64]] | None = None
        self._additions = 0
        self._cells = np.empty(_BLOCK, dtype=np.int32)

    def add(self, arrays: Sequence[Vector], *, weight: float) -> Contribution:
        factors, clipped = self._take(arrays, weight)
        if self._additions >= _SPILL_AFTER:
            self._spill()
        self._additions += 1
        for index, (scratch, total) in enumerate(zip(self._scratch, self._sum, strict=True)):
            # The margin covers the rounding of the factor and of the product.
            factor = factors[self._geometry.group_of[index]] / self._cell * (1 - 2.0**-20)
            for part in _blocks(scratch.size):
                block, cells = scratch[part], self._cells[: part.stop - part.start]
                np.multiply(block, factor, out=block)
                np.copyto(cells, block, casting="unsafe")  # a C cast: toward zero
                np.add(total[part], cells, out=total[part])
        return Contribution(clipped=clipped)

    def _spill(self) -> None:
        """Move the 32-bit sums into 64-bit ones before they could overflow."""
        if self._spilled is None:
            self._spilled = [np.zeros(array.size, dtype=np.int64) for array in self._sum]
        for wide, narrow in zip(self._spilled, self._sum, strict=True):
            wide += narrow
            narrow.fill(0)
        self._additions = 0

    def release(self) -> list[Vector]:
        self._seal()
        sigma = self._noise_multiplier * _RADIUS
        released = []
        for index, (narrow, out, shape) in enumerate(
            zip(self._sum, self._scratch, self._shapes, strict=True)
        ):
            for part in _blocks(narrow.size):
                cells = narrow[part].astype(np.int64)
                if self._spilled is not None:
                    cells += self._spilled[index][part]
                add_rounded_gaussian(cells, sigma=sigma, randomness=self._randomness)
                np.multiply(cells, self._cell, out=out[part], casting="unsafe")
            released.append(out.reshape(shape))
        return released


class _ContinuousSum(_BlockwiseSum):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sum = [np.zeros(array.size, dtype=np.float64) for array in self._reference]
        self._wide = np.empty(_BLOCK, dtype=np.float64)

    def add(self, arrays: Sequence[Vector], *, weight: float) -> Contribution:
        factors, clipped = self._take(arrays, weight)
        for index, (scratch, total) in enumerate(zip(self._scratch, self._sum, strict=True)):
            factor = factors[self._geometry.group_of[index]]
            for part in _blocks(scratch.size):
                wide = self._wide[: part.stop - part.start]
                np.multiply(scratch[part], factor, out=wide)
                np.add(total[part], wide, out=total[part])
        return Contribution(clipped=clipped)

    def release(self) -> list[Vector]:
        self._seal()
        sigma = self._noise_multiplier * self._geometry.total_norm
        released = []
        for total, out, shape in zip(self._sum, self._scratch, self._shapes, strict=True):
            for part in _blocks(total.size):
                add_gaussian(total[part], sigma=sigma, randomness=self._randomness)
                out[part] = total[part]
            released.append(out.reshape(shape))
        return released
