"""The matrix of each linear operation, read off its weights.

A second matrix says which entries the *architecture* allows to be non-zero: the packing is derived
from it alone, so that a plan does not tell which weights are zero. Whether a matrix does what its
operation does is for the caller to check.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

Matrices = tuple[sparse.csr_array, sparse.csr_array]
"""Of an operation, and of its architecture (bool)."""
_ROWS = 512
"""Of an axis that are looked at together."""


def identity(size: int) -> Matrices:
    """Nothing changes."""
    eye = sparse.csr_array(sparse.identity(size, format="csr"))
    return eye, sparse.csr_array(eye != 0)


def scaling(factors: NDArray[np.float64]) -> Matrices:
    """Each element times a factor of its own."""
    diagonal = sparse.csr_array(sparse.diags(factors, format="csr"))
    return diagonal, identity(len(factors))[1]


def selection(sources: NDArray[np.int64], size: int) -> Matrices:
    """Each output is the input of a number, from 0, or nothing where the number is -1."""
    rows = np.flatnonzero(sources >= 0)
    shape = (len(sources), size)
    where = (rows, sources[rows])
    chosen = sparse.csr_array(sparse.coo_array((np.ones(len(rows)), where), shape=shape))
    return chosen, sparse.csr_array(chosen != 0)


def reduction(sources: NDArray[np.int64], size: int, weight: float) -> Matrices:
    """Each output is a weight times the sum of the inputs in its row of ``sources``."""
    rows, terms = sources.shape
    pointers = np.arange(0, rows * terms + 1, terms)
    data = np.full(rows * terms, weight)
    made = sparse.csr_array((data, sources.ravel(), pointers), shape=(rows, size))
    return made, sparse.csr_array(made != 0)


def linear(weight: Tensor, shape: tuple[int, ...]) -> Matrices:
    """A matrix on the last axis."""
    weights = sparse.csr_array(as_array(weight))
    allowed = sparse.csr_array(np.ones(weights.shape))
    if len(shape) > 1:
        rows = sparse.identity(math.prod(shape[:-1]), format="csr")
        weights, allowed = sparse.kron(rows, weights), sparse.kron(rows, allowed)
    return sparse.csr_array(weights), sparse.csr_array(allowed != 0)


def on_rows(weight: Tensor, shape: tuple[int, ...]) -> Matrices:
    """A matrix on the axis before the last."""
    if len(shape) < 2:
        raise ValueError(f"inputs of shape {shape} have no axis before the last")
    columns = sparse.identity(shape[-1], format="csr")
    rows = sparse.identity(math.prod(shape[:-2]), format="csr")
    dense = as_array(weight)
    both = [
        sparse.csr_array(sparse.kron(rows, sparse.kron(sparse.csr_array(part), columns)))
        for part in (dense, np.ones(dense.shape))
    ]
    return both[0], sparse.csr_array(both[1] != 0)


def normalisation(
    variance: Tensor, weight: Tensor | None, eps: float, shape: tuple[int, ...]
) -> Matrices:
    """A batch normalisation in evaluation mode, channels first."""
    factor = 1 / np.sqrt(as_array(variance) + eps)
    if weight is not None:
        factor = factor * as_array(weight)
    return scaling(np.repeat(factor, math.prod(shape[1:])))


def convolution(
    weight: Tensor,
    shape: tuple[int, ...],
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad: Callable[[Tensor], Tensor],
    places: tuple[int, int] | None = None,
) -> Matrices:
    """A convolution of two axes; ``pad`` pads its input, shape (1, channels, height, width).

    ``places`` leaves out positions of the kernel beyond that many along each axis.
    """
    # Every input counted from 1, so that 0 says where padding with zeros lies.
    size = math.prod(shape)
    numbers = torch.arange(1, size + 1, dtype=torch.float64, device="cpu").reshape(1, *shape)
    # The weights say how many channels and how large a kernel: pruning replaces them alone.
    channels_out, _, *kernel = weight.shape
    padded = pad(numbers)
    windows = torch.nn.functional.unfold(
        padded, tuple(kernel), dilation=tuple(dilation), stride=tuple(stride)
    )
    if places is not None:
        along = [
            (padded.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
            for axis in (0, 1)
        ]
        windows = windows.reshape(1, -1, *along)[..., : places[0], : places[1]].flatten(2)
    count = windows.shape[-1]
    taps = windows.reshape(groups, -1, count).numpy().astype(np.int64) - 1
    weights = as_array(weight).reshape(groups, channels_out // groups, -1)
    # (group, channel of it, tap, place), in the order of the output's elements.
    inputs = np.broadcast_to(taps[:, None], (*weights.shape, count))
    values = np.broadcast_to(weights[..., None], inputs.shape)
    channels = np.arange(channels_out).reshape(groups, -1, 1, 1)
    rows = np.broadcast_to(channels * count + np.arange(count), inputs.shape)
    inside = inputs >= 0
    where, outputs = (rows[inside], inputs[inside]), channels_out * count

    def matrix(data: NDArray[np.float64]) -> sparse.csr_array:
        # A padding that repeats inputs meets one of them twice: its weights add up.
        return sparse.csr_array(sparse.coo_array((data, where), shape=(outputs, size)))

    made = matrix(values[inside])
    made.eliminate_zeros()
    return made, sparse.csr_array(matrix(np.ones(int(inside.sum()))) != 0)


def separable(operation: Callable[[Tensor], Tensor], shape: tuple[int, ...], axes: int) -> Matrices:
    """An operation of each channel whose weights are products of one for each of its last axes.

    ``operation`` takes shape (1, channels, ...).
    """
    if not axes <= len(shape) <= axes + 1:
        wanted = "(channels, length)" if axes == 1 else "(channels, height, width)"
        raise ValueError(f"inputs of shape {shape} are not {wanted}")
    if axes == 1:
        one = _along(operation, shape[-1]).T
    else:
        height, width = shape[-2:]
        whole = operation(torch.ones(1, 1, height, width, dtype=torch.float64, device="cpu"))[0, 0]
        at_row, at_column = np.unravel_index(int(whole.argmax()), tuple(whole.shape))
        rows = _along(
            lambda x: operation(x[..., None].expand(*x.shape, width))[..., at_column], height
        )
        columns = _along(
            lambda x: operation(x[:, :, None].expand(*x.shape[:2], height, width))[:, :, at_row],
            width,
        )
        one = sparse.kron(rows.T / float(whole[at_row, at_column]), columns.T)
    channels = sparse.identity(math.prod(shape[:-axes]), format="csr")
    matrix = sparse.csr_array(sparse.kron(channels, one))
    matrix.eliminate_zeros()
    return matrix, sparse.csr_array(matrix != 0)


def _along(operation: Callable[[Tensor], Tensor], size: int) -> sparse.csr_array:
    """Rows of the transposed matrix of an operation on one axis; it takes shape (1, rows, size)."""
    parts = []
    for start in range(0, size, _ROWS):
        count = min(_ROWS, size - start)
        basis = torch.from_numpy(np.eye(count, size, start))[None]
        parts.append(sparse.csr_array(operation(basis)[0].numpy()))
    return sparse.csr_array(sparse.vstack(parts))


def as_array(value: Tensor) -> NDArray[np.float64]:
    """Weights in double precision."""
    return value.detach().numpy().astype(np.float64)
