r"""Values that can occur for *every* input in the declared range.

Interval arithmetic lets every hidden unit be at its worst at once, though all of them read the
same inputs. One output of a layer after squares, q(t) = Σ wₕ·(bₕ·t + zₕ)² + c, is a quadratic form
in the inputs of the layer before, scaled to t in [-1, 1]ⁿ. With M the matrix of q - q(0) in
(1, t), and any diagonal D such that λD - M is positive semidefinite, q(t) - q(0) ≤ λ·ΣD: the dual
of the semidefinite relaxation (Nesterov 1998), here with one good D, the norms of M's rows. M has
the rank of the hidden units at most, and λ is found in their number of dimensions.
"""

from dataclasses import dataclass

import numpy as np

from privacy.inference.arithmetic.network import Activation, Affine, Network, Vector

SLACK = 1e-9
_MAX_WORK = 2e9
"""Of eigenvalues, summed cubes of dimensions: some seconds."""


@dataclass(frozen=True)
class Interval:
    """Lower and upper bounds, elementwise."""

    low: Vector
    high: Vector

    @classmethod
    def over(cls, size: int, low: float | Vector, high: float | Vector) -> "Interval":
        """The same bounds for every element, or one each."""
        return cls(np.full(size, low), np.full(size, high))

    @property
    def magnitude(self) -> Vector:
        """The largest absolute value, elementwise."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def through(self, affine: Affine) -> "Interval":
        """Bounds after a map, widened by 1e-9 of the size for the rounding of doubles."""
        centre = affine((self.low + self.high) / 2)
        spread = abs(affine.matrix)
        radius = spread @ ((self.high - self.low) / 2)
        radius += SLACK * (spread @ self.magnitude + np.abs(affine.bias))
        return Interval(centre - radius, centre + radius)


@dataclass(frozen=True)
class Ranges:
    """Bounds through a network.

    Attributes
    ----------
    inputs : Interval
    before, after : tuple of Interval
        Before and after the activation of each layer; the same where there is none.
    """

    inputs: Interval
    before: tuple[Interval, ...]
    after: tuple[Interval, ...]

    @property
    def logits(self) -> Interval:
        """Of the last layer."""
        return self.after[-1]

    def of(self, source: int) -> Interval:
        """The bounds of a source of a layer: 0 is the input."""
        return self.after[source - 1] if source else self.inputs


def ranges(network: Network, low: float | Vector, high: float | Vector) -> Ranges:
    """Bound every value of ``network`` over all inputs with elements in [low, high].

    Both are numbers, or one for each element. Widened by 1e-9 of the size for the rounding of
    doubles: no input in the range escapes the bounds. Of layers that read squares alone every
    second from the last is tightened, since such a bound reads the values two layers before and
    not those between.
    """
    # Where values overflow, bounds are infinite or not a number, and the planner refuses them.
    with np.errstate(all="ignore"):
        return _ranges(network, low, high)


def _ranges(network: Network, low: float | Vector, high: float | Vector) -> Ranges:
    values = [Interval.over(network.inputs, low, high)]
    before, tightens = [], _tightened(network)
    for index, layer in enumerate(network.layers):
        bound = _total(
            [
                values[source].through(affine)
                for source, affine in zip(layer.sources, layer.affines, strict=True)
            ]
        )
        if index in tightens:
            earlier = network.layers[layer.sources[0] - 1]
            inputs = values[earlier.sources[0]]
            if bool(np.isfinite(bound.magnitude).all() and np.isfinite(inputs.magnitude).all()):
                tight = tightened(earlier.affines[0], layer.affines[0], inputs)
                low, high = np.maximum(bound.low, tight.low), np.minimum(bound.high, tight.high)
                bound = Interval(low, high)
        before.append(bound)
        if layer.activation is not None:
            bound = through(layer.activation, bound)
            bound = Interval(bound.low - layer.centre, bound.high - layer.centre)
        values.append(bound)
    return Ranges(values[0], tuple(before), tuple(values[1:]))


def _total(intervals: list[Interval]) -> Interval:
    if len(intervals) == 1:
        return intervals[0]
    low, high = (sum(getattr(part, end) for part in intervals) for end in ("low", "high"))
    return Interval(np.asarray(low), np.asarray(high))


def _tightened(network: Network) -> set[int]:
    """Layers that are bounded through the squares before them."""
    chosen: set[int] = set()
    passed: set[int] = set()
    for index in range(len(network.layers) - 1, -1, -1):
        layer = network.layers[index]
        if len(layer.sources) != 1 or layer.sources[0] == 0 or index in passed:
            continue
        before = layer.sources[0] - 1
        earlier = network.layers[before]
        squared = earlier.activation is not None and earlier.activation.degree == 2
        squared = squared and earlier.centre == 0.0
        if squared and len(earlier.sources) == 1:
            chosen.add(index)
            passed.add(before)
    return chosen


def through(activation: Activation, interval: Interval) -> Interval:
    """The exact range of a polynomial: at the ends, or where its derivative is zero."""
    points = [interval.low, interval.high]
    derivative = np.polynomial.polynomial.polyder(activation.coefficients)
    roots = np.polynomial.polynomial.polyroots(derivative)
    points += [
        np.clip(np.full_like(interval.low, root.real), interval.low, interval.high)
        for root in np.asarray(roots, dtype=np.complex128)
    ]
    values = np.stack([activation(point) for point in points])
    slack = 1e-9 * np.abs(values).max(axis=0)
    return Interval(values.min(axis=0) - slack, values.max(axis=0) + slack)


def tightened(before: Affine, after: Affine, inputs: Interval) -> Interval:
    """Bounds of ``after``(``before``(x)²) for all x in ``inputs``; infinite if it took long."""
    lowest, highest = np.full(after.outputs, -np.inf), np.full(after.outputs, np.inf)
    counts = np.diff(after.matrix.indptr).astype(np.float64)
    if float((counts**3).sum()) > _MAX_WORK:
        return Interval(lowest, highest)
    offset = before((inputs.low + inputs.high) / 2)
    scaled = (before.matrix * ((inputs.high - inputs.low) / 2)).tocsr()
    for row in range(after.outputs):
        part = slice(after.matrix.indptr[row], after.matrix.indptr[row + 1])
        units, weights = after.matrix.indices[part], after.matrix.data[part]
        chosen = scaled[units]
        read = np.unique(chosen.indices)
        rows, z = chosen[:, read].toarray(), offset[units]
        centre = float(weights @ z**2) + float(after.bias[row])
        size = float(np.abs(weights) @ z**2) + abs(float(after.bias[row]))
        above, below = _around(rows, z, weights)
        highest[row] = centre + above + SLACK * size
        lowest[row] = centre - below - SLACK * size
    return Interval(lowest, highest)


def _around(rows: Vector, z: Vector, weights: Vector) -> tuple[float, float]:
    """Bounds of ±Σ wₕ·((bₕ·t + zₕ)² - zₕ²) over t in [-1, 1]ⁿ; ``rows`` holds the bₕ."""
    # M = CᵀKC with C = diag(1, rows) and K as follows.
    inner = np.diag(np.append(0.0, weights))
    inner[0, 1:] = inner[1:, 0] = weights * z
    gram = rows @ rows.T
    squares = inner[1:, :1] @ inner[:1, 1:] + inner[1:, 1:] @ gram @ inner[1:, 1:]
    first = np.sqrt(max(float(inner[0, 1:] @ gram @ inner[1:, 0]), 0.0))
    norms = np.sqrt(np.maximum(np.einsum("hi,hk,ki->i", rows, squares, rows, optimize=True), 0.0))
    total = first + float(norms.sum())
    if total == 0.0:
        return 0.0, 0.0
    if not np.isfinite(total**2):
        return np.inf, np.inf
    # An input that hardly counts must not make D singular.
    diagonal = np.maximum(np.append(first, norms), total * SLACK)
    outer = np.zeros_like(inner)
    outer[0, 0] = 1 / diagonal[0]
    outer[1:, 1:] = (rows / diagonal[1:]) @ rows.T
    # The eigenvalues of D^(-1/2)·M·D^(-1/2) but zeros are those of K·outer, and of RᵀKR with
    # RRᵀ = outer; the little that is added for the sake of the factor is in the slack.
    added = 1e-12 * float(np.trace(outer))
    root = np.linalg.cholesky(outer + added * np.eye(len(outer)))
    values = np.linalg.eigvalsh(root.T @ inner @ root)
    slack = SLACK * float(np.abs(values).sum()) + added * float(np.linalg.norm(inner))
    largest, lowest = max(float(values[-1]), 0.0) + slack, min(float(values[0]), 0.0) - slack
    return largest * float(diagonal.sum()), -lowest * float(diagonal.sum())
