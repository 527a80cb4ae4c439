"""The plan of a compiled model: everything that is public about it.

A model is steps in a row. Each makes a *wire*, a vector of integers modulo 2^64 that is shared
between the workers and of which both know the sum with a mask that neither knows. Wire 0 is the
input, wire i comes of step i. A plan has shapes, scales and proved widths; it has no weights. The
widths tell how large values can get, in powers of 16, and so tell that much of the weights.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.input_range import InputRange, shown
from privacy.inference.input_range import input_range as written_range
from privacy.json_text import read_json
from privacy.shared_inference.comparison import key_words
from privacy.shared_inference.errors import MessageError
from privacy.shared_inference.ring import Structure

_MAGIC = b"BSSP"
_VERSION = 3
_HEAD = struct.Struct("<4sBQ")
MAX_WIDTH = 62
"""Bits of a value that is compared or shortened, with its sign."""
_MAX_PLAN_BYTES = 1 << 30
_MAX_ELEMENTS = 1 << 26
MAX_WORDS = 1 << 28
"""Of a plan's :attr:`Plan.words`: who reads a plan must not be made to set aside any memory."""
_MAX_AXES = 32
Places = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AffineStep:
    """A sum of matrices on wires, plus a bias: weights, which are shared."""

    sources: tuple[int, ...]
    structures: tuple[Structure, ...]

    @property
    def size(self) -> int:
        """Elements of the wire that it makes."""
        return self.structures[0].rows

    @property
    def weights(self) -> int:
        """Entries of the matrices, and the bias."""
        return sum(structure.entries for structure in self.structures) + self.size


@dataclass(frozen=True, eq=False)
class ReluStep:
    """max(x, 0), where x is shortened by ``shift`` bits before: then ``width`` bits hold it."""

    source: int
    size: int
    width: int
    shift: int


@dataclass(frozen=True, eq=False)
class SquareStep:
    """x², where x is shortened by ``shift`` bits before."""

    source: int
    size: int
    shift: int


@dataclass(frozen=True, eq=False)
class MaximumStep:
    """The larger of two elements, for pairs of places; ``rest`` follows as it is.

    ``width`` bits hold the difference of a pair with its sign.
    """

    source: int
    left: Places
    right: Places
    rest: Places
    width: int

    @property
    def size(self) -> int:
        """Elements of the wire that it makes."""
        return len(self.left) + len(self.rest)


@dataclass(frozen=True, eq=False)
class LargestStep:
    """The largest element of each window, by comparing all pairs of a window at once.

    Attributes
    ----------
    source, width : int
        ``width`` bits hold the difference of a pair with its sign.
    windows : ndarray of int32, shape (maxima, window)
        Places; a window has 3 or 4.
    """

    source: int
    windows: Places
    width: int

    @property
    def size(self) -> int:
        """Elements of the wire that it makes."""
        return len(self.windows)

    @property
    def window(self) -> int:
        """Elements of a window."""
        return int(self.windows.shape[1])

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Which elements of a window are compared: the earlier one first."""
        return tuple(combinations(range(self.window), 2))

    def pairs_of(self, element: int) -> list[tuple[int, int]]:
        """The pairs of an element: their numbers, and the bit that each has where it wins."""
        return [
            (number, int(pair[0] == element))
            for number, pair in enumerate(self.pairs)
            if element in pair
        ]

    @property
    def entries(self) -> int:
        """Of an element's table: one for every outcome of its comparisons."""
        return 1 << (self.window - 1)


@dataclass(frozen=True, eq=False)
class LineStep:
    """A line of pieces on each element: offset + slope·x + Σ turns·max(x - knots, 0).

    x is shortened by ``shift`` bits before; ``width`` bits hold its distance from every knot, with
    its sign.
    """

    source: int
    size: int
    width: int
    shift: int
    offset: int
    slope: int
    knots: tuple[int, ...]
    turns: tuple[int, ...]


ComparingStep = ReluStep | MaximumStep | LargestStep | LineStep
Step = AffineStep | SquareStep | ComparingStep
_WINDOWS = (3, 4)
_MAX_KNOTS = 256


