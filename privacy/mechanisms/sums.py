"""Noisy sums of bounded updates: bound each, add noise once, release once.

A *sum mechanism* opens a round, takes one update after another, and releases their noisy sum.
What it promises is the sensitivity: no client moves the sum by more than the clipping norm S,
whatever it sends.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite, sqrt
from threading import Lock
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event, GaussianRelease, Sampling
from privacy.mechanisms.noise import add_gaussian, add_rounded_gaussian
from privacy.mechanisms.randomness import Randomness

Vector = npt.NDArray[Any]

_BLOCK = 1 << 16  # elements; a block and its scratch stay in the second-level cache
_BLOCKS_WORTH_THREADS = 8  # below that many, handing work to a thread costs more than it saves
_ROW = 256  # elements added up in single precision before double precision takes over
_EXACT_ROW = 4096  # elements added up at once where doubles hold exact integers
LARGEST_RADIUS = 1 << 20  # the clipping norm in lattice cells
_LARGEST_MULTIPLIER = 2.0**20  # what the noise sampler can do with this radius
_SMALLEST_NORM, _LARGEST_NORM = 1e-30, 1e30  # beyond, single precision could overflow


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
            if not (isfinite(norm) and _SMALLEST_NORM <= norm <= _LARGEST_NORM):
                raise ValueError(
                    f"a clipping norm must lie in [{_SMALLEST_NORM:g}, {_LARGEST_NORM:g}], "
                    f"got {norm}"
                )
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
            If they cannot be bounded (NaN or infinite values, other shapes, a weight outside
            (0, 1]); the sum is as it was before.
        RuntimeError
            If the sum was released.
        """

    def release(self) -> list[Vector]:
        """Add the noise and hand out the sum, once.

        Raises
        ------
        RuntimeError
            If it was handed out before.
        """


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

    def account(self, *, noise_multiplier: float, sampling: Sampling) -> Event:
        """What one release over a cohort costs, for the ledger."""


@dataclass(frozen=True)
class LatticeGaussian:
    """Gaussian sum that is safe in finite precision.

    Each weighted, clipped update is rounded *toward zero* onto a lattice of cell S / R,
    R = ``radius``, which never raises its norm. The norm itself is bounded from above with a
    proved margin for every rounding in its computation, so that no input, however made, lands
    outside the ball; and it is checked again on the rounded update, in exact integers.
    Integers are summed without error, and the noise is the exactly sampled rounded Gaussian.
    Since round(sum + N(0, s^2)) = sum + round(N(0, s^2)) for an integer sum, what is released is
    post-processing of the continuous Gaussian mechanism (``docs/proofs.md``).

    Parameters
    ----------
    radius : int
        R, in [1, 2^20]. Rounding costs up to one cell a coordinate, so take the default unless
        the integers themselves have to be small.

    **Guarantee.** That of the Gaussian mechanism with noise multiplier z under add or remove
    one client, for what is sampled and not for an idealisation of it.

    **Assumptions.** The operating system's randomness is unpredictable. No overflow: at most
    2^40 clients a round.

    **Not covered.** Timing: the time a round takes depends on the number of replies.
    """

    name: ClassVar[str] = "lattice-gaussian"
    radius: int = LARGEST_RADIUS

    def __post_init__(self) -> None:
        if not 1 <= self.radius <= LARGEST_RADIUS:
            raise ValueError(f"radius is {self.radius}; it must lie in [1, {LARGEST_RADIUS}]")

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

    def account(self, *, noise_multiplier: float, sampling: Sampling) -> Event:
        """A Gaussian release; see ``SumMechanism.account``."""
        return GaussianRelease(noise_multiplier, sampling)


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

    def account(self, *, noise_multiplier: float, sampling: Sampling) -> Event:
        """A Gaussian release; see ``SumMechanism.account``."""
        return GaussianRelease(noise_multiplier, sampling)


def _dot(block: Vector, row: int) -> float:
    """The sum of squares in rows, the rows added up in double precision.

    In rows, because BLAS wakes threads of its own for long vectors.
    """
    whole = block.size - block.size % row
    rows, tail = block[:whole].reshape(-1, row), block[whole:]
    return float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.dot(tail, tail))


def _squares_at_most(block: Vector) -> float:
    """The sum of squares of a block, never below the exact one.

    Rows of 256 are added up in the block's own precision, in whatever order, fused or not: at
    worst they are off by 2^-16 (1 + 2^-15) of themselves (Higham 2002, section 3.1), and by
    2^-126 a product that underflows. ``docs/proofs.md``, "The norm of a rounded update".
    """
    return _dot(block, _ROW) * (1 + 2.0**-15) + block.size * 2.0**-126


@dataclass(frozen=True)
class _Block:
    """A stretch of the model, laid out as one vector; no more than a cache holds."""

    span: slice
    group: int
    pieces: list[tuple[int, slice, slice]]  # which array, from where in it, to where


