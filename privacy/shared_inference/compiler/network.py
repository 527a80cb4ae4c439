"""From the graph of a model's values to nodes in a row: affine maps with functions between them.

Neighbouring affine maps are multiplied together. Nodes are numbered from 1; 0 is the input.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.inference.compiler.lowering import Activated, Value, in_order
from privacy.shared_inference.compiler.layers import Curved, Maximum, Rectified
from privacy.shared_inference.errors import UnsupportedLayerError

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Term:
    """A matrix on a node's values, and where the architecture allows it a weight."""

    source: int
    matrix: sparse.csr_array
    structure: sparse.csr_array


@dataclass(frozen=True, eq=False)
class Affine:
    """A sum of matrices on nodes, plus a bias."""

    terms: tuple[Term, ...]
    bias: Vector
    name: str


@dataclass(frozen=True, eq=False)
class Relu:
    """max(x, 0)."""

    source: int
    name: str


@dataclass(frozen=True, eq=False)
class Square:
    """x²."""

    source: int
    name: str


@dataclass(frozen=True, eq=False)
class Windows:
    """Maxima over windows: places in the node's values, shape (elements, size)."""

    source: int
    places: NDArray[np.int64]
    name: str


@dataclass(frozen=True, eq=False)
class Curve:
    """A function of each element, which lies between ``low`` and ``high``."""

    source: int
    curve: str
    low: float
    high: float
    name: str


Node = Affine | Relu | Square | Windows | Curve


@dataclass(frozen=True, eq=False)
class _Map:
    """A value as an affine map of nodes; no terms by number where it is one node itself."""

    terms: dict[int, tuple[sparse.csr_array, sparse.csr_array]]
    bias: Vector
    itself: int | None = None


def nodes(output: Value) -> tuple[Node, ...]:
    """The nodes of a model's output, of which the last is an affine map.

    Raises
    ------
    UnsupportedLayerError
        If an activation is a polynomial of a degree above 2.
    """
    return _Rows().of(output)


class _Rows:
    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._maps: dict[int, _Map] = {}
        self._made: dict[int, int] = {}

    def of(self, output: Value) -> tuple[Node, ...]:
        for value in in_order(output):
            self._maps[id(value)] = self._mapped(value)
        self._affine(output)
        return tuple(self._nodes)

    def _mapped(self, value: Value) -> _Map:
        if isinstance(value, Rectified):
            return self._itself(Relu(self._node(value.before), value.name), value)
        if isinstance(value, Curved):
            span = value.before.span
            ends = float(span.low.min()), float(span.high.max())
            before = self._node(value.before)
            return self._itself(Curve(before, value.curve, *ends, value.name), value)
        if isinstance(value, Maximum):
            made = Windows(self._node(value.before), value.windows, value.name)
            return self._itself(made, value)
        if isinstance(value, Activated):
            return self._square(value)
        if value.is_map:
            return self._combined(value)
        return _Map({}, np.zeros(value.size), 0)

    def _square(self, value: Activated) -> _Map:
        coefficients = value.activation.coefficients
        if len(coefficients) != 3:
            raise UnsupportedLayerError(
                f"layer {value.name} is a polynomial of degree {len(coefficients) - 1}, and shares "
                "evaluate those of degree 2; use nn.ReLU, or a Polynomial of degree 2"
            )
        constant, linear, quadratic = coefficients
        before = self._node(value.before)
        squares = self._itself(Square(before, value.name), value)
        if (constant, linear, quadratic) == (0.0, 0.0, 1.0):
            return squares
        size = value.size
        eye = sparse.csr_array(sparse.identity(size, format="csr"))
        terms = {len(self._nodes): (sparse.csr_array(eye * quadratic), sparse.csr_array(eye != 0))}
        if linear:
            terms[before] = (sparse.csr_array(eye * linear), sparse.csr_array(eye != 0))
        return _Map(terms, np.full(size, constant))

    def _itself(self, node: Node, value: Value) -> _Map:
        self._nodes.append(node)
        return _Map({}, np.zeros(value.size), len(self._nodes))

    def _combined(self, value: Value) -> _Map:
        terms: dict[int, tuple[sparse.csr_array, sparse.csr_array]] = {}
        bias = value.bias
        for term in value.terms:
            before = self._maps[id(term.value)]
            bias = bias + term.matrix @ before.bias
            parts = {
                number: (term.matrix @ matrix, _numbers(term.structure) @ _numbers(structure))
                for number, (matrix, structure) in before.terms.items()
            }
            if before.itself is not None:
                parts = {before.itself: (term.matrix, _numbers(term.structure))}
            for number, (matrix, allowed) in parts.items():
                if number in terms:
                    matrix, allowed = (
                        terms[number][0] + matrix,
                        _numbers(terms[number][1]) + allowed,
                    )
                terms[number] = sparse.csr_array(matrix), sparse.csr_array(allowed > 0)
        if len(terms) == 1 and not bias.any():
            ((number, (matrix, _)),) = terms.items()
            if _is_identity(matrix):
                return _Map({}, bias, number)
        return _Map(terms, bias)

    def _node(self, value: Value) -> int:
        """The node whose values these are; made where there is none."""
        before = self._maps[id(value)]
        return self._affine(value) if before.itself is None else before.itself

    def _affine(self, value: Value) -> int:
        if id(value) not in self._made:
            made = self._maps[id(value)]
            terms = made.terms
            if made.itself is not None:
                eye = sparse.csr_array(sparse.identity(value.size, format="csr"))
                terms = {made.itself: (eye, sparse.csr_array(eye != 0))}
            self._nodes.append(
                Affine(
                    tuple(Term(number, *pair) for number, pair in terms.items()),
                    made.bias,
                    value.name,
                )
            )
            self._made[id(value)] = len(self._nodes)
        return self._made[id(value)]


def _numbers(structure: sparse.csr_array) -> sparse.csr_array:
    return sparse.csr_array(structure.astype(np.float64))


def _is_identity(matrix: sparse.csr_array) -> bool:
    """Whether nothing changes: values that are reshaped alone stay where they are."""
    rows, columns = matrix.shape
    return bool(
        rows == columns == matrix.nnz
        and (matrix.indices == np.arange(rows)).all()
        and (matrix.data == 1.0).all()
    )
