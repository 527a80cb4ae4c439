"""Fixed point: a network as integers, with a proof of how large they get and how far they are off.

A node's integers stand for its values times 2^f, with f fractional bits of its own. The input has
p, and weights have p on top of what they read. Nothing is shortened where everything fits so;
elsewhere what goes into an activation is shortened to p bits again, or to some fewer.

Two bounds go through the nodes, for every input in the range: an interval that holds each integer,
and the largest distance e of an integer, as a value, from the model's own. With W the model's
weights and W' the rounded ones, an affine map has e = Σ |W|·e + Σ |W - W'|·|x'| + |b - b'|; a ReLU
and a maximum keep e, a square makes e·(2·|x'| + e) of it, and shortening adds a unit of the last
bit that is left; a curve (:mod:`.curves`) multiplies e by its steepest slope and adds its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.shared_inference.compiler.curves import SLOPE_BITS, line
from privacy.shared_inference.compiler.network import (
    Affine,
    Curve,
    Node,
    Relu,
    Square,
    Term,
    Vector,
    Windows,
)
from privacy.shared_inference.errors import CannotPlanError
from privacy.shared_inference.plan import (
    MAX_WIDTH,
    AffineStep,
    LargestStep,
    LineStep,
    MaximumStep,
    ReluStep,
    SquareStep,
    Step,
    rounds_of,
)
from privacy.shared_inference.ring import Ring, Structure, as_ring

_SLACK = 1e-9
"""Of a bound, for the rounding of doubles."""
_BITS = (4, 28)
"""Fractional bits of weights, from the fewest to the most."""
_SMALL_BATCH = 16
"""Images of a question up to which rounds cost more than comparisons."""
_TOGETHER = 4
"""Elements of a window whose pairs are all compared at once, in small batches; else two meet."""
_COARSE = 4
"""Widths are multiples of this many bits, so that they tell less of the weights."""


class _TooLargeError(Exception):
    """Values that do not fit; ``argument`` names the layer."""


@dataclass(frozen=True, eq=False)
class _Wire:
    """Bounds of a node's integers, and of their distance from the model's values."""

    bits: int
    low: Vector
    high: Vector
    error: Vector

    @property
    def magnitude(self) -> Vector:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def width(self, shift: int) -> int:
        """Bits that hold every integer with its sign, rounded up; ``shift`` more were cut off."""
        return _width(float(self.magnitude.max()), shift)


@dataclass
class FixedPoint:
    """A network as integers.

    Attributes
    ----------
    steps : list of Step
    weights : list of ndarray of uint64
        Of each affine step: its matrices' entries, then its bias.
    input_bits, answer_bits : int
        Fractional bits of the input and of the logits.
    error : float
        The largest distance of a logit.
    """

    steps: list[Step] = field(default_factory=list)
    weights: list[Ring] = field(default_factory=list)
    input_bits: int = 0
    answer_bits: int = 0
    error: float = math.inf


def fixed_point(
    network: Sequence[Node],
    low: Vector,
    high: Vector,
    tolerances: Sequence[float],
    *,
    must_prove: bool,
    to_class: bool,
    batch_size: int,
) -> FixedPoint:
    """The coarsest integers whose logits are proved to be off by a tolerance at most.

    ``low`` and ``high`` bound the input's elements. The first of ``tolerances`` that can be proved
    is taken; without ``must_prove`` the least error that can be proved, where none of them can.
    ``to_class`` adds the place of the largest logit; ``batch_size`` is for questions.

    Raises
    ------
    CannotPlanError
        If no precision does.
    """
    reason = ""
    together = _TOGETHER if batch_size <= _SMALL_BATCH else 2
    offered: list[FixedPoint] = []
    for bits in range(_BITS[0], _BITS[1] + 1):
        for short in (None, bits, bits - 3, bits - 6):
            try:
                made = _Rounding(network, bits, short, together).of(low, high, to_class)
            except _TooLargeError as error:
                reason = f"at {bits} fractional bits {error} is too large for integers of 64 bits"
                continue
            if made.error <= tolerances[0]:
                return made
            offered.append(made)
            if short is None:
                break
    for made in offered:
        if made.error <= max(tolerances):
            return made
    if offered and not must_prove:
        return min(offered, key=lambda made: made.error)
    least = min((made.error for made in offered), default=math.inf)
    raise CannotPlanError(
        f"no precision proves a logit to within {max(tolerances):.3g}: the least error is "
        f"{least:.3g}, and {reason or 'more bits are not offered'}. Give a larger tolerance, "
        "narrow input_range, or make the model shallower"
    )


class _Rounding:
    """One choice of fractional bits, followed through the nodes."""

    def __init__(
        self, network: Sequence[Node], bits: int, short: int | None, together: int
    ) -> None:
        self._network, self._bits, self._short = network, bits, short
        self._together = together
        self._made = FixedPoint(input_bits=bits)
        self._wires: list[_Wire] = []
        self._places: list[int] = [0]  # a node's wire

    def of(self, low: Vector, high: Vector, to_class: bool) -> FixedPoint:
        unit = 2.0**self._bits
        rounding = np.full(len(low), 0.5 / unit)
        self._wires.append(_Wire(self._bits, np.rint(low * unit), np.rint(high * unit), rounding))
        for node in self._network[:-1]:
            self._node(node)
            self._places.append(len(self._wires) - 1)
        last = self._network[-1]
        if not isinstance(last, Affine):
            raise TypeError("the last node is no affine map")
        step, weights, wire = self._affine(last)
        if to_class:
            step, weights, wire = self._numbered(step, weights, wire)
        _check(wire.magnitude, 63, last.name)
        self._add(step, wire)
        self._made.weights.append(weights)
        self._made.answer_bits = wire.bits
        self._made.error = float(wire.error.max()) * (1 + _SLACK)
        if to_class:
            self._maxima(np.arange(step.size)[None], last.name, len(self._wires) - 1)
        return self._made

    def _add(self, step: Step, wire: _Wire) -> None:
        self._made.steps.append(step)
        self._wires.append(wire)

    def _node(self, node: Node) -> None:
        if isinstance(node, Affine):
            step, weights, wire = self._affine(node)
            self._made.weights.append(weights)
            self._add(step, wire)
        elif isinstance(node, Windows):
            self._maxima(node.places, node.name, self._places[node.source])
        elif isinstance(node, Curve):
            self._curve(node)
        else:
            self._activation(node)

    def _affine(self, node: Affine) -> tuple[AffineStep, Ring, _Wire]:
        sources = [self._places[term.source] for term in node.terms]
        before = [self._wires[source] for source in sources]
        bits = self._bits + max((wire.bits for wire in before), default=0)
        bias = np.rint(node.bias * 2.0**bits)
        centre, radius = bias.copy(), _SLACK * np.abs(bias)
        error = np.abs(node.bias - bias / 2.0**bits)
        structures, data = [], []
        for term, wire in zip(node.terms, before, strict=True):
            unit = 2.0 ** (bits - wire.bits)
            structure, exact = _aligned(term)
            rounded = np.rint(exact.data * unit)
            _check(np.abs(rounded), 52, node.name)
            whole = sparse.csr_array((rounded, exact.indices, exact.indptr), shape=exact.shape)
            size, read = abs(whole), wire.magnitude
            centre += whole @ ((wire.low + wire.high) / 2)
            radius += size @ ((wire.high - wire.low) / 2) + _SLACK * (size @ read)
            difference = sparse.csr_array(
                (np.abs(exact.data - rounded / unit), exact.indices, exact.indptr), exact.shape
            )
            error += abs(exact) @ wire.error + difference @ (read / 2.0**wire.bits)
            structures.append(structure)
            data.append(rounded)
        _check(np.abs(bias), 62, node.name)
        wire = _Wire(bits, centre - radius, centre + radius, error * (1 + _SLACK))
        if not np.isfinite(wire.magnitude).all():
            raise _TooLargeError(f"what comes after {node.name}")
        step = AffineStep(tuple(sources), tuple(structures))
        return step, as_ring(np.concatenate([*data, bias])), wire

    def _numbered(
        self, step: AffineStep, weights: Ring, wire: _Wire
    ) -> tuple[AffineStep, Ring, _Wire]:
        """Logits with low bits more, which hold how far from the last each is.

        The largest of such numbers is that of the largest logit, and of equal ones the first.
        """
        count = step.size
        shift = (count - 1).bit_length()
        made = weights << np.uint64(shift)
        made[-count:] += np.arange(count - 1, -1, -1, dtype=np.uint64)
        unit = 2.0**shift
        wider = _Wire(wire.bits + shift, wire.low * unit, (wire.high + 1) * unit, wire.error)
        return step, made, wider

    def _shift(self, wire: _Wire, name: str) -> int:
        shift = 0 if self._short is None else wire.bits - self._short
        if shift > 0:
            _check(wire.magnitude, MAX_WIDTH - 1, name)
        return max(shift, 0)

    def _shortened(self, wire: _Wire, name: str) -> tuple[int, _Wire]:
        """By how many bits a wire is shortened before an activation, and what it is then."""
        shift = self._shift(wire, name)
        unit, bits = 2.0**shift, wire.bits - shift
        low, high = np.floor(wire.low / unit), np.floor(wire.high / unit)
        if not shift:
            return 0, wire
        return shift, _Wire(bits, low, high + 1, wire.error + 2.0**-bits)

    def _curve(self, node: Curve) -> None:
        source = self._places[node.source]
        wire = self._wires[source]
        shift, short = self._shortened(wire, node.name)
        made = line(node.curve, node.low, node.high, short.bits)
        if not made.knots:  # a narrow range, on which the function is straight
            made = replace(made, knots=(int(np.rint(short.low.min())),), turns=(0,))
        knots = np.array(made.knots, dtype=np.float64)
        # On its pieces the line is largest and smallest at their ends.
        inside = np.clip(knots[:, None], short.low, short.high)
        ends = made.at(np.vstack([inside, short.low, short.high]))
        low, high = ends.min(axis=0), ends.max(axis=0)
        slack = _SLACK * np.maximum(np.abs(low), np.abs(high))
        parts = [abs(made.offset), *(abs(t) * float(short.magnitude.max()) for t in made.turns)]
        _check(np.array([sum(parts)]), MAX_WIDTH - 1, node.name)
        widest = float(short.magnitude.max()) + float(np.abs(knots).max())
        _check(np.array([widest]), MAX_WIDTH - 1 - shift, node.name)
        error = made.steepest * short.error + made.error
        after = _Wire(short.bits + SLOPE_BITS, low - slack, high + slack, error)
        line_of = (made.offset, made.slope, made.knots, made.turns)
        self._add(LineStep(source, len(low), _width(widest, shift), shift, *line_of), after)

    def _activation(self, node: Relu | Square) -> None:
        source = self._places[node.source]
        wire = self._wires[source]
        shift, short = self._shortened(wire, node.name)
        bits, low, high, error = short.bits, short.low, short.high, short.error
        size = len(low)
        if isinstance(node, Relu):
            _check(wire.magnitude, MAX_WIDTH - 1, node.name)
            after = _Wire(bits, np.maximum(low, 0.0), np.maximum(high, 0.0), error)
            self._add(ReluStep(source, size, short.width(shift), shift), after)
            return
        largest = np.maximum(np.abs(low), np.abs(high))
        error = error * (2 * largest / 2.0**bits + error)
        squares = _Wire(2 * bits, np.zeros(size), largest**2 * (1 + _SLACK), error)
        self._add(SquareStep(source, size, shift), squares)

    def _maxima(self, windows: NDArray[np.int64], name: str, source: int) -> None:
        for places in rounds_of(windows, self._together):
            wire = self._wires[source]
            in_pairs = len(places) > 1
            # Columns of elements that meet, and the elements that wait for the next round.
            columns = places[:2] if in_pairs else tuple(places[0].T)
            rest = places[2] if in_pairs else np.zeros(0, np.int32)
            widest = max(
                float((wire.high[one] - wire.low[other]).max())
                for one, other in permutations(columns, 2)
            )
            _check(np.array([widest]), MAX_WIDTH - 1, name)
            width = _width(max(widest, 1.0))
            step: Step = LargestStep(source, places[0], width)
            if in_pairs:
                step = MaximumStep(source, places[0], places[1], rest, width)
            low, high, error = (
                np.concatenate([np.max([part[c] for c in columns], axis=0), part[rest]])
                for part in (wire.low, wire.high, wire.error)
            )
            self._add(step, _Wire(wire.bits, low, high, error))
            source = len(self._wires) - 1


def _aligned(term: Term) -> tuple[Structure, sparse.csr_array]:
    """Where a term's entries are, and its matrix with an entry at each of them."""
    allowed = sparse.csr_array(term.structure.astype(np.float64))
    allowed.sum_duplicates()
    allowed.sort_indices()
    rows, columns = allowed.shape
    matrix = sparse.csr_array(term.matrix)
    matrix.sum_duplicates()
    matrix.sort_indices()
    keys = np.repeat(np.arange(rows), np.diff(allowed.indptr)) * columns + allowed.indices
    own = np.repeat(np.arange(rows), np.diff(matrix.indptr)) * columns + matrix.indices
    data = np.zeros(allowed.nnz)
    data[np.searchsorted(keys, own)] = matrix.data
    exact = sparse.csr_array((data, allowed.indices, allowed.indptr), shape=allowed.shape)
    if allowed.nnz == rows * columns:
        return Structure(rows, columns), exact
    pointers, indices = allowed.indptr.astype(np.int32), allowed.indices.astype(np.int32)
    return Structure(rows, columns, pointers, indices), exact


def _width(largest: float, shift: int = 0) -> int:
    """Bits that hold whole numbers up to ``largest`` in magnitude, and their sign, rounded up.

    With the bits that were cut off they are no more than a number has.
    """
    needed = math.ceil(math.log2(largest + 1)) + 1 if largest > 0 else 2
    return min(-(-max(needed, 2) // _COARSE) * _COARSE, MAX_WIDTH, 64 - shift)


def _check(magnitudes: Vector, bits: int, name: str) -> None:
    """Refuse whole numbers that are not below 2^bits."""
    if not bool((magnitudes < 2.0**bits * (1 - _SLACK)).all()):
        raise _TooLargeError(f"what comes after {name}")
