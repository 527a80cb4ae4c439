"""From a graph of values to a chain: affine maps with one polynomial between each and the next."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial as Series
from scipy import sparse

from privacy.inference.arithmetic.network import Activation, Affine, Network, Vector
from privacy.inference.compiler.lowering.carrying import Copies, fitted, stretch
from privacy.inference.compiler.lowering.stages import StagePlan, stages
from privacy.inference.compiler.lowering.values import Activated, Value, in_order
from privacy.inference.compiler.ranges import Interval, through
from privacy.inference.errors import CannotPlanError


@dataclass(frozen=True)
class _Map:
    """A value as an affine map of what stands between two stages; no matrix is the identity."""

    matrix: sparse.csr_array | None
    structure: sparse.csr_array | None
    bias: Vector
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Block:
    """A value that goes through a stage: y = scale·(x - centre), copied, summed up again."""

    value: Value
    before: Value
    scale: Vector
    centre: Vector
    copies: Copies
    back: Vector
    """Factor of the sum of copies, for each element."""
    offset: Vector

    @property
    def elements(self) -> int:
        """How many it takes."""
        return len(self.copies.shifts) * self.value.size


def chain(output: Value, *, widest: int | None) -> Network:
    """The network of a model's output.

    Raises
    ------
    CannotPlanError
        If a stage has more than ``widest`` elements.
    """
    # Where values overflow, the planner refuses them.
    with np.errstate(all="ignore"):
        return _chain(output, widest)


def _chain(output: Value, widest: int | None) -> Network:
    order = in_order(output)
    (start,) = (value for value in order if not value.parents and not value.is_map)
    size = start.size
    maps = {id(start): _Map(None, None, np.zeros(size))}
    span = start.span
    affines: list[Affine] = []
    activations: list[Activation] = []
    for plan in stages(output):
        common = _common(plan)
        follow = _Follower(maps, size)
        blocks = [_own(value, common) for value in plan.activations]
        usual = _usual(blocks, common)
        blocks += [_carried(value, follow, span, common, usual) for value in plan.carried]
        _check_width(plan, blocks, widest)
        affine = follow.stacked(blocks, plan)
        affines.append(affine)
        activations.append(common)
        span = through(common, span.through(affine))
        size = affine.outputs
        maps = _after(blocks)
    last = _Follower(maps, size).of(output)
    affines.append(_as_affine(last, size, "scaling" if activations else ""))
    return Network(tuple(affines), tuple(activations))


class _Follower:
    """Values as affine maps of what stands between two stages."""

    def __init__(self, basis: dict[int, _Map], size: int) -> None:
        self._maps, self._size = dict(basis), size

    def of(self, value: Value) -> _Map:
        """The map of a value that follows from the basis."""
        waiting = [value]
        while waiting:
            here = waiting[-1]
            missing = [parent for parent in here.parents if id(parent) not in self._maps]
            if id(here) in self._maps or not missing:
                waiting.pop()
                if id(here) not in self._maps:
                    self._maps[id(here)] = self._combined(here)
            else:
                waiting += missing
        return self._maps[id(value)]

    def _combined(self, value: Value) -> _Map:
        empty = sparse.csr_array((value.size, self._size))
        matrix, structure, bias = None, None, value.bias
        names: dict[str, None] = {}
        for term in value.terms:
            before = self._maps[id(term.value)]
            bias = bias + term.matrix @ before.bias
            names |= dict.fromkeys(before.names)
            product = term.matrix if before.matrix is None else term.matrix @ before.matrix
            allowed = (
                term.structure
                if before.structure is None
                else _as_numbers(term.structure) @ _as_numbers(before.structure)
            )
            matrix = product if matrix is None else matrix + product
            allowed = _as_numbers(allowed)
            structure = allowed if structure is None else structure + allowed
        names |= dict.fromkeys([value.name])
        return _Map(
            sparse.csr_array(empty if matrix is None else matrix),
            sparse.csr_array((empty if structure is None else structure) > 0),
            bias,
            tuple(names),
        )

    def stacked(self, blocks: list[_Block], plan: StagePlan) -> Affine:
        """The affine map before a stage: the copies of every block, one below the other."""
        rows, allowed, bias = [], [], []
        names: dict[str, None] = {}
        for block in blocks:
            before = self.of(block.before)
            names |= dict.fromkeys(before.names)
            part = _as_affine(before, self._size, "")
            scaled = sparse.csr_array(sparse.diags(block.scale, format="csr") @ part.matrix)
            middle = block.scale * (part.bias - block.centre)
            for shift in block.copies.shifts:
                rows.append(scaled)
                allowed.append(part.structure)
                bias.append(middle + shift)
        if plan.carried:
            names["carried values"] = None
        return Affine(
            sparse.csr_array(sparse.vstack(rows)) if len(rows) > 1 else rows[0],
            np.concatenate(bias),
            sparse.csr_array(sparse.vstack(allowed)) if len(rows) > 1 else allowed[0],
            " + ".join(name for name in names if name) or "scaling",
        )


def _as_affine(part: _Map, size: int, name: str) -> Affine:
    named = " + ".join(name for name in part.names if name) or name
    if part.matrix is None or part.structure is None:
        eye = Affine.identity(size)
        return Affine(eye.matrix, part.bias, eye.structure, named)
    return Affine(part.matrix, part.bias, part.structure, named)


def _after(blocks: list[_Block]) -> dict[int, _Map]:
    """The values behind a stage as maps of its elements."""
    size = sum(block.elements for block in blocks)
    maps, start = {}, 0
    for block in blocks:
        count = block.value.size
        rows = np.tile(np.arange(count), len(block.copies.shifts))
        columns = start + np.arange(block.elements)
        data = np.outer(block.copies.weights, block.back).ravel()
        shape = (count, size)
        matrix = sparse.csr_array(sparse.coo_array((data, (rows, columns)), shape=shape))
        ones = sparse.coo_array((np.ones(len(data)), (rows, columns)), shape=shape)
        maps[id(block.value)] = _Map(matrix, sparse.csr_array(ones) > 0, block.offset)
        start += block.elements
    return maps


def _common(plan: StagePlan) -> Activation:
    """Of the activations of the highest degree that of the most elements, monic and depressed."""
    sizes: dict[tuple[float, ...], int] = {}
    named: dict[tuple[float, ...], Activation] = {}
    for value in plan.activations:
        if value.activation.degree == plan.degree:
            monic = depressed(value.activation)[3]
            sizes[monic.coefficients] = sizes.get(monic.coefficients, 0) + value.size
            named.setdefault(monic.coefficients, monic)
    return named[max(sizes, key=sizes.__getitem__)]


def _own(value: Activated, common: Activation) -> _Block:
    """An activation of a stage, by the stage's polynomial."""
    before, activation = value.before, value.activation
    size = before.size
    shift, lead, constant, monic = depressed(activation)
    factor = stretch(common, monic)
    if factor is not None:
        back = lead / factor**common.degree
        return _Block(
            value,
            before,
            np.full(size, factor),
            np.full(size, -shift),
            Copies(np.zeros(1), np.ones(1), 0.0),
            np.full(size, back),
            np.full(size, constant),
        )
    low, high = float(before.span.low.min()), float(before.span.high.max())
    centre, radius = (low + high) / 2, max((high - low) / 2, 1e-300)
    usual = float(np.sqrt(np.mean(value.points**2))) or 1.0
    if not (np.isfinite(radius) and np.isfinite(usual)):
        raise _too_large(before)

    def wanted(reach: float) -> tuple[float, ...]:
        moved = Series(activation.coefficients)(Series([centre, radius / reach]))
        return tuple(np.asarray(moved.coef, dtype=np.float64).tolist())

    reach, made = fitted(common, wanted, usual)
    scale = reach / radius
    return _Block(
        value,
        before,
        np.full(size, scale),
        np.full(size, centre),
        made,
        np.ones(size),
        np.full(size, made.constant),
    )


