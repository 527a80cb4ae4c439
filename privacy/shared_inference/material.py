r"""Correlated randomness for one question: what the provider deals, and what a worker reads of it.

Every wire has a mask r that neither worker knows. The provider knows all masks and deals, for each
step, shares of what the workers need of them: the matrix of the model's masks times r; a random bit
t and t·r for every comparison; r² for a square; and, where values are shortened, of R = r >> f and
the top bit m of r, and of their products. Where all pairs of a window are compared at once, the
workers get for each element a table with an entry for every outcome of its comparisons, as they
will be opened: 1 at the one with which it wins, and 0 elsewhere, and the same times r. Keys of
comparisons (:mod:`.comparison`) are made for r.

What is random in a share comes of a worker's seed. The first worker, number 0, gets nothing else
but correction words; the second one gets what completes the sums too::

    seed 32 | input seed 32 | pair seed 32 | correction words | completions of worker 1

The data owner gets both input seeds, of which the input's mask is made. Each seed serves one
question.
"""

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms.randomness import Randomness
from privacy.shared_inference.aes import KEY_BYTES, PublicPermutation
from privacy.shared_inference.comparison import Bits, levels, make_keys, seeds_of
from privacy.shared_inference.plan import (
    AffineStep,
    ComparingStep,
    LargestStep,
    LineStep,
    MaximumStep,
    Plan,
    ReluStep,
    SquareStep,
    Step,
    compared,
    correction_words,
    opened,
)
from privacy.shared_inference.ring import SEED_BYTES, Buffer, Ring, Stream

OWNER_PIECE_BYTES = 2 * SEED_BYTES
_HEAD_BYTES = 3 * SEED_BYTES
NO_MASK = np.empty((0, 0), np.uint64)
"""Of a wire that is not opened."""
_ONE = np.uint64(1)


