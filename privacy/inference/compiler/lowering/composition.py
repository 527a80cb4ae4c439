"""Affine maps in a row, multiplied together from their narrow end.

A matrix product takes a time that grows with the rows of what is multiplied from the left, or the
columns of what is multiplied from the right: ten logits after eight convolutions are multiplied
from the logits on, a wide value of few inputs from the inputs on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from privacy.inference.arithmetic.network import Vector
from privacy.inference.compiler.lowering.matrices import Matrices
from privacy.inference.compiler.lowering.values import Value
from privacy.inference.errors import CannotPlanError

_MAX_ENTRIES = 30_000_000
"""Of a product: half a gigabyte."""
_ROWS = 64
"""Of a product, from which its entries are estimated."""


@dataclass(frozen=True)
class ComposedMap:
    """A value as a sum of maps of sources, plus a bias; a matrix that is None is the identity."""

    parts: dict[int, Matrices | None]
    bias: Vector
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layers it came from."""
        return " + ".join(name for name in self.names if name)


def combined(value: Value, maps: Mapping[int, ComposedMap]) -> ComposedMap:
    """A value as a map of sources, from those of the values that it is computed from.

    ``maps`` has values by their ``id``, every input and activation that is needed among them.

    Raises
    ------
    CannotPlanError
        If a product has too many entries.
    """
    order = _between(value, maps)
    ends = [each for each in order if id(each) in maps]
    if value.size < sum(end.size for end in ends):
        return _from_output(value, order, maps)
    made = dict(maps)
    for here in order:
        if id(here) not in made:
            made[id(here)] = _from_input(here, made)
    return made[id(value)]


def _between(value: Value, maps: Mapping[int, ComposedMap]) -> list[Value]:
    """The value and those before it up to the first in ``maps``, each after what it reads."""
    order: dict[int, Value] = {}
    waiting = [(value, False)]
    while waiting:
        here, ready = waiting.pop()
        if id(here) in order:
            continue
        if ready or id(here) in maps:
            order[id(here)] = here
        else:
            waiting.append((here, True))
            waiting += [(parent, False) for parent in reversed(here.parents)]
    return list(order.values())


def _from_input(value: Value, maps: Mapping[int, ComposedMap]) -> ComposedMap:
    parts: dict[int, Matrices] = {}
    bias = value.bias
    names: dict[str, None] = {}
    for term in value.terms:
        before = maps[id(term.value)]
        bias = bias + term.matrix @ before.bias
        names |= dict.fromkeys(before.names)
        for source, part in before.parts.items():
            _add(parts, source, _product((term.matrix, term.structure), part, value.name))
    names |= dict.fromkeys([value.name])
    return ComposedMap(dict(parts), bias, tuple(names))


def _from_output(value: Value, order: list[Value], maps: Mapping[int, ComposedMap]) -> ComposedMap:
    parts: dict[int, Matrices] = {}
    bias = value.bias
    names: dict[str, None] = {}
    # By value, the map from it to the output, summed over all ways.
    onward: dict[int, Matrices] = {}
    for term in value.terms:
        _add(onward, id(term.value), (term.matrix, term.structure))
    for here in reversed(order[:-1]):
        after, before = onward.pop(id(here)), maps.get(id(here))
        bias = bias + after[0] @ (here.bias if before is None else before.bias)
        if before is None:
            for term in here.terms:
                made = _product(after, (term.matrix, term.structure), here.name)
                _add(onward, id(term.value), made)
        else:
            for source, part in before.parts.items():
                _add(parts, source, _product(after, part, value.name))
    for here in order:
        before = maps.get(id(here))
        names |= dict.fromkeys([here.name] if before is None else before.names)
    return ComposedMap(dict(parts), bias, tuple(names))


def _product(one: Matrices, other: Matrices | None, name: str) -> Matrices:
    if other is None:
        return one
    first, second = _as_numbers(one[1]), _as_numbers(other[1])
    rows = np.unique(np.linspace(0, first.shape[0] - 1, _ROWS).astype(np.int64))
    entries = (first[rows] @ second).nnz * first.shape[0] // len(rows)
    if entries > _MAX_ENTRIES:
        raise CannotPlanError(
            f"layer {name} and those next to it without an activation between are one matrix of "
            f"about {entries:,} weights, {_MAX_ENTRIES:,} are compiled at most; use fewer "
            "channels, a larger stride, nn.AvgPool2d before them, or a smaller input_shape"
        )
    return sparse.csr_array(one[0] @ other[0]), sparse.csr_array(first @ second > 0)


def _add(parts: dict[int, Matrices], key: int, more: Matrices) -> None:
    """Add a map to the one of a key, if there is one."""
    if key in parts:
        (matrix, allowed), (other, also) = parts[key], more
        total = _as_numbers(allowed) + _as_numbers(also)
        more = sparse.csr_array(matrix + other), sparse.csr_array(total > 0)
    parts[key] = more


def _as_numbers(structure: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(structure.astype(np.float64))
