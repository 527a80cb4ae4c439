"""Values of a model as affine maps of the input and of activations, in a graph.

A value of n elements is the input, an affine map of other values, or a polynomial of each element
of one other. Each carries its values on points of the input range, and bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from privacy.inference.arithmetic.network import Activation, Vector
from privacy.inference.compiler.lowering.matrices import Matrices
from privacy.inference.compiler.ranges import SLACK, Interval


@dataclass(frozen=True, eq=False)
class Term:
    """A matrix on another value, and where the architecture allows it a weight."""

    value: "Value"
    matrix: sparse.csr_array
    structure: sparse.csr_array


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the model, elements flat.

    Attributes
    ----------
    shape : tuple of int
        Of one input, without the batch.
    name : str
        The layers that it came from.
    points : ndarray, shape (elements, points)
    span : Interval
        Bounds over the input range, not tight.
    terms : tuple of Term
        Of an affine map.
    bias : ndarray, shape (elements,)
        Of an affine map.
    """

    shape: tuple[int, ...]
    name: str
    points: Vector = field(repr=False)
    span: Interval = field(repr=False)
    terms: tuple[Term, ...] = field(default=(), repr=False)
    bias: Vector = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.points)

    @property
    def parents(self) -> tuple["Value", ...]:
        """The values that it is computed from."""
        return tuple(term.value for term in self.terms)

    @property
    def is_map(self) -> bool:
        """Whether it is an affine map of others; else it is the input, or an activation."""
        return len(self.bias) > 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Activated(Value):
    """A polynomial of each element of another value."""

    before: Value
    activation: Activation

    @property
    def parents(self) -> tuple[Value, ...]:
        """The one value that it is computed from."""
        return (self.before,)


def affine(
    shape: tuple[int, ...], name: str, parts: Sequence[tuple[Value, Matrices]], bias: Vector
) -> Value:
    """The sum of matrices on values, plus a bias."""
    terms = tuple(Term(value, *pair) for value, pair in parts)
    points = np.asarray(bias)[:, None]
    centre, radius = bias, SLACK * np.abs(bias)
    with np.errstate(all="ignore"):
        for term in terms:
            low, high = term.value.span.low, term.value.span.high
            points = points + term.matrix @ term.value.points
            centre = centre + term.matrix @ ((low + high) / 2)
            spread = abs(term.matrix)
            radius = radius + spread @ ((high - low) / 2)
            radius = radius + SLACK * (spread @ term.value.span.magnitude)
    return Value(shape, name, points, Interval(centre - radius, centre + radius), terms, bias)


def activated(before: Value, activation: Activation) -> Activated:
    """A polynomial of each element."""
    with np.errstate(all="ignore"):
        sizes = Activation(tuple(map(abs, activation.coefficients)), "")
        most = sizes(before.span.magnitude)
        points = activation(before.points)
    span = Interval(-most, most)
    return Activated(
        before.shape, activation.name, points, span, before=before, activation=activation
    )


def in_order(output: Value) -> list[Value]:
    """The values that an output needs, each after those that it is computed from."""
    order: dict[int, Value] = {}
    waiting = [(output, False)]
    while waiting:
        value, ready = waiting.pop()
        if id(value) in order:
            continue
        if ready:
            order[id(value)] = value
        else:
            waiting.append((value, True))
            waiting += [(parent, False) for parent in value.parents]
    return list(order.values())
