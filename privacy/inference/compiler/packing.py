"""Where values lie in slots, and which rotations bring them together.

Vectors are periodic in the slots: slot s of a ciphertext holds the entry that ``layout[s mod p]``
names. The first layer lets the data owner copy inputs to where they are needed, so that it takes
one product a ciphertext and a tree of rotations. Middle layers multiply diagonals, baby steps and
giant steps (Halevi and Shoup 2018, sections 4.1 and 4.4), those diagonals alone that the
architecture does not leave empty: of a convolution a few for each pair of channels. The last layer
is read out of polynomial coefficients, which takes no rotation at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.inference.arithmetic.network import Affine, Layer, Vector
from privacy.inference.arithmetic.program import (
    ComplexSlots,
    Diagonals,
    Gather,
    Products,
    Readout,
    Slots,
    Sums,
)
from privacy.inference.ckks import CONJUGATE
from privacy.inference.plan import EMPTY, Indices


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << max(0, count - 1).bit_length()


def gather(
    affine: Affine, slots: int, *, blocks: int, paired: bool, following: int | None, sums: Sums
) -> tuple[Gather, Indices]:
    """Pack a layer that reads the input; with it, where its outputs lie.

    Parameters
    ----------
    affine : Affine
    slots : int
    blocks : int
        A power of two: into how many blocks of slots the terms of a sum are dealt.
    paired : bool
        Whether a slot holds two inputs, as its real and imaginary part.
    following : int or None
        The padded outputs of a middle layer that follows; the outputs are then laid out so that
        it needs the fewest rotations.
    sums : Sums
        As :func:`block_sums` gives them, or with doublings taken together.
    """
    padded, period = power_of_two(affine.outputs), slots // blocks
    if padded > period:
        raise ValueError(f"{affine.outputs} outputs do not fit into {period} slots")
    layout = periodic_layout(affine.outputs, period, following)
    structure = affine.structure
    counts = np.diff(structure.indptr)
    width = max(1, int(counts.max()))
    rows = np.full((affine.outputs, width), EMPTY, dtype=np.int32)
    values = np.zeros((affine.outputs, width))
    matrix = affine.matrix
    for row in range(affine.outputs):
        taps = np.sort(structure.indices[structure.indptr[row] : structure.indptr[row + 1]])
        rows[row, : len(taps)] = taps
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        values[row, np.searchsorted(taps, matrix.indices[part])] = matrix.data[part]
    parts = 2 if paired else 1
    ciphertexts = -(-width // (blocks * parts))
    short = ciphertexts * blocks * parts - width
    rows = np.pad(rows, ((0, 0), (0, short)), constant_values=EMPTY)
    values = np.pad(values, ((0, 0), (0, short)))
    # Term number (ciphertext, block, part) of a row goes to that part of that block.
    dealt = (affine.outputs, ciphertexts, blocks, parts)
    used = layout != EMPTY
    taps_of = np.full((parts, ciphertexts, blocks, period), EMPTY, dtype=np.int32)
    weights_of = np.zeros((parts, ciphertexts, blocks, period))
    taps_of[..., used] = rows.reshape(dealt)[layout[used]].transpose(3, 1, 2, 0)
    weights_of[..., used] = values.reshape(dealt)[layout[used]].transpose(3, 1, 2, 0)
    halves = weights_of.reshape(parts, ciphertexts, slots)
    # (x + iy)(v - iw) + its conjugate = 2(xv + yw).
    weights = (halves[0] - 1j * halves[1]) / 2 if paired else halves[0] + 0j
    laid = layout if following is not None else layout[:padded]
    return Gather(taps_of.reshape(parts, ciphertexts, slots), weights, sums), laid


def copied(affine: Affine, layout: Indices, slots: int) -> Gather:
    """Elements of the input as they are: a ciphertext in which they lie in ``layout``."""
    elements = sparse.csr_array(affine.structure).indices.astype(np.int32)
    taps = np.where(layout == EMPTY, EMPTY, elements[np.maximum(layout, 0)]).astype(np.int32)
    taps = np.tile(taps, slots // len(layout))[None, None]
    return Gather(taps, np.zeros((0, slots), dtype=np.complex128), ())


def block_sums(slots: int, blocks: int, *, paired: bool) -> Sums:
    """The doublings that add up the blocks of a first layer, and both parts of a slot."""
    parts: Sums = ((CONJUGATE,),) if paired else ()
    return copy_sums(slots, slots // blocks) + parts


def copy_sums(width: int, outputs: int) -> Sums:
    """The doublings that add up stretches of ``outputs`` slots, ``width`` in all."""
    return tuple((outputs << step,) for step in range((width // outputs).bit_length() - 1))


def periodic_layout(size: int, period: int, following: int | None) -> Indices:
    """Entry numbers by slot.

    Copies of the vector one after the other; or, for a layer with ``following`` padded outputs
    that reads every slot o + following·c and the R - 1 slots after it, arranged so that these
    hold every entry just once: the entry's number modulo R is the slot's, and the rest of it
    counts the blocks of ``following`` slots.
    """
    padded = power_of_two(size)
    slots = np.arange(period)
    if following is None or following > period:
        layout = slots % padded
    else:
        steps = min(padded, following, max(1, padded * following // period))
        layout = slots % steps + steps * (slots // following % (padded // steps))
    return np.where(layout < size, layout, EMPTY).astype(np.int32)


def spread(values: Vector, layout: Indices, slots: int) -> Slots:
    """A value for each output, where outputs lie in ``layout``."""
    one = np.where(layout == EMPTY, 0.0, values[np.maximum(layout, 0)])
    return np.tile(one, slots // len(layout))


@dataclass(frozen=True, eq=False)
class Steps:
    """The rotations of a layer's source that its architecture needs (the one by nothing included).

    ``numbers`` rise. A window splits each into a giant step, a multiple of it, and a baby step.
    """

    numbers: tuple[int, ...]

    @property
    def windows(self) -> Iterator[int]:
        """Powers of two up to the largest number."""
        return (1 << log for log in range(self.numbers[-1].bit_length() + 1))

    def babies(self, window: int) -> tuple[int, ...]:
        """The baby steps, rising."""
        if window not in self._babies:
            self._babies[window] = tuple(sorted({number % window for number in self.numbers}))
        return self._babies[window]

    def giants(self, window: int) -> int:
        """How many giant steps, those without products included."""
        return self.numbers[-1] // window + 1

    @cached_property
    def _babies(self) -> dict[int, tuple[int, ...]]:
        return {}


ALONE = Steps((0,))
"""Of a layer that rotates nothing before its products."""


@dataclass(frozen=True)
class _Places:
    """Of each entry that a matrix may have: its step, and where its stretch of slots starts."""

    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]
    steps: NDArray[np.int64]
    starts: NDArray[np.int64]


def steps_of(structure: sparse.csr_array, layout: Indices) -> Steps:
    """The steps of a layer whose source lies in ``layout``."""
    return Steps(tuple(np.unique(_placed(structure, layout).steps).tolist()) or (0,))


def _placed(structure: sparse.csr_array, layout: Indices) -> _Places:
    """Output o in slot start + o reads the input in the slot that is ``step`` slots further on.

    Of several copies of an input that with the smallest step is read.
    """
    period, padded = len(layout), power_of_two(int(structure.shape[0]))
    entries = sparse.coo_array(structure)
    outputs, inputs = (index.astype(np.int64) for index in entries.coords)
    used = np.flatnonzero(layout != EMPTY)
    used = used[np.argsort(layout[used], kind="stable")]
    counts = np.bincount(layout[used], minlength=int(structure.shape[1]))
    firsts = np.cumsum(counts) - counts
    steps = np.full(len(outputs), period, dtype=np.int64)
    starts = np.zeros(len(outputs), dtype=np.int64)
    for copy in range(int(counts.max(initial=0))):
        there = copy < counts[inputs]
        places = used[np.minimum(firsts[inputs] + copy, len(used) - 1)]
        distance = (places - outputs) % period
        nearer = there & (distance % padded < steps)
        steps[nearer] = distance[nearer] % padded
        starts[nearer] = distance[nearer] - steps[nearer]
    return _Places(outputs, inputs, steps, starts)


def diagonals(
    affine: Affine, layout: Indices, slots: int, *, source: int, window: int, sums: Sums
) -> Diagonals:
    """Pack the map of a source that lies in ``layout``; ``sums`` as of :func:`copy_sums`."""
    period, padded = len(layout), power_of_two(affine.outputs)
    if padded > slots:
        raise ValueError(f"{affine.outputs} outputs do not fit into {slots} slots")
    width = max(period, padded)
    places = _placed(affine.structure, layout)
    weights = np.asarray(affine.matrix[places.outputs, places.inputs]).ravel()
    packed: dict[tuple[int, int], Slots] = {}
    order = np.argsort(places.steps, kind="stable")
    numbers, firsts = np.unique(places.steps[order], return_index=True)
    ends = [*firsts.tolist(), len(order)]
    for step, (first, end) in zip(numbers.tolist(), pairwise(ends), strict=True):
        chosen = order[first:end]
        stretch = np.zeros(width)
        stretch[places.starts[chosen] + places.outputs[chosen]] = weights[chosen]
        giant, baby = divmod(step, window)
        packed[giant, baby] = np.roll(np.tile(stretch, slots // width), giant * window)
    return Diagonals(source, window, packed, sums)


def readouts(layer: Layer, layouts: Sequence[Indices], roots: ComplexSlots) -> tuple[Readout, ...]:
    """Pack the last of several layers, whose sources lie in ``layouts``.

    A slot whose root is ζ contributes Re(z·ζ̄ᵏ)/slots to coefficient k. Over the copies of an
    entry the powers of ζ cancel unless k is a multiple of their number, so as many logits as
    there are copies fit below it, and as many again, a quarter turn away, from N/2 on.
    """
    slots, bias = len(roots), layer.bias
    period = max(map(len, layouts))
    copies = slots // period
    matrices = [affine.matrix.toarray() for affine in layer.affines]
    entries = [np.tile(_once(layout, period), copies) for layout in layouts]
    result = []
    for start in range(0, layer.outputs, 2 * copies):
        outputs = range(start, min(start + 2 * copies, layer.outputs))
        positions = [k if k < copies else slots - copies + k for k in (o - start for o in outputs)]
        values = np.zeros((len(matrices), slots), dtype=np.complex128)
        for output, position in zip(outputs, positions, strict=True):
            turned = roots**position
            for row, matrix, entry in zip(values, matrices, entries, strict=True):
                used = entry != EMPTY
                row[used] += matrix[output, entry[used]] * turned[used]
        last = start + len(positions)
        result.append(Readout(values * (slots / copies), tuple(positions), bias[start:last]))
    return tuple(result)


def _once(layout: Indices, period: int) -> Indices:
    """Every entry at its first slot of a period alone."""
    _, firsts = np.unique(layout, return_index=True)
    once = np.full(period, EMPTY, dtype=np.int32)
    once[firsts] = layout[firsts]
    return once


def products(affine: Affine, degree: int) -> Products:
    """Pack a model that is one affine map."""
    if affine.outputs > degree:
        raise ValueError(f"{affine.outputs} outputs do not fit into {degree} coefficients")
    ciphertexts = -(-affine.outputs * affine.inputs // degree)
    share = -(-affine.inputs // ciphertexts)
    while share * affine.outputs > degree:
        ciphertexts += 1
        share = -(-affine.inputs // ciphertexts)
    weights = np.zeros((ciphertexts, degree))
    matrix = affine.matrix.toarray()
    for part in range(ciphertexts):
        block = matrix[:, part * share : (part + 1) * share]
        for output in range(affine.outputs):
            end = output * share + share
            weights[part, end - block.shape[1] : end] = block[output, ::-1]
    positions = tuple(output * share + share - 1 for output in range(affine.outputs))
    return Products(share, weights, positions, affine.bias)