def _usual(blocks: list[_Block], common: Activation) -> float:
    """Root of the mean square of a stage's own elements, at points of the range."""
    squares, count = 0.0, 0
    for block in blocks:
        y = block.scale[:, None] * (block.before.points - block.centre[:, None])
        for shift in block.copies.shifts:
            values = common(y + shift)
            squares, count = squares + float((values**2).sum()), count + values.size
    usual = float(np.sqrt(squares / max(count, 1)))
    return usual if np.isfinite(usual) and usual > 0 else 1.0


def _carried(
    value: Value, follow: _Follower, span: Interval, common: Activation, usual: float
) -> _Block:
    """A value that is carried past a stage, in a range of its own for each element."""
    bounds = span.through(_as_affine(follow.of(value), len(span.low), ""))
    centre, radius = (bounds.low + bounds.high) / 2, (bounds.high - bounds.low) / 2
    if not bool(np.isfinite(radius).all()):
        raise _too_large(value)
    reach, made = fitted(common, lambda _: (0.0, 1.0), usual)
    scale = reach / np.where(radius > 0, radius, 1.0)
    return _Block(value, value, scale, centre, made, 1 / scale, centre + made.constant / scale)


def _too_large(value: Value) -> CannotPlanError:
    return CannotPlanError(
        f"over input_range the values after layer {value.name} can be larger than any number of "
        "double precision; narrow input_range, or make the model shallower"
    )


def _check_width(plan: StagePlan, blocks: list[_Block], widest: int | None) -> None:
    elements = sum(block.elements for block in blocks)
    if widest is None or elements <= widest:
        return
    own = sum(value.size for value in plan.activations)
    name = plan.activations[0].activation.name
    raise CannotPlanError(
        f"layer {name} is given {own:,} values, and with those "
        f"that go past it {elements:,} are evaluated with it; the largest ring at 128-bit security "
        f"(N={2 * widest}) has {widest:,} slots for them; use fewer channels, a larger stride or "
        "nn.AvgPool2d before it, or a smaller input_shape"
    )


def depressed(activation: Activation) -> tuple[float, float, float, Activation]:
    """(shift, lead, constant, q) with p(x) = lead·q(x + shift) + constant.

    q is monic, without a second-highest power and without a constant.
    """
    degree, lead = activation.degree, activation.coefficients[-1]
    shift = activation.coefficients[-2] / (degree * lead)
    moved = Series(activation.coefficients)(Series([-shift, 1.0]))
    coefficients = np.zeros(degree + 1)
    coefficients[: len(moved.coef)] = np.asarray(moved.coef, dtype=np.float64) / lead
    constant = float(coefficients[0]) * lead
    coefficients[[0, degree - 1]], coefficients[degree] = 0.0, 1.0
    return shift, lead, constant, Activation(tuple(coefficients.tolist()), activation.name)


def _as_numbers(structure: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(structure.astype(np.float64))
