"""The matrix of each linear layer, read off its weights.

A second matrix says which entries the *architecture* allows to be non-zero: the packing is derived
from it alone, so that a plan does not tell which weights are zero. Whether a matrix does what its
layer does is for the caller to check.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

Matrices = tuple[sparse.csr_array, sparse.csr_array]
"""Of a layer, and of its architecture (bool)."""


def matrices(layer: nn.Module, shape: tuple[int, ...]) -> Matrices:
    """Matrices of an affine layer in double precision for inputs of a shape, without the batch."""
    makers: dict[type[nn.Module], Callable[..., Matrices]] = {
        nn.Linear: _linear,
        nn.Conv2d: _convolution,
        nn.AvgPool2d: _pooling,
        nn.AdaptiveAvgPool2d: _pooling,
        nn.BatchNorm1d: _normalisation,
        nn.BatchNorm2d: _normalisation,
        nn.Flatten: _reshaping,
    }
    return makers[type(layer)](layer, shape)


def entries(layer: nn.Module, inputs: int, outputs: int) -> int:
    """About how many entries the matrix has."""
    if isinstance(layer, nn.Linear):
        return outputs * layer.weight.shape[1]
    if isinstance(layer, nn.Conv2d):
        return outputs * layer.weight[0].numel()
    return max(inputs, outputs)


def _linear(layer: nn.Linear, shape: tuple[int, ...]) -> Matrices:
    weights = sparse.csr_array(_array(layer.weight))
    allowed = sparse.csr_array(np.ones(weights.shape))
    if len(shape) > 1:
        rows = sparse.identity(math.prod(shape[:-1]), format="csr")
        weights, allowed = sparse.kron(rows, weights), sparse.kron(rows, allowed)
    return sparse.csr_array(weights), sparse.csr_array(allowed != 0)


def _reshaping(layer: nn.Flatten, shape: tuple[int, ...]) -> Matrices:
    eye = sparse.csr_array(sparse.identity(math.prod(shape), format="csr"))
    return eye, sparse.csr_array(eye != 0)


def _normalisation(layer: nn.BatchNorm1d | nn.BatchNorm2d, shape: tuple[int, ...]) -> Matrices:
    if len(shape) not in ((3,) if isinstance(layer, nn.BatchNorm2d) else (1, 2)):
        raise ValueError(f"inputs of shape {shape} have another number of dimensions")
    factor = 1 / np.sqrt(_array(cast(Tensor, layer.running_var)) + layer.eps)
    if layer.weight is not None:
        factor = factor * _array(layer.weight)
    factor = np.repeat(factor, math.prod(shape[1:]))
    eye = sparse.csr_array(sparse.identity(len(factor), format="csr"))
    return sparse.csr_array(sparse.diags(factor, format="csr")), sparse.csr_array(eye != 0)


def _convolution(layer: nn.Conv2d, shape: tuple[int, ...]) -> Matrices:
    if len(shape) != 3:
        raise ValueError(f"inputs of shape {shape} are not (channels, height, width)")
    # Every input counted from 1, so that 0 says where padding with zeros lies.
    size = math.prod(shape)
    numbers = torch.arange(1, size + 1, dtype=torch.float64, device="cpu").reshape(1, *shape)
    # The weights say how many channels and how large a kernel: pruning replaces them alone.
    channels_out, _, *kernel = layer.weight.shape
    windows = nn.functional.unfold(
        _padded(layer, numbers), tuple(kernel), dilation=layer.dilation, stride=layer.stride
    )
    groups, places = layer.groups, windows.shape[-1]
    taps = windows.reshape(groups, -1, places).numpy().astype(np.int64) - 1
    weights = _array(layer.weight).reshape(groups, channels_out // groups, -1)
    # (group, channel of it, tap, place), in the order of the output's elements.
    inputs = np.broadcast_to(taps[:, None], (*weights.shape, places))
    values = np.broadcast_to(weights[..., None], inputs.shape)
    channels = np.arange(channels_out).reshape(groups, -1, 1, 1)
    rows = np.broadcast_to(channels * places + np.arange(places), inputs.shape)
    inside = inputs >= 0
    where, outputs = (rows[inside], inputs[inside]), channels_out * places

    def matrix(data: NDArray[np.float64]) -> sparse.csr_array:
        # A padding that repeats inputs meets one of them twice: its weights add up.
        return sparse.csr_array(sparse.coo_array((data, where), shape=(outputs, size)))

    made = matrix(values[inside])
    made.eliminate_zeros()
    return made, sparse.csr_array(matrix(np.ones(int(inside.sum()))) != 0)


def _padded(layer: nn.Conv2d, values: Tensor) -> Tensor:
    """The padded input of a convolution, by the attributes that PyTorch reads when it runs."""
    if layer.padding_mode != "zeros":
        around = layer._reversed_padding_repeated_twice
        return nn.functional.pad(values, around, mode=layer.padding_mode)
    sides = []
    for axis in (1, 0):  # the last dimension first
        if isinstance(layer.padding, str):
            both = _along(layer.dilation, axis) * (layer.weight.shape[2 + axis] - 1)
            both = both if layer.padding == "same" else 0
            sides += [both // 2, both - both // 2]
        else:
            sides += [_along(layer.padding, axis)] * 2
    return nn.functional.pad(values, sides)


def _along(setting: int | Sequence[int], axis: int) -> int:
    """The setting of one axis: a single number is for both."""
    if isinstance(setting, int):
        return setting
    return setting[axis if len(setting) > 1 else 0]


def _pooling(layer: nn.Module, shape: tuple[int, ...]) -> Matrices:
    """Averages over rectangles: their weights are products of one for the row and the column."""
    if len(shape) not in (2, 3):
        raise ValueError(f"inputs of shape {shape} are not (channels, height, width)")
    height, width = shape[-2:]
    ones = torch.ones(1, height, width, dtype=torch.float64, device="cpu")
    whole = layer(ones)[0].numpy()
    each_row = torch.eye(height, dtype=torch.float64, device="cpu")[:, :, None]
    each_column = torch.eye(width, dtype=torch.float64, device="cpu")[:, None, :]
    by_row, by_column = layer(each_row * ones), layer(each_column * ones)
    at_row, at_column = np.unravel_index(whole.argmax(), whole.shape)
    rows = by_row[:, :, at_column].T.numpy() / whole[at_row, at_column]
    columns = by_column[:, at_row, :].T.numpy()
    one = sparse.kron(sparse.csr_array(rows), sparse.csr_array(columns))
    channels = sparse.identity(math.prod(shape[:-2]), format="csr")
    matrix = sparse.csr_array(sparse.kron(channels, one))
    return matrix, sparse.csr_array(matrix != 0)


def _array(value: Tensor) -> NDArray[np.float64]:
    return value.detach().numpy().astype(np.float64)