def worker_piece_bytes(plan: Plan, holder: int) -> int:
    """Of the material of a question, for worker 0 or 1."""
    words = sum(correction_words(step, plan.batch_size) for step in plan.steps)
    if holder == 1:
        words += sum(completions(plan, step) for step in plan.steps) * plan.batch_size
        words += sum(-(-compared(step) * plan.batch_size // 64) for step in plan.steps)
    return _HEAD_BYTES + 8 * words


def completions(plan: Plan, step: Step) -> int:
    """Numbers of one image of which a step needs shares, beside masks."""
    if isinstance(step, AffineStep):
        return 0 if plan.public_model else step.size
    if isinstance(step, ReluStep):
        return (5 if step.shift else 2) * step.size
    if isinstance(step, SquareStep):
        return (4 if step.shift else 1) * step.size
    if isinstance(step, LargestStep):
        return 2 * step.size * step.window * step.entries
    if isinstance(step, LineStep):
        return ((3 if step.shift else 2) * len(step.knots) + 2 * (step.shift > 0)) * step.size
    return 2 * len(step.left)


def derived(seed: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose (HMAC-SHA256 as in RFC 5869's expansion)."""
    return hmac.digest(seed, purpose.encode() + b"\x01", hashlib.sha256)


@dataclass
class StepShares:
    """A worker's shares for a step.

    Attributes
    ----------
    mask : ndarray of uint64, shape (elements, batch), optional
        Of what the step opens; None where it opens nothing.
    known : list of ndarray of uint64
        Of what the provider knows, in the order of :func:`_known`.
    seeds, corrections, bits : ndarray
        Of comparisons, of all images in a row.
    """

    mask: Ring | None
    known: list[Ring] = field(default_factory=list)
    seeds: Ring = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    corrections: Ring = field(default_factory=lambda: np.empty((0, 0, 2), np.uint64))
    bits: Bits = field(default_factory=lambda: np.empty(0, np.uint8))


@dataclass
class Shares:
    """A worker's part of one question's material, read."""

    input_seed: bytes
    pair_seed: bytes
    input_mask: Ring
    steps: list[StepShares]
    permutation: PublicPermutation


def permutation(pair_seed: bytes) -> PublicPermutation:
    """The one of a question's comparisons: AES under a key that both workers know."""
    return PublicPermutation(derived(pair_seed, "permutation")[:KEY_BYTES])


def read_piece(plan: Plan, holder: int, piece: Buffer) -> Shares:
    """A worker's shares, of a piece of :func:`worker_piece_bytes`."""
    seed, input_seed, pair_seed = (
        bytes(piece[start : start + SEED_BYTES]) for start in range(0, _HEAD_BYTES, SEED_BYTES)
    )
    words = np.frombuffer(piece, dtype="<u8", offset=_HEAD_BYTES).astype(np.uint64, copy=False)
    own, batch, offset = Stream(seed), plan.batch_size, 0

    def given(*shape: int) -> Ring:
        nonlocal offset
        count = int(np.prod(shape, dtype=np.int64))
        part = words[offset : offset + count].reshape(shape)
        offset += count
        return part

    steps = []
    for index, step in enumerate(plan.steps):
        shares = _drawn(plan, index, own)
        count = compared(step) * batch
        if count:
            shares.corrections = given(levels(_width(step)) + 1, count, 2)
        for shape in _shapes(plan, step):
            shares.known.append(own.take(*shape) if holder == 0 else given(*shape))
        if holder == 1 and count:
            packed = given(-(-count // 64)).astype("<u8").view(np.uint8)
            shares.bits = np.unpackbits(packed, count=count, bitorder="little")
        steps.append(shares)
    mask = Stream(input_seed).take(plan.inputs, batch)
    return Shares(input_seed, pair_seed, mask, steps, permutation(pair_seed))


def input_mask(plan: Plan, owner_piece: Buffer) -> tuple[Ring, bytes, bytes]:
    """The mask of a question's input, shape (inputs, batch), and both workers' input seeds."""
    seeds = bytes(owner_piece[:SEED_BYTES]), bytes(owner_piece[SEED_BYTES:])
    first, second = (Stream(seed).take(plan.inputs, plan.batch_size) for seed in seeds)
    return first + second, *seeds


def deal(plan: Plan, model_masks: Ring, randomness: Randomness) -> tuple[Buffer, Buffer, bytes]:
    """Material for one question: the pieces of worker 0, of worker 1, and of the data owner.

    ``model_masks`` hides the weights, shape (plan.weights,).
    """
    drawn = randomness.bytes(5 * SEED_BYTES)
    seeds = [drawn[start : start + SEED_BYTES] for start in range(0, len(drawn), SEED_BYTES)]
    dealing = _Dealing(plan, seeds, randomness)
    start = 0
    for index, step in enumerate(plan.steps):
        weights = model_masks[start : start + _weights(step)]
        start += len(weights)
        dealing.step(index, weights)
    first, second = (piece.data.toreadonly() for piece in dealing.pieces)
    return first, second, b"".join(seeds[2:4])


class _Dealing:
    """One question's masks, followed through the steps."""

    def __init__(self, plan: Plan, seeds: Sequence[bytes], randomness: Randomness) -> None:
        self._plan, self._randomness = plan, randomness
        self._streams = [Stream(seed) for seed in seeds[:2]]
        self._pi = permutation(seeds[4])
        first, second = (Stream(seed).take(plan.inputs, plan.batch_size) for seed in seeds[2:4])
        self._masks = [first + second]
        self.pieces: list[NDArray[np.uint8]] = []
        """What each worker gets."""
        self._rest: list[Ring] = []  # of the pieces, not yet written
        for holder in (0, 1):
            piece = np.empty(worker_piece_bytes(plan, holder), np.uint8)
            head = b"".join((seeds[holder], seeds[2 + holder], seeds[4]))
            piece[:_HEAD_BYTES] = np.frombuffer(head, np.uint8)
            self.pieces.append(piece)
            self._rest.append(piece[_HEAD_BYTES:].view("<u8"))

    def step(self, index: int, weights: Ring) -> None:
        """Deal one step."""
        step = self._plan.steps[index]
        first, second = (_drawn(self._plan, index, stream) for stream in self._streams)
        secret = np.zeros(0, np.uint64)
        if isinstance(step, ComparingStep):
            secret = self._comparisons(step, first, second)
        shapes = _shapes(self._plan, step)
        known = _known(step, self._masks, weights, secret) if shapes else []
        for truth, shape in zip(known, shapes, strict=True):
            np.subtract(truth.reshape(shape), self._streams[0].take(*shape), self._next(1, shape))
        if isinstance(step, ComparingStep):
            self._hidden_signs(step, first, secret)
        if first.mask is None or second.mask is None:
            self._masks.append(NO_MASK)
            return
        made = first.mask + second.mask
        if isinstance(step, MaximumStep):
            made = np.concatenate([made, self._masks[step.source][step.rest]])
        self._masks.append(made)

    def _comparisons(self, step: ComparingStep, first: StepShares, second: StepShares) -> Ring:
        """Deal comparisons with the masks; the random bits that hide their results."""
        alpha = compared_values(step, self._masks[step.source]).ravel()
        alpha = alpha & np.uint64((1 << _width(step)) - 1)
        shape = (levels(_width(step)) + 1, len(alpha), 2)
        words = self._next(0, shape)
        make_keys(alpha, _width(step), first.seeds, second.seeds, self._pi, words)
        self._next(1, shape)[:] = words
        packed = np.frombuffer(self._randomness.bytes(-(-len(alpha) // 8)), np.uint8)
        return np.unpackbits(packed, count=len(alpha)).astype(np.uint64)

    def _hidden_signs(self, step: ComparingStep, first: StepShares, secret: Ring) -> None:
        """The masks' sign bits, and that a value is not negative, hidden by the random bits."""
        masks = compared_values(step, self._masks[step.source]).ravel()
        signs = (masks >> np.uint64(_width(step))) & _ONE
        padded = np.zeros(-(-len(secret) // 64) * 64, np.uint8)
        padded[: len(secret)] = (signs ^ secret ^ _ONE).astype(np.uint8) ^ first.bits
        packed = np.packbits(padded, bitorder="little").view("<u8")
        self._next(1, packed.shape)[:] = packed

    def _next(self, holder: int, shape: tuple[int, ...]) -> Ring:
        """Where the next words of a piece are written."""
        count = math.prod(shape)
        part, self._rest[holder] = self._rest[holder][:count], self._rest[holder][count:]
        return part.reshape(shape)


def _drawn(plan: Plan, index: int, own: Stream) -> StepShares:
    """What a worker's stream has for a step: a mask, and seeds of comparisons with a bit each."""
    step, batch = plan.steps[index], plan.batch_size
    masked = plan.masked[index + 1]
    shares = StepShares(own.take(opened(step), batch) if masked else None)
    if compared(step):
        words = own.take(compared(step) * batch, 2)
        shares.seeds, shares.bits = seeds_of(words), (words[:, 0] & _ONE).astype(np.uint8)
    return shares


def _known(step: Step, masks: Sequence[Ring], weights: Ring, secret: Ring) -> list[Ring]:
    """What the provider knows of a step, of which it deals shares."""
    if isinstance(step, AffineStep):
        batch = masks[0].shape[1]
        total, start = np.zeros((step.size, batch), np.uint64), 0
        for source, structure in zip(step.sources, step.structures, strict=True):
            data = weights[start : start + structure.entries]
            structure.multiply(data, masks[source], total)
            start += structure.entries
        return [total]
    if isinstance(step, LargestStep):
        return _tables(step, masks[step.source], secret)
    if isinstance(step, MaximumStep):
        r = compared_values(step, masks[step.source])
        t = secret.reshape(r.shape)
        return [t, t * r]
    r, shift = masks[step.source], np.uint64(step.shift)
    short, top = r >> shift, r >> np.uint64(63)
    if isinstance(step, LineStep):
        t = secret.reshape(len(step.knots), *r.shape)
        listed = [t, t * short, t * top, short, top] if step.shift else [t, t * short]
        return [part.reshape(-1, r.shape[1]) for part in listed]
    if isinstance(step, SquareStep):
        return [r * r] if not step.shift else [short * short, short, top, top * short]
    t = secret.reshape(r.shape)
    return [t, t * r] if not step.shift else [t, t * short, short, top, t * top]


def _tables(step: LargestStep, r: Ring, secret: Ring) -> list[Ring]:
    """For each element of a window, by outcomes as they are opened: whether it wins, and r then."""
    rows, batch = step.size, r.shape[1]
    bits = secret.reshape(len(step.pairs), rows * batch)
    wins = np.zeros((step.window, step.entries, rows * batch), np.uint64)
    for element in range(step.window):
        outcome = outcomes(step, element, bits, winning=True)
        wins[element, outcome, np.arange(rows * batch)] = 1
    masks = r[step.windows.T].reshape(step.window, 1, rows * batch)
    return [wins, wins * masks]


def outcomes(
    step: LargestStep, element: int, bits: Ring | Bits, *, winning: bool = False
) -> NDArray[np.intp]:
    """Entries of an element's table: its pairs' bits in a row; ``bits`` has shape (pairs, ...).

    ``winning`` takes bits for the ones that hide, and gives the entry where the element wins.
    """
    place = np.zeros(bits.shape[1:], np.intp)
    for number, (pair, win) in enumerate(step.pairs_of(element)):
        bit = bits[pair].astype(np.intp)
        place |= (bit ^ win if winning else bit) << number
    return place


def compared_values(step: ComparingStep, values: Ring) -> Ring:
    """What is compared, shape (comparisons, batch), of a wire's values or masks.

    It is compared with zero, and of a line with its knots in turn: their masks are alike. Where a
    value is shortened, its bits below take no part.
    """
    if isinstance(step, MaximumStep):
        return values[step.left] - values[step.right]
    if isinstance(step, LargestStep):
        columns = step.windows.T
        return np.concatenate([values[columns[i]] - values[columns[j]] for i, j in step.pairs])
    short = values >> np.uint64(step.shift) if step.shift else values
    return np.tile(short, (len(step.knots), 1)) if isinstance(step, LineStep) else short


def _shapes(plan: Plan, step: Step) -> list[tuple[int, int]]:
    """Of what the provider knows of a step."""
    batch = plan.batch_size
    if isinstance(step, LineStep):
        rows = step.size * len(step.knots)
        return [(rows, batch)] * (3 if step.shift else 2) + [(step.size, batch)] * (
            2 if step.shift else 0
        )
    rows = len(step.left) if isinstance(step, MaximumStep) else step.size
    if isinstance(step, LargestStep):
        rows *= step.window * step.entries
    return [(rows, batch)] * (completions(plan, step) // rows)


def _width(step: Step) -> int:
    """Bits of the numbers that a step compares: those of its values without the sign."""
    if isinstance(step, ComparingStep):
        return step.width - 1
    raise TypeError(f"{type(step).__name__} compares nothing")


def _weights(step: Step) -> int:
    return step.weights if isinstance(step, AffineStep) else 0
