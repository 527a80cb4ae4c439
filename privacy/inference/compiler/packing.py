"""Where values lie in slots, and which rotations bring them together.

Vectors are periodic in the slots: slot s of a ciphertext holds the entry that ``layout[s mod p]``
names. The first layer lets the data owner copy inputs to where they are needed, so that it takes
one product a ciphertext and a tree of rotations. Middle layers multiply diagonals, baby steps and
giant steps (Halevi and Shoup 2018, sections 4.1 and 4.4), and the last layer is read out of
polynomial coefficients, which takes no rotation at all.
"""

from collections.abc import Iterator

import numpy as np

from privacy.inference.arithmetic.network import Affine
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
) -> Gather:
    """Pack the first of several layers.

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
    return Gather(
        taps_of.reshape(parts, ciphertexts, slots),
        weights,
        _spread_bias(affine, layout, slots),
        sums,
        layout if following is not None else layout[:padded],
    )


def block_sums(slots: int, blocks: int, *, paired: bool) -> Sums:
    """The doublings that add up the blocks of a first layer, and both parts of a slot."""
    parts: Sums = ((CONJUGATE,),) if paired else ()
    return copy_sums(slots, slots // blocks) + parts


def copy_sums(width: int, outputs: int) -> Sums:
    """The doublings that add up stretches of ``outputs`` slots, ``width`` in all."""
    return tuple((outputs << step,) for step in range((width // outputs).bit_length() - 1))


def steps_between(inputs: int, outputs: int, period: int) -> int:
    """Rotations (the one by nothing included) of a layer between padded sizes."""
    return min(inputs, outputs, max(1, inputs * outputs // period))


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
        steps = steps_between(padded, following, period)
        layout = slots % steps + steps * (slots // following % (padded // steps))
    return np.where(layout < size, layout, EMPTY).astype(np.int32)


def _spread_bias(affine: Affine, layout: Indices, slots: int) -> Slots:
    one = np.where(layout == EMPTY, 0.0, affine.bias[np.maximum(layout, 0)])
    return np.tile(one, slots // len(layout))


def splits(count: int) -> Iterator[tuple[int, int]]:
    """Baby and giant steps for ``count`` rotations: no fewer baby steps, which cost less."""
    for log in range((count - 1).bit_length() + 1):
        baby = min(1 << log, count)
        giant = -(-count // baby)
        if baby >= giant:
            yield baby, giant


def diagonals(affine: Affine, layout: Indices, slots: int, *, baby: int, sums: Sums) -> Diagonals:
    """Pack a middle layer whose input lies in ``layout``; ``sums`` as of :func:`copy_sums`."""
    period, padded = len(layout), power_of_two(affine.outputs)
    if padded > slots:
        raise ValueError(f"{affine.outputs} outputs do not fit into {slots} slots")
    width = max(period, padded)
    values = np.zeros((padded, affine.inputs))
    values[: affine.outputs] = affine.matrix.toarray()
    missing = np.zeros((padded, affine.inputs), dtype=bool)
    missing[: affine.outputs] = affine.structure.toarray()
    outputs = np.arange(padded)
    by_step: dict[int, Slots] = {}
    for step in range(min(padded, period)):
        if not missing.any():
            break
        weights, wanted_any = np.zeros(width), False
        for start in range(0, width, padded):
            entries = layout[(start + outputs + step) % period]
            wanted = (entries != EMPTY) & missing[outputs, np.maximum(entries, 0)]
            if wanted.any():
                chosen = entries[wanted]
                weights[start + outputs[wanted]] = values[outputs[wanted], chosen]
                missing[outputs[wanted], chosen] = False
                wanted_any = True
        if wanted_any:
            by_step[step] = np.tile(weights, slots // width)
    giant = max(by_step, default=0) // baby + 1
    packed = {
        (step // baby, step % baby): np.roll(weights, step // baby * baby)
        for step, weights in by_step.items()
    }
    out = periodic_layout(affine.outputs, padded, None)
    return Diagonals(baby, giant, packed, _spread_bias(affine, out, slots), sums, out)


def readouts(affine: Affine, layout: Indices, roots: ComplexSlots) -> tuple[Readout, ...]:
    """Pack the last of several layers; ``layout`` must hold every entry once a period.

    A slot whose root is ζ contributes Re(z·ζ̄ᵏ)/slots to coefficient k. Over the copies of an
    entry the powers of ζ cancel unless k is a multiple of their number, so as many logits as
    there are copies fit below it, and as many again, a quarter turn away, from N/2 on.
    """
    slots = len(roots)
    copies = slots // len(layout)
    slot_entry = np.tile(layout, copies)
    used = slot_entry != EMPTY
    weights = affine.matrix.toarray()
    result = []
    for start in range(0, affine.outputs, 2 * copies):
        outputs = range(start, min(start + 2 * copies, affine.outputs))
        positions = [k if k < copies else slots - copies + k for k in (o - start for o in outputs)]
        values = np.zeros(slots, dtype=np.complex128)
        for output, position in zip(outputs, positions, strict=True):
            values[used] += weights[output, slot_entry[used]] * roots[used] ** position
        result.append(
            Readout(
                values * (slots / copies),
                tuple(positions),
                affine.bias[start : start + len(positions)],
            )
        )
    return tuple(result)


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
