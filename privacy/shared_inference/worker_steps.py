r"""What a worker computes: steps on masked values, with a message to the other for each opening.

Both workers know x̂ = x + r of every wire. Of weights W = Ŵ + S, where Ŵ is public to them and S the
model's masks, the shares of y = W·x + b add up from

.. math:: y_b = A_b x̂ - Ŵ r_b - (S r)_b + b_b,  A_0 = Ŵ + S_0,  A_1 = S_1,

all but the first before a question comes. Where the workers know W, an affine map is of shares, and
opens nothing unless what follows needs it. The sign of x in k bits is that of x̂, XOR that of r, XOR
[x̂ mod 2^(k-1) < r mod 2^(k-1)], whose shares are two bits (:mod:`.comparison`); it is opened hidden
by a random bit t. With u the opened bit of "not negative", max(x, 0) is x - t·x where u is 1, and
t·x elsewhere, and t·x = t·x̂ - t·r has shares. A maximum of two is max(a - b, 0) + b. Of a window,
whose pairs are all compared at once, each element has tables by the outcomes that were opened: with
w the shares of "it wins" and v those of w·r, the largest is the sum of all w·x̂ - v.

Shortening: with 2^62 added x is positive, so that for shift f, R = r >> f and m the top bit of r

.. math:: (x̂ >> f) - R + m (1 - top(x̂)) 2^{64-f}

is x >> f or one more: x̂ wrapped where r is large and x̂ small, and the borrow of the bits that go is
left out. It never fails (Boyle et al., EUROCRYPT 2021, section 4, has the borrow too). Modulo 2^k,
k <= 64 - f, it is (x̂ >> f) - R: a comparison of what is shortened takes these, which are f bits
narrower than x̂ and r, and gives the sign of the number that is selected.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.kernels import compiled
from privacy.shared_inference.comparison import Bits, evaluate
from privacy.shared_inference.errors import MessageError
from privacy.shared_inference.material import (
    NO_MASK,
    Shares,
    StepShares,
    compared_values,
    derived,
    outcomes,
)
from privacy.shared_inference.plan import (
    AffineStep,
    ComparingStep,
    LargestStep,
    LineStep,
    MaximumStep,
    Plan,
    ReluStep,
    SquareStep,
    compared,
)
from privacy.shared_inference.ring import Buffer, Ring, Stream

Conversation = Generator[bytes, Buffer, Ring]
"""Yields what goes to the other worker, is sent what comes from it, returns a share."""
_OFFSET = np.uint64(1 << 62)
_ONE = np.uint64(1)
_TOP = np.uint64(63)


@dataclass(frozen=True, eq=False)
class WeightShares:
    """A worker's share of a model, and the masked weights; both of shape (plan.weights,).

    Where the workers know the model, both are the weights themselves.
    """

    holder: int
    masked: Ring
    own: Ring

    @classmethod
    def of(cls, holder: int, masked: Ring, masks: Ring) -> "WeightShares":
        """Of the masked weights and the worker's share of their masks."""
        return cls(holder, masked, masked + masks if holder == 0 else masks)

    @classmethod
    def public(cls, holder: int, weights: Ring) -> "WeightShares":
        """Of a model that the workers know."""
        return cls(holder, weights, weights)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A question's material, with all that can be computed before the question comes.

    Attributes
    ----------
    shares : Shares
    constants : list of ndarray of uint64
        Of affine steps: what is added to A·x̂; of others: the mask of what they open.
    masks : list of ndarray of uint64
        The worker's shares of wires' masks; empty where a wire is not opened.
    """

    shares: Shares
    constants: list[Ring]
    masks: list[Ring]


def prepare(plan: Plan, weights: WeightShares, shares: Shares) -> Prepared:
    """Do a question's work ahead."""
    masks, constants, start = [shares.input_mask], [], 0
    for step, part in zip(plan.steps, shares.steps, strict=True):
        constant = np.zeros((step.size, plan.batch_size), np.uint64)
        if isinstance(step, AffineStep):
            for source, structure in zip(step.sources, step.structures, strict=True):
                data = weights.masked[start : start + structure.entries]
                if plan.masked[source]:
                    structure.multiply(data, masks[source], constant)
                start += structure.entries
            bias = weights.own[start : start + step.size]
            start += step.size
            np.negative(constant, out=constant)
            if not plan.public_model:
                constant -= part.known[0]
            if weights.holder == 0 or not plan.public_model:
                constant += bias[:, None]
        masks.append(NO_MASK)
        if part.mask is not None:
            masks[-1] = part.mask
            if isinstance(step, MaximumStep):
                masks[-1] = np.concatenate([part.mask, masks[step.source][step.rest]])
            constant = constant + part.mask if isinstance(step, AffineStep) else part.mask
        elif isinstance(step, MaximumStep):
            constant = constant[: len(step.left)]
        constants.append(constant)
    if plan.public_model:
        # Shares of the answer are affine in shares of what went before, some of which the data
        # owner knows: without this they would tell of the weights.
        hidden = Stream(derived(shares.pair_seed, "answer")).take(*constants[-1].shape)
        constants[-1] = constants[-1] + (hidden if weights.holder == 0 else -hidden)
    return Prepared(shares, constants, masks)