@dataclass(frozen=True, eq=False)
class Plan:
    """What a data owner, the workers and the provider know of a compiled model.

    Attributes
    ----------
    input_shape : tuple of int
        Of one input, without the batch.
    input_range : pair
        Lowest and highest values, as in :mod:`privacy.inference.input_range`.
    batch_size : int
        Images of a question.
    logits : int
        How many the model has.
    answer : str
        ``"logits"``, or ``"class"``: the place of the largest.
    input_bits, answer_bits : int
        Fractional bits of the input and of the logits.
    error : float
        Proved: no logit of any input in the range differs by more from the model's own.
    public_model : bool
        Whether the workers know the weights.
    steps : tuple of Step
    """

    input_shape: tuple[int, ...]
    input_range: InputRange
    batch_size: int
    logits: int
    answer: str
    input_bits: int
    answer_bits: int
    error: float
    public_model: bool
    steps: tuple[Step, ...]

    @property
    def inputs(self) -> int:
        """Elements of one input."""
        return math.prod(self.input_shape)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each wire."""
        return (self.inputs, *(step.size for step in self.steps))

    @cached_property
    def masked(self) -> tuple[bool, ...]:
        """Of each wire, whether it is opened under a mask; of others a worker has its share alone.

        The answer is not. Where the workers know the weights, affine maps are of shares, so that
        the rest of the steps alone need what is opened.
        """
        last = len(self.steps)
        if not self.public_model:
            return (*[True] * last, False)
        read = {step.source for step in self.steps if not isinstance(step, AffineStep)}
        return tuple(wire == 0 or wire in read for wire in range(last + 1))

    @cached_property
    def weights(self) -> int:
        """Numbers of the model that the workers get."""
        return sum(step.weights for step in self.steps if isinstance(step, AffineStep))

    @cached_property
    def words(self) -> int:
        """64-bit words of the model, and of a question's wires and comparison keys."""
        keys = sum(correction_words(step, self.batch_size) for step in self.steps)
        return self.weights + sum(self.sizes) * self.batch_size + keys

    @property
    def class_bits(self) -> int:
        """Bits that hold a class."""
        return (self.logits - 1).bit_length()

    @cached_property
    def exchanges(self) -> int:
        """Messages that each worker sends the other about a question: rounds."""
        comparing = sum(isinstance(step, ComparingStep) for step in self.steps)
        return comparing + sum(self.masked[1:])

    @cached_property
    def exchanged_bytes(self) -> int:
        """Of those messages together, without their frames, one way."""
        total = 0
        for index, step in enumerate(self.steps):
            total += compared_bytes(step, self.batch_size)
            if self.masked[index + 1]:
                total += 8 * opened(step) * self.batch_size
        return total

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name the plan."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """The plan for others; :meth:`from_bytes` reads it."""
        arrays: list[Places] = []

        def keep(array: Places | None) -> int:
            if array is None:
                return -1
            arrays.append(array)
            return len(array)

        steps: list[dict[str, Any]] = []
        for step in self.steps:
            if isinstance(step, AffineStep):
                terms = [
                    [source, s.rows, s.columns, keep(s.pointers), keep(s.indices)]
                    for source, s in zip(step.sources, step.structures, strict=True)
                ]
                steps.append({"kind": "affine", "terms": terms})
            elif isinstance(step, MaximumStep):
                places = [keep(part) for part in (step.left, step.right, step.rest)]
                fields = {"source": step.source, "width": step.width, "places": places}
                steps.append({"kind": "maximum", **fields})
            elif isinstance(step, LargestStep):
                fields = {"source": step.source, "width": step.width, "window": step.window}
                steps.append({"kind": "largest", **fields, "places": keep(step.windows.ravel())})
            else:
                kind = type(step).__name__.removesuffix("Step").lower()
                steps.append({"kind": kind, **vars(step)})
        fields = {**vars(self), "steps": steps}
        names = [*Plan.__dataclass_fields__]
        head = json.dumps({name: fields[name] for name in names}, separators=(",", ":")).encode()
        body = b"".join(array.astype("<i4").tobytes() for array in arrays)
        return _HEAD.pack(_MAGIC, _VERSION, len(head)) + head + body

    @classmethod
    def from_bytes(cls, given: bytes) -> "Plan":
        """A plan that :meth:`to_bytes` wrote.

        Raises
        ------
        MessageError
            If it is none, or its parts do not fit together.
        """
        try:
            return _read(given)
        except MessageError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise MessageError(f"the plan's parts do not fit together: {error}") from error
        except (struct.error, OverflowError) as error:
            raise MessageError("not a plan of shared inference") from error

    def __str__(self) -> str:
        """For people: what the plan asks of whom."""
        lines = [
            f"{self.inputs} inputs in {shown(self.input_range)}, {self.logits} logits, "
            f"{self.batch_size} image{'s' * (self.batch_size > 1)} a question",
            f"fixed point of {self.input_bits} bits, logits of {self.answer_bits}; no logit is off "
            f"by more than {self.error:.2g}",
            "the workers know the model" if self.public_model else "the model is in shares",
        ]
        for step in self.steps:
            name = type(step).__name__.removesuffix("Step").lower()
            if isinstance(step, AffineStep):
                lines.append(f"{name}: {step.weights} weights to {step.size} values")
            elif isinstance(step, MaximumStep):
                lines.append(f"{name}: {len(step.left)} pairs in {step.width} bits")
            elif isinstance(step, LargestStep):
                lines.append(f"{name}: {step.size} windows of {step.window} in {step.width} bits")
            else:
                width = "" if isinstance(step, SquareStep) else f" in {step.width} bits"
                if isinstance(step, LineStep):
                    width = f", {len(step.knots)} knots each{width}"
                shift = f", shortened by {step.shift}" if step.shift else ""
                lines.append(f"{name}: {step.size} values{width}{shift}")
        lines.append(f"{self.exchanges} exchanges of {self.exchanged_bytes} bytes in all each way")
        return "\n".join(lines)


def compared(step: Step) -> int:
    """Comparisons of one image."""
    if isinstance(step, ReluStep):
        return step.size
    if isinstance(step, LargestStep):
        return step.size * len(step.pairs)
    if isinstance(step, LineStep):
        return step.size * len(step.knots)
    return len(step.left) if isinstance(step, MaximumStep) else 0


def compared_bytes(step: Step, batch: int) -> int:
    """Of the bits that are opened."""
    return -(-compared(step) * batch // 8)


def opened(step: Step) -> int:
    """Elements of one image that are opened under a new mask."""
    return len(step.left) if isinstance(step, MaximumStep) else step.size


def correction_words(step: Step, batch: int) -> int:
    """64-bit words of a step's comparison keys, which both workers get."""
    if not isinstance(step, ComparingStep):
        return 0
    return key_words(step.width - 1) * compared(step) * batch


