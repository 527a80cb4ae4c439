"""From a graph of values to layers: affine maps of the input and of activations.

Activations of one depth and, up to a stretch of their input, one polynomial are a layer together.
One with more elements than a ciphertext has slots is several layers, each with a part of the rows.
What skips an activation is read by a later layer as it is: CKKS drops it to the level of what it
is added to, which takes no operation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial import Polynomial as Series
from scipy import sparse

from privacy.inference.arithmetic.network import Activation, Affine, Layer, Network, Vector
from privacy.inference.compiler.lowering.composition import ComposedMap, combined
from privacy.inference.compiler.lowering.matrices import Matrices, identity
from privacy.inference.compiler.lowering.values import Activated, Value, in_order
from privacy.inference.errors import CannotPlanError

_INPUT = 0
"""The source that is the input."""
_CIPHERTEXTS = 8
"""Of one value, at most: each takes products and rotations for each that it reads."""


@dataclass(frozen=True)
class _Member:
    """An activation of a layer: p(x) = back·q(factor·(x - centre)) + constant, elementwise."""

    value: Activated
    map: ComposedMap
    factor: float
    centre: float
    back: float
    constant: float


def layered(output: Value, *, widest: int | None) -> Network:
    """The network of a model's output; layers have at most ``widest`` outputs if it is given."""
    # Where values overflow, the planner refuses them.
    with np.errstate(all="ignore"):
        return _Builder(output, widest).network(output)


class _Builder:
    """Makes layers, each after those that it reads."""

    def __init__(self, output: Value, widest: int | None) -> None:
        self._order = in_order(output)
        (start,) = (value for value in self._order if not value.parents and not value.is_map)
        self._widest = widest
        self._layers: list[Layer] = []
        self._sizes = [start.size]
        self._maps = {id(start): ComposedMap({_INPUT: None}, np.zeros(start.size))}
        self._copies: list[tuple[int, slice]] = []

    def network(self, output: Value) -> Network:
        depths = _depths(self._order)
        activated = [value for value in self._order if isinstance(value, Activated)]
        for depth in range(1, max(depths.values(), default=0) + 1):
            for common, members in self._groups(v for v in activated if depths[id(v)] == depth):
                self._add_activations(common, members)
        last = self._of(output)
        name = last.name or ("scaling" if self._layers else "")
        parts = _read({source: self._matrices(source, part) for source, part in last.parts.items()})
        copied = len(parts) > 1 and _INPUT in parts
        self._add(self._without_input(parts) if copied else parts, last.bias, None, name)
        return _without_unread(self._layers)

    def _of(self, value: Value) -> ComposedMap:
        """A value as a map of the layers that there are."""
        if id(value) not in self._maps:
            self._maps[id(value)] = combined(value, self._maps)
        return self._maps[id(value)]

    def _matrices(self, source: int, part: Matrices | None) -> Matrices:
        return identity(self._sizes[source]) if part is None else part

    def _groups(self, values: Iterator[Activated]) -> list[tuple[Activation, list[_Member]]]:
        """Activations with the polynomials that they share, monic and depressed."""
        groups: list[tuple[Activation, list[_Member]]] = []
        for value in values:
            shift, lead, constant, monic = depressed(value.activation)
            size, before = value.size, self._of(value.before)
            for common, members in groups:
                factor = stretch(common, monic)
                taken = sum(member.value.size for member in members)
                fits = self._widest is None or taken + size <= self._widest
                if factor is not None and fits:
                    break
            else:
                factor, common, members = 1.0, monic, []
                groups.append((common, members))
            back = lead / factor**common.degree
            members.append(_Member(value, before, factor, -shift, back, constant))
        return groups

    def _add_activations(self, common: Activation, members: list[_Member]) -> None:
        """A layer with some activations, or several if they are too many elements for one."""
        total = sum(member.value.size for member in members)
        if self._widest is not None:
            check_width(members[0].value.name, total, self._widest)
        sources = sorted({source for member in members for source in member.map.parts})
        stacked = _read({source: self._stacked(source, members) for source in sources})
        bias = np.concatenate([m.factor * (m.map.bias - m.centre) for m in members])
        name = " + ".join(dict.fromkeys(m.map.name for m in members if m.map.name)) or "scaling"
        if _INPUT in stacked and len(stacked) > 1:
            stacked = self._without_input(stacked)
        parts: dict[int, dict[int, Matrices | None]] = {id(m.value): {} for m in members}
        step = self._widest or total
        for start in range(0, total, step):
            rows = slice(start, min(start + step, total))
            chosen = {
                source: (sparse.csr_array(matrix[rows]), sparse.csr_array(allowed[rows]))
                for source, (matrix, allowed) in stacked.items()
            }
            made = self._add(chosen, bias[rows], common, name)
            offset = 0
            for member in members:
                selected = _selected(member, offset, rows)
                if selected is not None:
                    parts[id(member.value)][made] = selected
                offset += member.value.size
        for member in members:
            constant = np.full(member.value.size, member.constant)
            self._maps[id(member.value)] = ComposedMap(parts[id(member.value)], constant)

    def _stacked(self, source: int, members: list[_Member]) -> Matrices:
        """The rows of all members that read one source, one below the other."""
        rows, allowed = [], []
        for member in members:
            if source in member.map.parts:
                matrix, structure = self._matrices(source, member.map.parts[source])
                rows.append(sparse.csr_array(matrix * member.factor))
                allowed.append(structure)
            else:
                shape = (member.value.size, self._sizes[source])
                rows.append(sparse.csr_array(shape))
                allowed.append(sparse.csr_array(shape, dtype=bool))
        if len(rows) == 1:
            return rows[0], allowed[0]
        return sparse.csr_array(sparse.vstack(rows)), sparse.csr_array(sparse.vstack(allowed))

    def _add(
        self,
        parts: dict[int, Matrices],
        bias: Vector,
        activation: Activation | None,
        name: str,
    ) -> int:
        """Add a layer; the source that it is."""
        parts = _read(dict(sorted(parts.items()))) or {
            _INPUT: (sparse.csr_array((len(bias), self._sizes[0])),) * 2
        }
        affines = [
            Affine(matrix, np.zeros(len(bias)), sparse.csr_array(structure > 0), name)
            for matrix, structure in parts.values()
        ]
        layer = Layer(tuple(parts), tuple(affines), activation).with_bias(bias)
        self._layers.append(layer)
        self._sizes.append(layer.outputs)
        return len(self._layers)

    def _without_input(self, parts: dict[int, Matrices]) -> dict[int, Matrices]:
        """The same with copies of the input's elements, which are values like any other."""
        size = self._sizes[_INPUT]
        step = self._widest or size
        if not self._copies:
            whole = identity(size)[0]
            for start in range(0, size, step):
                where = slice(start, min(start + step, size))
                rows = sparse.csr_array(whole[where])
                made = self._add({_INPUT: (rows, rows)}, np.zeros(rows.shape[0]), None, "")
                self._copies.append((made, where))
        matrix, structure = (sparse.csc_array(part) for part in parts[_INPUT])
        split = {
            made: (sparse.csr_array(matrix[:, where]), sparse.csr_array(structure[:, where]))
            for made, where in self._copies
        }
        return {s: part for s, part in parts.items() if s != _INPUT} | split