def answer(
    plan: Plan, weights: WeightShares, prepared: Prepared, masked_input: Ring
) -> Conversation:
    """A worker's share of the answer, shape (outputs, batch).

    ``wires`` are what it has of each wire: the masked values, or a share where none is opened.

    Raises
    ------
    MessageError
        If the other worker's message has another length than the plan says.
    """
    wires, start = [masked_input], 0
    holder = weights.holder
    for index, step in enumerate(plan.steps):
        part, constant = prepared.shares.steps[index], prepared.constants[index]
        if isinstance(step, AffineStep):
            share = constant.copy()
            for source, structure in zip(step.sources, step.structures, strict=True):
                data = weights.own[start : start + structure.entries]
                if not (plan.public_model and plan.masked[source] and holder == 1):
                    structure.multiply(data, wires[source], share)
                start += structure.entries
            start += step.size
        elif isinstance(step, SquareStep):
            mask = prepared.masks[step.source]
            share = _squared(step, holder, wires[step.source], mask, part, constant)
        else:
            share = yield from _selected(plan, step, holder, wires, prepared, index)
        if index == len(plan.steps) - 1:
            return share
        if plan.masked[index + 1]:
            share = yield from _opened(share)
        if isinstance(step, MaximumStep):
            rest = wires[step.source][step.rest]
            if not plan.masked[index + 1]:
                hidden = prepared.masks[step.source][step.rest]
                rest = rest - hidden if holder == 0 else -hidden
            share = np.concatenate([share, rest])
        wires.append(share)
    raise ValueError("the plan has no steps")


def _opened(share: Ring) -> Conversation:
    """The sum of both workers' shares."""
    other = yield share.astype("<u8", copy=False).tobytes()
    added = np.frombuffer(_checked(other, share.nbytes), dtype="<u8")
    return share + added.astype(np.uint64, copy=False).reshape(share.shape)


def _checked(message: Buffer, size: int) -> Buffer:
    if len(message) != size:
        raise MessageError(f"the other worker sent {len(message)} bytes, the plan has {size}")
    return message


