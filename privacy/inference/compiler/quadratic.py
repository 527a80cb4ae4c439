r"""Bounds of a layer after a square, tighter than interval arithmetic.

Interval arithmetic lets every hidden unit be at its worst at once, though all of them read the
same inputs. One output of a layer after squares, q(t) = Σ wₕ·(bₕ·t + zₕ)² + c, is a quadratic form
in the inputs of the layer before, scaled to t in [-1, 1]ⁿ. With M the matrix of q - q(0) in
(1, t), and any diagonal D such that λD - M is positive semidefinite, q(t) - q(0) ≤ λ·ΣD: the dual
of the semidefinite relaxation (Nesterov 1998), here with one good D, the norms of M's rows. M has
the rank of the hidden units at most, and λ is found in their number of dimensions.
"""

import numpy as np

from privacy.inference.compiler.lowering import Affine, Vector

_SLACK = 1e-9
_MAX_WORK = 2e9
"""Of eigenvalues, summed cubes of dimensions: some seconds."""


def tightened(before: Affine, after: Affine, low: Vector, high: Vector) -> tuple[Vector, Vector]:
    """Bounds of ``after``(``before``(x)²) + bias over all x with elements in [low, high].

    Parameters
    ----------
    before, after : Affine
        With squares between them.
    low, high : ndarray, shape (inputs of ``before``,)

    Returns
    -------
    tuple of ndarray
        Lower and upper bounds, shape (outputs of ``after``,); infinite where it would take long.
    """
    lowest, highest = np.full(after.outputs, -np.inf), np.full(after.outputs, np.inf)
    counts = np.diff(after.matrix.indptr).astype(np.float64)
    if float((counts**3).sum()) > _MAX_WORK:
        return lowest, highest
    offset = before.matrix @ ((low + high) / 2) + before.bias
    scaled = (before.matrix * ((high - low) / 2)).tocsr()
    for row in range(after.outputs):
        part = slice(after.matrix.indptr[row], after.matrix.indptr[row + 1])
        units, weights = after.matrix.indices[part], after.matrix.data[part]
        chosen = scaled[units]
        read = np.unique(chosen.indices)
        rows, z = chosen[:, read].toarray(), offset[units]
        centre = float(weights @ z**2) + float(after.bias[row])
        size = float(np.abs(weights) @ z**2) + abs(float(after.bias[row]))
        above, below = _around(rows, z, weights)
        highest[row] = centre + above + _SLACK * size
        lowest[row] = centre - below - _SLACK * size
    return lowest, highest


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
    # An input that hardly counts must not make D singular.
    diagonal = np.maximum(np.append(first, norms), total * _SLACK)
    outer = np.zeros_like(inner)
    outer[0, 0] = 1 / diagonal[0]
    outer[1:, 1:] = (rows / diagonal[1:]) @ rows.T
    # The eigenvalues of D^(-1/2)·M·D^(-1/2) but zeros are those of K·outer, and of RᵀKR with
    # RRᵀ = outer; the little that is added for the sake of the factor is in the slack.
    added = 1e-12 * float(np.trace(outer))
    root = np.linalg.cholesky(outer + added * np.eye(len(outer)))
    values = np.linalg.eigvalsh(root.T @ inner @ root)
    slack = _SLACK * float(np.abs(values).sum()) + added * float(np.linalg.norm(inner))
    largest, lowest = max(float(values[-1]), 0.0) + slack, min(float(values[0]), 0.0) - slack
    return largest * float(diagonal.sum()), -lowest * float(diagonal.sum())