class _Arrays:
    """Reads arrays off a plan, in order."""

    def __init__(self, body: bytes) -> None:
        self._values = np.frombuffer(body, dtype="<i4").astype(np.int32)
        self._offset = 0

    def take(self, count: int, below: int) -> Places:
        """The next ``count`` numbers, all in [0, below)."""
        part = self._values[self._offset : self._offset + _whole(count, 0, _MAX_ELEMENTS)]
        self._offset += count
        if len(part) != count or (count and not 0 <= part.min() <= part.max() < below):
            raise MessageError("the plan's arrays do not fit together")
        return part

    def check_end(self) -> None:
        if self._offset != len(self._values):
            raise MessageError("the plan has bytes too many")


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise MessageError(f"the plan has {value!r} where {low} to {high} is allowed")
    return value


def _read(given: bytes) -> Plan:
    if not isinstance(given, bytes | bytearray | memoryview) or len(given) > _MAX_PLAN_BYTES:
        raise MessageError("a plan is bytes, 1 GiB at most")
    given = bytes(given)
    magic, version, length = _HEAD.unpack_from(given)
    if magic != _MAGIC:
        raise MessageError("not a plan of shared inference")
    if version != _VERSION:
        raise MessageError(
            f"a plan of format {version}, and this release reads format {_VERSION}; use the same "
            "release everywhere, and compile the model anew"
        )
    start = _HEAD.size
    fields: dict[str, Any] = read_json(given[start : start + length])
    if fields.keys() != Plan.__dataclass_fields__.keys():
        raise MessageError("the plan's fields are others; use the same release on both sides")
    arrays = _Arrays(given[start + length :])
    shape = tuple(_whole(size, 1, _MAX_ELEMENTS) for size in fields["input_shape"])
    _whole(len(shape), 0, _MAX_AXES)
    sizes = [_whole(math.prod(shape), 1, _MAX_ELEMENTS)]
    steps = []
    for listed in fields["steps"]:
        step = _step(listed, sizes, arrays)
        sizes.append(_whole(step.size, 1, _MAX_ELEMENTS))
        steps.append(step)
    arrays.check_end()
    logits, answer = _whole(fields["logits"], 1, _MAX_ELEMENTS), fields["answer"]
    error, public = fields["error"], fields["public_model"]
    if type(public) is not bool:
        raise MessageError("the plan does not say who knows the model")
    if not steps or answer not in ("logits", "class") or not _is_error(error):
        raise MessageError("the plan's answer is of no known kind")
    if steps[-1].size != (1 if answer == "class" else logits) or (
        not isinstance(steps[-1], MaximumStep | LargestStep if answer == "class" else AffineStep)
    ):
        raise MessageError("the plan's last step makes no such answer")
    low, high = map(_tuples, fields["input_range"])
    plan = Plan(
        input_shape=shape,
        input_range=written_range("input_range", (low, high), shape),
        batch_size=_whole(fields["batch_size"], 1, _MAX_ELEMENTS),
        logits=logits,
        answer=answer,
        input_bits=_whole(fields["input_bits"], 0, MAX_WIDTH),
        answer_bits=_whole(fields["answer_bits"], 0, MAX_WIDTH),
        error=float(error),
        public_model=public,
        steps=tuple(steps),
    )
    if plan.words > MAX_WORDS:
        raise MessageError(f"the plan takes {plan.words} words of memory; {MAX_WORDS} are allowed")
    if plan.to_bytes() != given:
        raise MessageError("the plan is not written as this release writes it")
    return plan