def _selected(
    plan: Plan,
    step: ComparingStep,
    holder: int,
    wires: Sequence[Ring],
    prepared: Prepared,
    index: int,
) -> Conversation:
    """A share of max(x, 0) of a wire, or of the largest of elements of it, plus the mask."""
    part, base = prepared.shares.steps[index], prepared.constants[index]
    wire, mask = wires[step.source], prepared.masks[step.source]
    x = compared_values(step, wire)
    if isinstance(step, LineStep):
        x = x - np.repeat(_ring(step.knots), step.size)[:, None]
    if isinstance(step, MaximumStep):
        base = base - mask[step.right]
        if holder == 0:
            base = base + wire[step.right]
    width = np.uint64(step.width - 1)
    flat = x.ravel()
    low = flat & np.uint64((1 << (step.width - 1)) - 1)
    permutation = prepared.shares.permutation
    bits = evaluate(holder, low, step.width - 1, part.seeds, part.corrections, permutation)
    bits ^= part.bits
    if holder == 0:
        bits ^= ((flat >> width) & _ONE).astype(np.uint8)
    count = compared(step) * plan.batch_size
    other = yield np.packbits(bits, bitorder="little").tobytes()
    packed = np.frombuffer(_checked(other, -(-count // 8)), np.uint8)
    bits ^= np.unpackbits(packed, count=count, bitorder="little")
    share = np.empty(base.shape, np.uint64)
    if isinstance(step, LargestStep):
        _largest(step, bits, wire, part.known, base, share)
        return share
    if isinstance(step, LineStep):
        opened = bits.reshape(len(step.knots), *wire.shape)
        return base + _line(step, holder, opened, wire, mask, part.known)
    if isinstance(step, ReluStep) and step.shift:
        t, t_short, short, top, t_top = _flat(part.known)
        x, base, into = _flat([wire, base, share])
        _select_short(holder, step.shift, bits, x, t, t_short, short, top, t_top, base, into)
        return share
    t, t_r = part.known
    r = compared_values(step, mask)
    _select(holder, bits, flat, r.ravel(), t.ravel(), t_r.ravel(), base.ravel(), share.ravel())
    return share


def _largest(
    step: LargestStep, bits: Bits, wire: Ring, tables: Sequence[Ring], base: Ring, share: Ring
) -> None:
    """A share of the largest of each window, plus the mask, by the outcomes of comparisons."""
    count = base.size
    opened = bits.reshape(len(step.pairs), count)
    places = np.stack([outcomes(step, element, opened) for element in range(step.window)])
    values = wire[step.windows.T].reshape(step.window, count)
    wins, hidden = (table.reshape(step.window, step.entries, count) for table in tables)
    _look_up(places, values, wins, hidden, base.ravel(), share.ravel())


def _line(
    step: LineStep, holder: int, bits: Bits, wire: Ring, mask: Ring, known: Sequence[Ring]
) -> Ring:
    """A share of a line of pieces, by which knots lie below: shape (elements, batch)."""
    shape = (len(step.knots), *wire.shape)
    t, t_r = (part.reshape(shape) for part in known[:2])
    kept, wrapped = wire, np.zeros_like(wire)
    t_top = np.zeros_like(t)
    own = wire - mask if holder == 0 else -mask
    if step.shift:
        kept, wrapped = _shortened(wire, step.shift)
        t_top, (short, top) = known[2].reshape(shape), known[3:]
        own = _short_share(holder, kept, wrapped, short, top)
    made: Ring = own * _ring((step.slope,))
    if holder == 0:
        made += _ring((step.offset,))
    for place, (knot, turn) in enumerate(zip(_ring(step.knots), _ring(step.turns), strict=True)):
        flipped = t[place] * (kept - knot) - t_r[place] + t_top[place] * wrapped
        above = own - flipped - knot if holder == 0 else own - flipped
        made += turn * np.where(bits[place], above, flipped)
    return made


def _ring(numbers: Sequence[int]) -> Ring:
    return np.array(numbers, dtype=np.int64).astype(np.uint64)


@compiled
def _shortened(masked: Any, shift: int) -> tuple[Any, Any]:
    """The public parts of x >> shift, and what a wrap adds to it; of a number, or of an array."""
    lifted = masked + _OFFSET
    kept = (lifted >> np.uint64(shift)) - (_OFFSET >> np.uint64(shift))
    return kept, (_ONE - (lifted >> _TOP)) << np.uint64(64 - shift)


def _short_share(holder: int, kept: Ring, wrapped: Ring, short: Ring, top: Ring) -> Ring:
    share = top * wrapped - short
    return share + kept if holder == 0 else share


def _squared(
    step: SquareStep, holder: int, wire: Ring, mask: Ring, part: StepShares, base: Ring
) -> Ring:
    """A share of the square, plus the mask."""
    share = np.empty(base.shape, np.uint64)
    x, r, base, into = _flat([wire, mask, base, share])
    if step.shift:
        squared, short, top, top_short = _flat(part.known)
        _square_short(holder, step.shift, x, squared, short, top, top_short, base, into)
    else:
        _square(holder, x, r, part.known[0].ravel(), base, into)
    return share


def _flat(arrays: Sequence[Ring]) -> list[Ring]:
    return [array.reshape(-1) for array in arrays]


@compiled
def _select(
    holder: int, bits: Bits, x: Ring, r: Ring, t: Ring, t_r: Ring, base: Ring, share: Ring
) -> None:
    for place in range(len(x)):
        flipped = t[place] * x[place] - t_r[place]
        made = flipped
        if bits[place]:
            made = -r[place] - flipped
            if holder == 0:
                made += x[place]
        share[place] = base[place] + made


@compiled
def _look_up(
    places: NDArray[np.intp], values: Ring, wins: Ring, hidden: Ring, base: Ring, share: Ring
) -> None:
    for window in range(len(share)):
        made = base[window]
        for element in range(len(places)):
            place = places[element, window]
            made += wins[element, place, window] * values[element, window]
            made -= hidden[element, place, window]
        share[window] = made


@compiled
def _select_short(
    holder: int,
    shift: int,
    bits: Bits,
    x: Ring,
    t: Ring,
    t_short: Ring,
    short: Ring,
    top: Ring,
    t_top: Ring,
    base: Ring,
    share: Ring,
) -> None:
    for place in range(len(x)):
        kept, wrapped = _shortened(x[place], shift)
        flipped = t[place] * kept - t_short[place] + t_top[place] * wrapped
        made = flipped
        if bits[place]:
            made = top[place] * wrapped - short[place] - flipped
            if holder == 0:
                made += kept
        share[place] = base[place] + made


@compiled
def _square(holder: int, x: Ring, r: Ring, squared: Ring, base: Ring, share: Ring) -> None:
    for place in range(len(x)):
        made = base[place] + squared[place] - np.uint64(2) * x[place] * r[place]
        if holder == 0:
            made += x[place] * x[place]
        share[place] = made


@compiled
def _square_short(
    holder: int,
    shift: int,
    x: Ring,
    squared: Ring,
    short: Ring,
    top: Ring,
    top_short: Ring,
    base: Ring,
    share: Ring,
) -> None:
    """(kept - R + m·wrapped)², where m² = m."""
    two = np.uint64(2)
    for place in range(len(x)):
        kept, wrapped = _shortened(x[place], shift)
        made = squared[place] + top[place] * wrapped * (wrapped + two * kept)
        made += base[place] - two * (kept * short[place] + wrapped * top_short[place])
        if holder == 0:
            made += kept * kept
        share[place] = made
