"""An update in blocks that fit a cache: the work on every block, and bounds of its norm."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock, local
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[Any]

_BLOCK = 1 << 17  # elements; long calls, and half of a core's second cache
_BLOCKS_WORTH_THREADS = 5  # below that many, handing work to a thread costs more than it saves
ROW = 256  # elements added up in single precision before double precision takes over
_KERNELS = "privacy.mechanisms._sum_kernels"
# Elements of updates from which they are a server's, of many rounds, and make up for loading numba.
_WORTH_KERNELS = 1 << 25


@cache
def load_kernels() -> ModuleType | None:
    """Compiled code for single precision, where numba is installed."""
    try:
        from privacy.mechanisms import _sum_kernels
    except ImportError:
        return None
    return _sum_kernels


@dataclass(frozen=True)
class Piece:
    """What lies in a block of one array: where there, where in the block, the model's values."""

    index: int
    source: slice
    place: slice
    reference: Vector


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of the vector, at ``span``, of arrays that are clipped together."""

    number: int
    span: slice
    group: int
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return int(self.span.stop - self.span.start)


def square_of(values: Vector) -> float:
    """The squared length of a vector, as :func:`at_least` takes it.

    Summed in rows, because single precision holds no longer sums, and BLAS wakes threads of its
    own for long vectors.
    """
    whole = values.size // ROW
    rows = np.empty(-(-values.size // ROW), values.dtype)
    if whole:
        matrix = values[: whole * ROW].reshape(-1, ROW)
        np.vecdot(matrix, matrix, out=rows[:whole])
    if whole < rows.size:
        rest = values[None, whole * ROW :]
        np.vecdot(rest, rest, out=rows[whole:])
    return float(rows.sum(dtype=np.float64))


def at_least(square: float, elements: int) -> float:
    """A computed squared length of so many elements, raised so that it is not below the exact one.

    Rows of at most 256 were added up in the vector's own precision, in whatever order, fused or
    not: at worst they are off by 2^-16 (1 + 2^-15) of themselves (Higham 2002, section 3.1),
    and by 2^-126 a product that underflows. ``docs/explanation/proofs/bounded-sums.md``, "The norm
    of a rounded update".
    """
    return square * (1 + 2.0**-15) + elements * 2.0**-126


class Blocks:
    """One update after another as a vector of differences from the model, in blocks.

    The vector itself is never kept: every step takes the differences anew, block by block, in
    kernels' registers or into memory that stays in a cache. A step is a few long calls a block,
    which let other threads run.

    Parameters
    ----------
    reference : sequence of ndarray
        The model that was sent, floating-point arrays of any shape.
    group_of : sequence of int
        The group of each array. Arrays of a group lie beside each other in the vector.

    Attributes
    ----------
    size : int
        How many elements the vector has.
    dtype : dtype
        Its precision: single, or double if any array of the model is.
    loaded : module or None
        Compiled code for single precision, once it was worth its loading.
    kernels : module or None
        The same, where it can read model and update: in native single precision, aligned.
    """

    def __init__(self, reference: Sequence[Vector], group_of: Sequence[int]) -> None:
        self._reference = [_read_only(np.asarray(array, order="C")) for array in reference]
        self.shapes = [array.shape for array in reference]
        self.dtype = np.result_type(np.float32, *(array.dtype for array in reference))
        self._begins = [0] * len(reference)
        self._blocks: list[Block] = []
        self._flats: list[Vector] = []
        self._groups: list[tuple[slice, int]] = []  # of each: blocks, elements
        for group in range(max(group_of, default=-1) + 1):
            self._lay_out(group, [i for i, g in enumerate(group_of) if g == group])
        self.size = sum(elements for _, elements in self._groups)
        self._squares = [0.0] * len(self._blocks)
        self._is_single = all(map(_is_single, self._reference))
        self.kernels: ModuleType | None = None
        self.loaded = sys.modules.get(_KERNELS)
        self._worked = 0  # elements of updates
        self._threads = _threads() if len(self._blocks) >= _BLOCKS_WORTH_THREADS else 1
        self._largest = max((block.size for block in self._blocks), default=0)
        self._rooms = local()
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None

    def _lay_out(self, group: int, indices: Sequence[int]) -> None:
        """Put the arrays of a group behind the groups before it, and cut blocks."""
        first, before = sum(elements for _, elements in self._groups), len(self._blocks)
        begin = end = first
        pieces: list[Piece] = []

        def close() -> None:
            nonlocal begin, pieces
            self._blocks.append(Block(len(self._blocks), slice(begin, end), group, pieces))
            begin, pieces = end, []

        for index in indices:
            array = self._reference[index]
            self._begins[index], done = end, 0
            while done < array.size:
                take = min(array.size - done, _BLOCK - (end - begin))
                source, place = slice(done, done + take), slice(end - begin, end - begin + take)
                pieces.append(Piece(index, source, place, array[source]))
                done, end = done + take, end + take
                if end - begin == _BLOCK:
                    close()
        if pieces:
            close()
        self._groups.append((slice(before, len(self._blocks)), end - first))

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def update(self, arrays: Sequence[Vector]) -> Iterator[None]:
        """Have arrays, shaped as the model, for the update; they must not change meanwhile."""
        self._worked += self.size
        if self.loaded is None and self._worked >= _WORTH_KERNELS:
            self.loaded = load_kernels()
        self._flats = [_read_only(array) for array in arrays]
        single = self._is_single and all(map(_is_single, self._flats))
        self.kernels = self.loaded if single else None
        try:
            yield
        finally:
            self._flats = []

    def step(self, work: Callable[[Block], object]) -> None:
        """Do the work of every block.

        Threads take block after block, so that a waiting one delays no other. Every other step
        goes backwards, and so begins with what the last one left in the caches.
        """
        todo, lock = iter(self._blocks), Lock()
        self._blocks = self._blocks[::-1]

        def take() -> None:
            with np.errstate(all="ignore"):  # infinities and NaN show in the squares
                while True:
                    with lock:
                        block = next(todo, None)
                    if block is None:
                        return
                    work(block)

        pool, others = self._pool, range(self._threads - 1)
        waiting = [] if pool is None else [pool.submit(take) for _ in others]
        take()
        for other in waiting:
            other.result()

    def room(self, block: Block) -> Vector:
        """Memory of the thread for as many numbers as a block has, always the same."""
        room: Vector | None = getattr(self._rooms, "memory", None)
        if room is None:
            room = self._rooms.memory = np.empty(self._largest, self.dtype)
        return room[: block.size]

    def subtract(self, block: Block) -> Vector:
        """The differences from the model in a block, in this thread's room."""
        room = self.room(block)
        for update, reference, place in self.pieces(block):
            np.subtract(update, reference, out=room[place], dtype=self.dtype, casting="same_kind")
        return room

    def pieces(self, block: Block) -> Iterator[tuple[Vector, Vector, slice]]:
        """A block's parts of the update and of the model, and their places in it."""
        for piece in block.pieces:
            yield self._flats[piece.index][piece.source], piece.reference, piece.place

    def square(self, block: Block) -> float:
        """The squared length of the update in a block, kept for :meth:`measured`.

        Without kernels the differences are in this thread's room then.
        """
        if self.kernels is None:
            square = square_of(self.subtract(block))
        else:
            square = 0.0
            for update, reference, _ in self.pieces(block):
                square += self.kernels.square(update, reference)
        self._squares[block.number] = square
        return square

    def measure(self) -> list[float]:
        """For each group, the sum of the update's squares; never below the exact one.

        Infinite or NaN where an element is, or where the sum is too large for the precision.
        """
        self.step(self.square)
        return self.measured()

    def measured(self) -> list[float]:
        """The same, when the squares of all blocks were taken."""
        squares = [
            at_least(sum(self._squares[blocks]), elements) for blocks, elements in self._groups
        ]
        most = float(np.finfo(self.dtype).max)
        return [math.inf if square > most else square for square in squares]

    def arrays(self, vector: Vector) -> list[Vector]:
        """A vector cut into arrays of the model's shapes, without a copy."""
        parts = zip(self._begins, self._reference, self.shapes, strict=True)
        return [vector[b : b + array.size].reshape(shape) for b, array, shape in parts]

    def close(self) -> None:
        """Let the threads and their memory go."""
        if self._pool is not None:
            self._pool.shutdown()
        self._rooms = local()


def _read_only(array: Vector) -> Vector:
    """Flat, and of one type for kernels, whoever may write to the array."""
    flat = array.reshape(-1).view()
    flat.flags.writeable = False
    return flat


def _is_single(flat: Vector) -> bool:
    flags = flat.flags
    return flat.dtype == np.float32 and flags.c_contiguous and flags.aligned


def _threads() -> int:
    """The cores of this process, up to four: more would wait for memory."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 4)
    return min(os.cpu_count() or 1, 4)