def _is_error(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _step(listed: dict[str, Any], sizes: Sequence[int], arrays: _Arrays) -> Step:
    def source(value: Any) -> int:
        return _whole(value, 0, len(sizes) - 1)

    make: dict[str, Callable[[], Step]] = {
        "affine": lambda: _affine(listed["terms"], sizes, source, arrays),
        "relu": lambda: ReluStep(
            source(listed["source"]),
            sizes[listed["source"]],
            *_width_and_shift(listed),
        ),
        "square": lambda: SquareStep(
            source(listed["source"]),
            sizes[listed["source"]],
            _whole(listed["shift"], 0, MAX_WIDTH - 1),
        ),
        "line": lambda: _line(listed, sizes, source),
        "maximum": lambda: _maximum(listed, sizes, source, arrays),
        "largest": lambda: _largest(listed, sizes, source, arrays),
    }
    if listed["kind"] not in make:
        raise MessageError(f"the plan has a step of kind {listed['kind']!r:.20}")
    return make[listed["kind"]]()


def _width_and_shift(listed: dict[str, Any]) -> tuple[int, int]:
    """Bits that are compared, and bits below them that are not: no more than a number has."""
    shift = _whole(listed["shift"], 0, MAX_WIDTH - 1)
    return _whole(listed["width"], 2, min(MAX_WIDTH, 64 - shift)), shift


def _affine(
    terms: Any, sizes: Sequence[int], source: Callable[[Any], int], arrays: _Arrays
) -> AffineStep:
    sources, structures = [], []
    for given, rows, columns, pointers, indices in terms:
        number = source(given)
        rows = _whole(rows, 1, _MAX_ELEMENTS)
        if columns != sizes[number]:
            raise MessageError("a matrix of the plan does not fit its wire")
        if (pointers, indices) == (-1, -1):
            structures.append(Structure(rows, columns))
        else:
            ends = arrays.take(rows + 1, _MAX_ELEMENTS)
            places = arrays.take(indices, columns)
            if pointers != rows + 1 or ends[0] or ends[-1] != indices or (np.diff(ends) < 0).any():
                raise MessageError("a matrix of the plan has no such rows")
            structures.append(Structure(rows, columns, ends, places))
        sources.append(number)
    if len({structure.rows for structure in structures}) != 1:
        raise MessageError("matrices of one step differ in their rows")
    return AffineStep(tuple(sources), tuple(structures))


def _maximum(
    listed: dict[str, Any], sizes: Sequence[int], source: Callable[[Any], int], arrays: _Arrays
) -> MaximumStep:
    number = source(listed["source"])
    left, right, rest = (arrays.take(count, sizes[number]) for count in listed["places"])
    if len(left) != len(right) or len(left) == 0:
        raise MessageError("a maximum of the plan has no pairs")
    return MaximumStep(number, left, right, rest, _whole(listed["width"], 2, MAX_WIDTH))


def _line(listed: dict[str, Any], sizes: Sequence[int], source: Callable[[Any], int]) -> LineStep:
    number, most = source(listed["source"]), 1 << MAX_WIDTH
    knots, turns = (
        tuple(_whole(value, -most, most) for value in listed[name]) for name in ("knots", "turns")
    )
    if not 1 <= len(knots) == len(turns) <= _MAX_KNOTS or list(knots) != sorted({*knots}):
        raise MessageError("a line of the plan has no such knots")
    return LineStep(
        number,
        sizes[number],
        *_width_and_shift(listed),
        _whole(listed["offset"], -most, most),
        _whole(listed["slope"], -most, most),
        knots,
        turns,
    )


def _largest(
    listed: dict[str, Any], sizes: Sequence[int], source: Callable[[Any], int], arrays: _Arrays
) -> LargestStep:
    number, window = source(listed["source"]), _whole(listed["window"], *_WINDOWS)
    places = arrays.take(listed["places"], sizes[number])
    if len(places) == 0 or len(places) % window:
        raise MessageError("a maximum of the plan has no such windows")
    width = _whole(listed["width"], 2, MAX_WIDTH)
    return LargestStep(number, places.reshape(-1, window), width)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def rounds_of(windows: NDArray[np.int64], together: int) -> list[tuple[Places, ...]]:
    """What is compared, round by round, until the maxima of windows are left.

    Parameters
    ----------
    windows : ndarray of int, shape (maxima, size)
        Places in a wire, of size 2 or more. Elements of a window meet in the order of the window,
        so that of equal ones the earliest is the largest.
    together : int
        Elements whose pairs are all compared at once, 2 to 4. More take fewer rounds, and more
        comparisons.

    Returns
    -------
    list of tuples of ndarray
        Places in the wire before it: of pairs (left, right, rest), or of windows, alone.
    """
    rounds: list[tuple[Places, ...]] = []
    while windows.shape[1] > 1:
        count, size = windows.shape
        groups = -(-size // together)
        window = -(-size // groups)
        if window > 2:
            # The first element fills up: an equal one more changes no maximum.
            filler = np.repeat(windows[:, :1], groups * window - size, axis=1)
            filled = np.hstack([windows, filler]).reshape(count * groups, window)
            rounds.append((filled.astype(np.int32),))
            windows = np.arange(count * groups).reshape(count, groups)
            continue
        pairs = size // 2
        left, right = windows[:, 0 : 2 * pairs : 2], windows[:, 1 : 2 * pairs : 2]
        rest = windows[:, 2 * pairs :]
        rounds.append(tuple(part.ravel().astype(np.int32) for part in (left, right, rest)))
        made = np.arange(count * pairs).reshape(count, pairs)
        over = count * pairs + np.arange(rest.size).reshape(rest.shape)
        windows = np.hstack([made, over])
    return rounds
