"""An update in blocks that fit a cache: the work on every block, and bounds of its norm."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[Any]

_BLOCK = 1 << 17  # elements; long calls, and half of a core's second cache
_BLOCKS_WORTH_THREADS = 5  # below that many, handing work to a thread costs more than it saves
_ROW = 256  # elements added up in single precision before double precision takes over


@dataclass(frozen=True)
class Piece:
    """What lies in a block of one array: where there, where in the block, the model's values."""

    index: int
    source: slice
    place: slice
    reference: Vector


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of the vector, at ``span``, of arrays that are clipped together.

    ``squares`` holds the squared lengths of the update's rows here, once they were taken.
    """

    span: slice
    group: int
    squares: Vector
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return int(self.span.stop - self.span.start)


def squares_of_rows(values: Vector, out: Vector) -> None:
    """The squared length of each row of values.

    Rows, because single precision holds no longer sums, and BLAS wakes threads of its own for long
    vectors.
    """
    whole = values.size // _ROW
    if whole:
        rows = values[: whole * _ROW].reshape(-1, _ROW)
        np.vecdot(rows, rows, out=out[:whole])
    if whole < out.size:
        rest = values[None, whole * _ROW :]
        np.vecdot(rest, rest, out=out[whole:])


def squares_at_most(rows: Vector, elements: int) -> float:
    """The sum of squares of a vector, never below the exact one, from those of its rows.

    Rows of at most 256 were added up in the vector's own precision, in whatever order, fused or
    not: at worst they are off by 2^-16 (1 + 2^-15) of themselves (Higham 2002, section 3.1),
    and by 2^-126 a product that underflows. ``docs/explanation/proofs/bounded-sums.md``, "The norm
    of a rounded update".
    """
    with np.errstate(over="ignore"):
        total = float(rows.sum(dtype=np.float64))
    return total * (1 + 2.0**-15) + elements * 2.0**-126


class Blocks:
    """One update after another as a vector of differences from the model, in blocks.

    The vector itself is never kept: every step takes the differences anew, block by block, into
    memory that stays in a cache. A step is a few long numpy calls a block, which let other threads
    run.

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
    is_single : bool
        Whether kernels can read model and update: native single precision, aligned.
    """

    def __init__(self, reference: Sequence[Vector], group_of: Sequence[int]) -> None:
        self._reference = [_read_only(np.asarray(array, order="C")) for array in reference]
        self.shapes = [array.shape for array in reference]
        self.dtype = np.result_type(np.float32, *(array.dtype for array in reference))
        self._begins = [0] * len(reference)
        self._blocks: list[Block] = []
        self._flats: list[Vector] = []
        self.is_single = False
        self._groups: list[tuple[int, Vector]] = []  # of each: elements, squares of the rows
        for group in range(max(group_of, default=-1) + 1):
            self._lay_out(group, [i for i, g in enumerate(group_of) if g == group])
        self.size = sum(elements for elements, _ in self._groups)
        self._threads = _threads() if len(self._blocks) >= _BLOCKS_WORTH_THREADS else 1
        largest = max((block.size for block in self._blocks), default=0)
        self._rooms = [np.empty(largest, self.dtype) for _ in range(self._threads)]
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None

    def _lay_out(self, group: int, indices: Sequence[int]) -> None:
        """Put the arrays of a group behind the groups before it, and cut blocks."""
        first = begin = end = sum(elements for elements, _ in self._groups)
        size = sum(self._reference[index].size for index in indices)
        squares: Vector = np.empty(-(-size // _ROW), self.dtype)
        pieces: list[Piece] = []

        def close() -> None:
            nonlocal begin, pieces
            rows = squares[(begin - first) // _ROW : -((first - end) // _ROW)]
            self._blocks.append(Block(slice(begin, end), group, rows, pieces))
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
        self._groups.append((size, squares))

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def update(self, arrays: Sequence[Vector]) -> Iterator[None]:
        """Have arrays, shaped as the model, for the update; they must not change meanwhile."""
        self._flats = [_read_only(array) for array in arrays]
        self.is_single = all(map(_is_single, [*self._flats, *self._reference]))
        try:
            yield
        finally:
            self._flats = []

    def step(self, work: Callable[[Block, Vector], None]) -> None:
        """Do the work of every block, given room for as many numbers as it has.

        Threads take block after block, so that a waiting one delays no other. Every other step
        goes backwards, and so begins with what the last one left in the caches.
        """
        todo, lock = iter(self._blocks), Lock()
        self._blocks = self._blocks[::-1]

        def take(room: Vector) -> None:
            with np.errstate(all="ignore"):  # infinities and NaN show in the squares
                while True:
                    with lock:
                        block = next(todo, None)
                    if block is None:
                        return
                    work(block, room[: block.size])

        own, *others = self._rooms
        waiting = [] if self._pool is None else [self._pool.submit(take, room) for room in others]
        take(own)
        for other in waiting:
            other.result()

    def subtract(self, block: Block, room: Vector) -> None:
        """The differences from the model in a block."""
        for update, reference, place in self.pieces(block):
            np.subtract(update, reference, out=room[place], dtype=self.dtype, casting="same_kind")

    def pieces(self, block: Block) -> Iterator[tuple[Vector, Vector, slice]]:
        """A block's parts of the update and of the model, and their places in it."""
        for piece in block.pieces:
            yield self._flats[piece.index][piece.source], piece.reference, piece.place

    def measure(self) -> list[float]:
        """For each group, the sum of the update's squares; never below the exact one."""

        def square(block: Block, room: Vector) -> None:
            self.subtract(block, room)
            squares_of_rows(room, block.squares)

        self.step(square)
        return self.measured()

    def measured(self) -> list[float]:
        """The same, when the squares of all blocks were taken."""
        return [squares_at_most(rows, elements) for elements, rows in self._groups]

    def arrays(self, vector: Vector) -> list[Vector]:
        """A vector cut into arrays of the model's shapes, without a copy."""
        parts = zip(self._begins, self._reference, self.shapes, strict=True)
        return [vector[b : b + array.size].reshape(shape) for b, array, shape in parts]

    def close(self) -> None:
        """Let the threads and their memory go."""
        if self._pool is not None:
            self._pool.shutdown()
        self._rooms = []


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