def _layout(sizes: Sequence[int], geometry: ClippingGeometry) -> tuple[list[int], list[_Block]]:
    """Where each array begins in the vector, group after group, and the vector's blocks."""
    begins, blocks, end = [0] * len(sizes), [], 0
    for group in range(len(geometry.norms)):
        pieces: list[tuple[int, slice, slice]] = []
        begin = end
        for index, size in enumerate(sizes):
            if geometry.group_of[index] != group:
                continue
            begins[index], done = end, 0
            while done < size:
                take = min(size - done, _BLOCK - (end - begin))
                pieces.append((index, slice(done, done + take), slice(end, end + take)))
                done, end = done + take, end + take
                if end - begin == _BLOCK:
                    blocks.append(_Block(slice(begin, end), group, pieces))
                    begin, pieces = end, []
        if pieces:
            blocks.append(_Block(slice(begin, end), group, pieces))
    return begins, blocks


@dataclass
class _Room:
    """What one thread needs besides a block itself."""

    cells: npt.NDArray[np.int32]
    wide: npt.NDArray[np.float64]


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
        self._reference = [np.asarray(array, order="C").reshape(-1) for array in reference]
        self._shapes = [array.shape for array in reference]
        self._geometry = geometry
        self._noise_multiplier = noise_multiplier
        self._randomness = randomness
        self._released = False
        sizes = [array.size for array in reference]
        self._begins, self._blocks = _layout(sizes, geometry)
        # One update, as differences from the reference; half precision is worked on in single.
        dtype = np.result_type(np.float32, *(array.dtype for array in reference))
        self._update: Vector = np.empty(sum(sizes), dtype=dtype)
        room = min(sum(sizes), _BLOCK)
        count = _threads() if len(self._blocks) >= _BLOCKS_WORTH_THREADS else 1
        self._rooms = [
            _Room(np.empty(room, np.int32), np.empty(room, np.float64)) for _ in range(count)
        ]
        self._pool = ThreadPoolExecutor(count - 1) if count > 1 else None

    def _over_blocks(self, work: Callable[[_Block, _Room], float]) -> list[float]:
        """Do the work of every block and return what each gave, in the blocks' order.

        Threads take block after block, so that one that has to wait holds nobody up.
        """
        given = [0.0] * len(self._blocks)
        todo, lock = iter(enumerate(self._blocks)), Lock()

        def take(room: _Room) -> None:
            with np.errstate(all="ignore"):  # what is not finite shows in the norm
                while True:
                    with lock:
                        number, block = next(todo, (-1, None))
                    if block is None:
                        return
                    given[number] = work(block, room)

        others = [self._pool.submit(take, room) for room in self._rooms[1:]] if self._pool else []
        take(self._rooms[0])
        for other in others:
            other.result()
        return given

    def _read(self, arrays: Sequence[Vector], weight: float) -> tuple[list[float], bool]:
        """Read an update and bound it.

        Returns the factor of each group that clips and weights it, and whether any was clipped.
        """
        if self._released:
            raise RuntimeError("this round's sum was already released; open a new one")
        if not 0 < weight <= 1:
            raise RejectedUpdate("weight outside (0, 1]")
        if [array.shape for array in arrays] != self._shapes:
            raise RejectedUpdate("arrays of other shapes")
        if any(array.dtype.kind != "f" for array in arrays):
            raise RejectedUpdate("arrays that are not floating-point")
        flats = [array.reshape(-1) for array in arrays]
        dtype = self._update.dtype

        def square(block: _Block, room: _Room) -> float:
            for index, source, target in block.pieces:
                np.subtract(
                    flats[index][source],
                    self._reference[index][source],
                    out=self._update[target],
                    dtype=dtype,
                    casting="same_kind",
                )
            return _squares_at_most(self._update[block.span])

        squares = [0.0] * len(self._geometry.norms)
        for block, found in zip(self._blocks, self._over_blocks(square), strict=True):
            squares[block.group] += found
        lengths = [sqrt(square_) for square_ in squares]
        if not all(isfinite(length) for length in lengths):
            raise RejectedUpdate("NaN, infinite or overflowing values")
        pairs = list(zip(self._geometry.norms, lengths, strict=True))
        factors = [weight * (norm / length if length > norm else 1.0) for norm, length in pairs]
        return factors, any(length > norm for norm, length in pairs)

    def _seal(self) -> None:
        if self._released:
            raise RuntimeError("this round's sum was already released; open a new one")
        self._released = True
        self._rooms = []
        if self._pool is not None:
            self._pool.shutdown()

    def _arrays(self) -> list[Vector]:
        """The vector cut into the model's arrays again, without a copy."""
        parts = zip(self._begins, self._reference, self._shapes, strict=True)
        return [self._update[b : b + array.size].reshape(shape) for b, array, shape in parts]


