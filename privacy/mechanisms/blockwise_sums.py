"""Sums of clipped updates, block by block: on a lattice, and in floating point.

An update is read at most twice, to measure it and to add it; on the lattice once, where nothing
is clipped.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privacy.arguments import number
from privacy.mechanisms._blockwise_updates import Block, Blocks, at_least, square_of
from privacy.mechanisms.clipping_geometry import ClippingGeometry
from privacy.mechanisms.errors import UpdateError
from privacy.mechanisms.gaussian import add_gaussian, add_rounded_gaussian
from privacy.mechanisms.randomness import Randomness

Vector = npt.NDArray[Any]

_AT_ONCE = 1 << 14  # elements; few, so that they stay in a cache
_FEWEST, _MOST = 1 << 13, 1 << 16  # elements made noisy together
_LARGEST_MULTIPLIER = 2.0**20  # the noise sampler's limit at the largest radius
_SMALLEST_FACTOR = 2.0**-100  # that multiplies in single precision


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

    def _check(self, arrays: Sequence[Vector], weight: float) -> None:
        """Refuse what is no update of this model, and any after the release."""
        self._check_open()
        if not 0 < weight <= 1:
            raise UpdateError("weight outside (0, 1]")
        if [array.shape for array in arrays] != self._blocks.shapes:
            raise UpdateError("arrays of other shapes")
        if any(array.dtype.kind != "f" for array in arrays):
            raise UpdateError("arrays that are not floating-point")

    def _factors(self, squares: Sequence[float], weight: float) -> tuple[list[float], bool]:
        """The factor of each group that clips and weights it, and whether any was clipped."""
        lengths = [sqrt(square) for square in squares]
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
        self._sum = np.zeros(self._blocks.size, dtype=np.int32)
        self._spilled: npt.NDArray[np.int64] | None = None
        self._noise: LatticeNoise = _IndependentNoise(
            self._noise_multiplier * radius, self._randomness
        )
        self._additions = 0
        self._last_was_clipped = True

    def add(self, arrays: Sequence[Vector], *, weight: float) -> bool:
        """Bound, round and add; see ``RoundSum.add``."""
        self._check(arrays, weight)
        if self._additions >= self._spill_after:
            self._spill()
        self._additions += 1
        with self._blocks.update(arrays):
            if not self._last_was_clipped and self._add_as_it_is(weight):
                return False
            squares = (
                self._blocks.measured() if not self._last_was_clipped else self._blocks.measure()
            )
            factors, clipped = self._factors(squares, weight)
            self._round_and_add([self._scale(factor) for factor in factors])
        self._last_was_clipped = clipped
        return clipped

    def _scale(self, factor: float) -> float:
        """In cells. The margin covers the rounding of the factor and of the product."""
        return factor / self._cell * (1 - 2.0**-20)

    def _add_as_it_is(self, weight: float) -> bool:
        """Add an update in the one step that also measures it, unless it has to be clipped.

        Where it has to be, the sum is as it was, and all blocks are measured.
        """
        scale, norms = self._scale(weight), self._geometry.norms
        limits, so_far = [norm * norm for norm in norms], [0.0 for _ in norms]
        squares: list[float] = []
        added: list[Block] = []
        clipped = False

        def add(block: Block) -> None:
            nonlocal clipped
            moved = so_far[block.group] + self._blocks.square(block)
            so_far[block.group] = moved
            if clipped or not moved <= limits[block.group]:
                clipped = True  # what is left is measured alone
                return
            squares.append(self._shift(block, scale, 1, subtracted=True))
            added.append(block)

        self._blocks.step(add)
        lengths = [sqrt(square) for square in self._blocks.measured()]
        fits = all(length <= norm for length, norm in zip(lengths, norms, strict=True))
        if not clipped and fits and sum(squares) <= self._radius**2:
            return True
        self._take_back([scale] * len(norms), added)
        return False

    def _round_and_add(self, scales: Sequence[float]) -> None:
        """Scale the update, round it toward zero and add it, unless it is too long then.

        The length of the integers decides, whatever the scales were meant to achieve: a bound of
        it, and where that leaves a doubt, the exact one.

        Raises
        ------
        UpdateError
            If the integers lie outside the clipping norm; the sum is as it was.
        """
        bounds: list[float] = []
        squares: list[float] = []

        def add(block: Block) -> None:
            bounds.append(self._shift(block, scales[block.group], 1))

        def square(block: Block) -> None:
            """Exact up to 2^53, and above 2^52 beyond that."""
            differences = self._blocks.subtract(block)
            np.multiply(differences, scales[block.group], out=differences)
            integers = differences.astype(np.int32)
            squares.append(float(np.square(integers, dtype=np.float64).sum()))

        self._blocks.step(add)
        if sum(bounds) <= self._radius**2:
            return
        self._blocks.step(square)
        if not sum(squares) <= self._radius**2:
            self._take_back(scales)
            raise UpdateError("the rounded update lies outside the clipping norm")

    def _take_back(self, scales: Sequence[float], added: Collection[Block] | None = None) -> None:
        """Sums of integers wrap around, so that nothing of the update stays."""

        def subtract(block: Block) -> None:
            if added is None or block in added:
                self._shift(block, scales[block.group], -1)

        self._blocks.step(subtract)

    def _shift(self, block: Block, scale: float, sign: int, *, subtracted: bool = False) -> float:
        """Add ``sign`` times a block's cells, rounded toward zero; at least their squares' sum.

        With ``subtracted`` this thread's room holds the differences already, if there are no
        kernels.
        """
        total, kernels = self._sum[block.span], self._blocks.kernels
        if kernels is not None:
            square, single = 0.0, np.float32(sign * scale)
            for update, reference, place in self._blocks.pieces(block):
                square += kernels.add_cells(update, reference, single, total[place])
        else:
            scaled = self._blocks.room(block) if subtracted else self._blocks.subtract(block)
            np.multiply(scaled, scale, out=scaled)
            square = square_of(scaled)
            by = np.add if sign > 0 else np.subtract
            by(total, scaled, out=total, dtype=np.int32, casting="unsafe")
        return at_least(square, block.size)

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
        total, single = self._sum, self._blocks.dtype == np.float32
        del self._sum
        # In single precision the result takes the place of the integers, part after part.
        vector: Vector = (
            total.view(np.float32) if single else np.empty(total.size, self._blocks.dtype)
        )
        kernels = self._blocks.loaded if single else None
        for part in _parts(total.size):
            integers = total[part].astype(np.int64)
            if self._spilled is not None:
                integers += self._spilled[part]
            self._noise.add_to(integers, part)
            if kernels is not None:
                kernels.in_units(integers, self._cell, vector[part])
            else:
                np.multiply(integers, self._cell, out=vector[part], casting="unsafe")
        del self._spilled
        return self._blocks.arrays(vector)


class ContinuousSum(_BlockwiseSum):
    """The sum that ``ContinuousGaussian`` opens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sum = np.zeros(self._blocks.size, dtype=np.float64)

    def add(self, arrays: Sequence[Vector], *, weight: float) -> bool:
        """Bound, scale and add; see ``RoundSum.add``."""
        self._check(arrays, weight)
        with self._blocks.update(arrays):
            factors, clipped = self._factors(self._blocks.measure(), weight)

            def add(block: Block) -> None:
                factor, total = factors[block.group], self._sum[block.span]
                kernels = self._blocks.kernels
                # A tiny factor is subnormal in single precision, and may be rounded upward by much.
                tiny = factor < _SMALLEST_FACTOR
                if kernels is not None and not tiny:
                    single = np.float32(factor)
                    for update, reference, place in self._blocks.pieces(block):
                        kernels.add_scaled(update, reference, single, total[place])
                    return
                scaled = self._blocks.subtract(block)
                dtype = np.dtype(np.float64) if tiny else scaled.dtype
                np.multiply(scaled, factor, out=scaled, dtype=dtype, casting="same_kind")
                np.add(total, scaled, out=total)

            self._blocks.step(add)
        return clipped

    def release(self) -> list[Vector]:
        """The noisy sum, once; see ``RoundSum.release``."""
        self._seal()
        total: Vector = self._sum
        del self._sum
        sigma = self._noise_multiplier * self._geometry.total_norm
        for part in _parts(total.size):
            add_gaussian(total[part], sigma=sigma, randomness=self._randomness)
        if self._blocks.dtype == np.float32:
            total = _in_single_precision(total)
        return self._blocks.arrays(total)


def _parts(size: int) -> Iterator[slice]:
    """What is made noisy together: much, but so that its noise takes less memory than the vector.

    Noise takes up to 40 bytes an element.
    """
    step = min(max(size // 8, _FEWEST), _MOST)
    return (slice(begin, begin + step) for begin in range(0, size, step))


def _in_single_precision(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The same numbers rounded, in the first half of the same memory; the rest is given back."""
    size = values.size
    rounded = values.view(np.float32)
    for begin in range(0, size, _AT_ONCE):
        part = values[begin : begin + _AT_ONCE].astype(np.float32)
        rounded[begin : begin + part.size] = part  # over what was read before: half as wide
    del rounded
    values.resize(-(-size // 2), refcheck=False)  # nothing else refers to it
    return values.view(np.float32)[:size]