def _read(parts: dict[int, Matrices]) -> dict[int, Matrices]:
    """The sources of which the architecture reads an element."""
    return {source: part for source, part in parts.items() if part[1].nnz}


def _without_unread(layers: Sequence[Layer]) -> Network:
    """The network of the layers that the last one reads, by others or itself."""
    read = {len(layers)}
    for source in range(len(layers), 0, -1):
        if source in read:
            read |= set(layers[source - 1].sources)
    numbers = {source: number for number, source in enumerate(sorted(read | {_INPUT}))}
    return Network(
        tuple(
            replace(layer, sources=tuple(numbers[each] for each in layer.sources))
            for source, layer in enumerate(layers, start=1)
            if source in read
        )
    )


def check_width(name: str, size: int, widest: int) -> None:
    """Refuse an activation of more elements than some ciphertexts hold.

    Raises
    ------
    CannotPlanError
        With its name.
    """
    if size > _CIPHERTEXTS * widest:
        raise CannotPlanError(
            f"layer {name} is given {size:,} values, and {_CIPHERTEXTS} ciphertexts of the largest "
            f"ring at 128-bit security (N={2 * widest}) have {_CIPHERTEXTS * widest:,} slots for "
            "them; use fewer channels, a larger stride or nn.AvgPool2d before it, or a smaller "
            "input_shape"
        )


def _depths(order: Sequence[Value]) -> dict[int, int]:
    """By value, the activations on the longest way to it, its own among them."""
    depths: dict[int, int] = {}
    for value in order:
        before = max((depths[id(parent)] for parent in value.parents), default=0)
        depths[id(value)] = before + isinstance(value, Activated)
    return depths


def _selected(member: _Member, offset: int, rows: slice) -> Matrices | None:
    """A member's elements among those of a layer with some rows of a group."""
    size = member.value.size
    first, last = max(rows.start, offset), min(rows.stop, offset + size)
    if first >= last:
        return None
    count, shape = last - first, (size, rows.stop - rows.start)
    where = (np.arange(first, last) - offset, np.arange(first, last) - rows.start)
    matrix = sparse.coo_array((np.full(count, member.back), where), shape=shape)
    ones = sparse.coo_array((np.ones(count, dtype=bool), where), shape=shape)
    return sparse.csr_array(matrix), sparse.csr_array(ones)


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


def stretch(activation: Activation, other: Activation) -> float | None:
    """A factor s with other(x) = activation(s·x)/s^degree, both monic; None if there is none."""
    p, q = (np.array(a.coefficients) for a in (activation, other))
    if len(p) != len(q):
        return None
    powers = activation.degree - np.arange(len(p))
    there = np.flatnonzero((p != 0.0) & (q != 0.0) & (powers > 0))
    ratio = p[there[0]] / q[there[0]] if len(there) else 1.0
    if ratio <= 0:
        return None
    factor = float(ratio ** (1 / powers[there[0]])) if len(there) else 1.0
    stretched = p / factor**powers
    return factor if np.allclose(stretched, q, rtol=1e-12, atol=0.0) else None