class LatticeSum(_BlockwiseSum):
    """The sum that ``LatticeGaussian`` opens; masked sums are made of its two halves."""

    def __init__(self, *arguments: Any, radius: int) -> None:
        super().__init__(*arguments)
        if self._noise_multiplier > _LARGEST_MULTIPLIER:
            raise ValueError(
                f"noise_multiplier must be at most {_LARGEST_MULTIPLIER:g}, "
                f"got {self._noise_multiplier}; raise the budget or do fewer rounds"
            )
        self._radius = radius
        self._cell = self._geometry.total_norm / radius
        self._spill_after = (1 << 31) // radius - 1  # additions that can never overflow 32 bits
        self._sum = np.zeros(self._update.size, dtype=np.int32)
        self._spilled: npt.NDArray[np.int64] | None = None
        self._additions = 0

    def add(self, arrays: Sequence[Vector], *, weight: float) -> Contribution:
        """Bound, round and add; see ``RoundSum.add``."""
        factors, clipped = self._read(arrays, weight)
        if self._additions >= self._spill_after:
            self._spill()
        self._additions += 1
        # The margin covers the rounding of the factor and of the product.
        scales = [factor / self._cell * (1 - 2.0**-20) for factor in factors]

        def pour(block: _Block, room: _Room) -> float:
            """Round toward zero, add, and tell the squared norm in cells.

            It is exact up to 2^53, and above 2^52 beyond that.
            """
            update, total = self._update[block.span], self._sum[block.span]
            cells, wide = room.cells[: update.size], room.wide[: update.size]
            np.multiply(update, scales[block.group], out=update)
            np.copyto(cells, update, casting="unsafe")  # a C cast: toward zero
            np.add(total, cells, out=total)
            np.copyto(wide, cells)
            return _dot(wide, _EXACT_ROW)

        if sum(self._over_blocks(pour)) > self._radius**2:
            self._over_blocks(self._take_back)
            raise RejectedUpdate("the rounded update lies outside the clipping norm")
        return Contribution(clipped=clipped)

    def _take_back(self, block: _Block, room: _Room) -> float:
        """Undo what was added: sums of integers wrap around, so nothing of it stays."""
        update, total = self._update[block.span], self._sum[block.span]
        cells = room.cells[: update.size]
        np.copyto(cells, update, casting="unsafe")
        np.subtract(total, cells, out=total)
        return 0.0

    def _spill(self) -> None:
        """Move the 32-bit sums into 64-bit ones before they could overflow."""
        if self._spilled is None:
            self._spilled = np.zeros(self._sum.size, dtype=np.int64)
        self._spilled += self._sum
        self._sum.fill(0)
        self._additions = 0

    def take_cells(self) -> npt.NDArray[np.int64]:
        """Hand out the sum as it is, in cells, instead of releasing it: for a client to mask."""
        self._seal()
        cells = self._sum.astype(np.int64)
        if self._spilled is not None:
            cells += self._spilled
        return cells

    def put_cells(self, cells: npt.NDArray[np.int64]) -> None:
        """Take an opened sum for this one, which must be empty."""
        if cells.dtype != np.int64 or cells.shape != self._sum.shape:
            raise ValueError(
                f"the opened sum must be {self._sum.size} int64, got {cells.dtype} of shape "
                f"{cells.shape}"
            )
        self._spilled = cells

    def release(self) -> list[Vector]:
        """The noisy sum in the model's units, once; see ``RoundSum.release``."""
        self._seal()
        sigma = self._noise_multiplier * self._radius
        for begin in range(0, self._sum.size, _BLOCK):
            part = slice(begin, begin + _BLOCK)
            cells = self._sum[part].astype(np.int64)
            if self._spilled is not None:
                cells += self._spilled[part]
            add_rounded_gaussian(cells, sigma=sigma, randomness=self._randomness)
            np.multiply(cells, self._cell, out=self._update[part], casting="unsafe")
        del self._sum, self._spilled
        return self._arrays()


class _ContinuousSum(_BlockwiseSum):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sum = np.zeros(self._update.size, dtype=np.float64)

    def add(self, arrays: Sequence[Vector], *, weight: float) -> Contribution:
        factors, clipped = self._read(arrays, weight)

        def pour(block: _Block, room: _Room) -> float:
            update, total = self._update[block.span], self._sum[block.span]
            wide = room.wide[: update.size]
            np.copyto(wide, update)
            wide *= factors[block.group]
            np.add(total, wide, out=total)
            return 0.0

        self._over_blocks(pour)
        return Contribution(clipped=clipped)

    def release(self) -> list[Vector]:
        self._seal()
        sigma = self._noise_multiplier * self._geometry.total_norm
        add_gaussian(self._sum, sigma=sigma, randomness=self._randomness)
        np.copyto(self._update, self._sum, casting="same_kind")
        del self._sum
        return self._arrays()


def _threads() -> int:
    """As many as this process may run on, up to four: beyond, memory is what is waited for."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 4)
    return min(os.cpu_count() or 1, 4)
