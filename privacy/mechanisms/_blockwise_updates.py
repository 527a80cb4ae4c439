"""An update in blocks that fit a cache: its norm, and the work on every block."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[Any]

_BLOCK = 1 << 18  # elements; long calls, and still in a cache when the next call comes
_BLOCKS_WORTH_THREADS = 3  # below that many, handing work to a thread costs more than it saves
_ROW = 256  # elements added up in single precision before double precision takes over


@dataclass(frozen=True)
class _Piece:
    """What lies in a block of one array: where, the model's values, the place of the difference."""

    index: int
    source: slice
    reference: Vector
    difference: Vector


@dataclass(frozen=True)
class Block:
    """A stretch ``update`` of the vector, at ``span``, of arrays that are clipped together."""

    span: slice
    group: int
    update: Vector
    _pieces: list[_Piece]
    _rows: list[tuple[Vector, Vector]]  # the stretch in rows, and where their squares go

    def read(self, flats: Sequence[Vector]) -> None:
        """Take the difference of flat arrays from the model."""
        for piece in self._pieces:
            np.subtract(
                flats[piece.index][piece.source],
                piece.reference,
                out=piece.difference,
                dtype=self.update.dtype,
                casting="same_kind",
            )

    def square(self) -> None:
        """Square the stretch as it is now; ``Blocks.squares`` gives the sums.

        In rows, because single precision holds no longer sums, and BLAS wakes threads of its
        own for long vectors.
        """
        for rows, squares in self._rows:
            np.vecdot(rows, rows, out=squares)


class Blocks:
    """One update after another as a vector of differences from the model, in blocks.

    A step is a few long numpy calls a block, which let other threads run.

    Parameters
    ----------
    reference : sequence of ndarray
        The model that was sent, floating-point arrays of any shape.
    group_of : sequence of int
        The group of each array. Arrays of a group lie beside each other in the vector.

    Attributes
    ----------
    vector : ndarray
        The update; in single precision, or in double if any array of the model is.
    """

    def __init__(self, reference: Sequence[Vector], group_of: Sequence[int]) -> None:
        self._reference = [np.asarray(array, order="C").reshape(-1) for array in reference]
        self.shapes = [array.shape for array in reference]
        size = sum(array.size for array in reference)
        dtype = np.result_type(np.float32, *(array.dtype for array in reference))
        self.vector: Vector = np.empty(size, dtype)
        self._begins = [0] * len(reference)
        self._blocks: list[Block] = []
        self._groups: list[tuple[int, Vector]] = []  # of each: elements, squares of the rows
        for group in range(max(group_of, default=-1) + 1):
            self._lay_out(group, [i for i, g in enumerate(group_of) if g == group])
        self._threads = _threads() if len(self._blocks) >= _BLOCKS_WORTH_THREADS else 1
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None

    def _lay_out(self, group: int, indices: Sequence[int]) -> None:
        """Put the arrays of a group behind the groups before it, and cut blocks."""
        first = begin = end = sum(elements for elements, _ in self._groups)
        size = sum(self._reference[index].size for index in indices)
        squares: Vector = np.empty(-(-size // _ROW), self.vector.dtype)
        pieces: list[_Piece] = []

        def close() -> None:
            nonlocal begin, pieces
            update = self.vector[begin:end]
            row, whole = (begin - first) // _ROW, update.size // _ROW
            parts = [
                (update[: whole * _ROW].reshape(-1, _ROW), squares[row : row + whole]),
                (update[whole * _ROW :].reshape(1, -1), squares[row + whole :]),
            ]
            rows = [part for part in parts if part[0].size]
            self._blocks.append(Block(slice(begin, end), group, update, pieces, rows))
            begin, pieces = end, []

        for index in indices:
            array = self._reference[index]
            self._begins[index], done = end, 0
            while done < array.size:
                take = min(array.size - done, _BLOCK - (end - begin))
                source, target = slice(done, done + take), slice(end, end + take)
                pieces.append(_Piece(index, source, array[source], self.vector[target]))
                done, end = done + take, end + take
                if end - begin == _BLOCK:
                    close()
        if pieces:
            close()
        self._groups.append((size, squares))

    def step(self, work: Callable[[Block], None]) -> None:
        """Do the work of every block.

        Threads take block after block, so that a waiting one delays no other. Every other step
        goes backwards, and so begins with blocks that the last one left in the caches.
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

        others = []
        if self._pool is not None:
            others = [self._pool.submit(take) for _ in range(self._threads - 1)]
        take()
        for other in others:
            other.result()

    def read(self, arrays: Sequence[Vector]) -> None:
        """Read arrays, shaped as the model, as the update, and square it."""
        flats = [array.reshape(-1) for array in arrays]

        def read(block: Block) -> None:
            block.read(flats)
            block.square()

        self.step(read)

    def squares(self) -> list[float]:
        """For each group, the sum of squares when all blocks were last squared; never below."""
        with np.errstate(over="ignore"):
            return [_squares_at_most(rows, elements) for elements, rows in self._groups]

    def arrays(self) -> list[Vector]:
        """The vector cut into arrays of the model's shapes, without a copy."""
        parts = zip(self._begins, self._reference, self.shapes, strict=True)
        return [self.vector[b : b + array.size].reshape(shape) for b, array, shape in parts]

    def close(self) -> None:
        """Let the threads go; the vector stays."""
        if self._pool is not None:
            self._pool.shutdown()


def _squares_at_most(rows: Vector, elements: int) -> float:
    """The sum of squares of a vector, never below the exact one, from those of its rows.

    Rows of at most 256 were added up in the vector's own precision, in whatever order, fused or
    not: at worst they are off by 2^-16 (1 + 2^-15) of themselves (Higham 2002, section 3.1),
    and by 2^-126 a product that underflows. ``docs/explanation/proofs/bounded-sums.md``, "The norm
    of a rounded update".
    """
    return float(rows.sum(dtype=np.float64)) * (1 + 2.0**-15) + elements * 2.0**-126


def _threads() -> int:
    """The cores of this process, up to four: more would wait for memory."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 4)
    return min(os.cpu_count() or 1, 4)
