"""Convolutions: every example's weight gradient at about the cost of the batch's.

The gradient of one example's weights is the correlation of its input with the output's gradient.
Opacus copies every patch of the input (``unfold``), kernel height × width values a position; the
methods here avoid that.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.training.per_example.gradients import (
    Call,
    Gradients,
    LayerGradients,
    sum_of,
    summing_dtype,
    vector_norms,
)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BY_ROWS, _BY_GROUPS, _BY_DEPTH = "row unfolding", "grouped convolution", "depthwise convolution"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# From this many channels a group on, the library's blocked kernels are faster (measured).
_BLOCK = 8
# Bytes of unfolded rows to work on at a time: they stay in a core's cache (measured).
_CACHE = 5 << 18
# Bytes of inputs in one depthwise convolution: a call has a fixed cost, but larger memory is
# returned to the system and allocated again at each step (measured).
_PLANES = 1 << 20


def convolution_gradients(layer: Convolution, calls: Sequence[Call]) -> LayerGradients:
    """The examples' gradients of a convolution."""
    method, build = _fastest(layer, calls[0].backprops)
    parts: dict[Tensor, list[Tensor]] = {}
    for call in calls:
        if layer.weight.requires_grad:
            inputs = _padded(layer, call.inputs)
            parts.setdefault(layer.weight, []).append(build(layer, inputs, call.backprops))
        if layer.bias is not None and layer.bias.requires_grad:
            parts.setdefault(layer.bias, []).append(call.backprops.flatten(2).sum(2)[None])
    gradients = {parameter: sum_of(each) for parameter, each in parts.items()}
    return ConvolutionGradients(layer, gradients, method)


def _fastest(layer: Convolution, g: Tensor) -> tuple[str, Callable[..., Tensor]]:
    channels = min(layer.in_channels, layer.out_channels) // layer.groups
    if channels >= _BLOCK or isinstance(layer, nn.Conv3d):
        return _BY_GROUPS, _by_groups
    kernels = torch.backends.mkldnn.is_available() and g.is_cpu
    if layer.in_channels == layer.groups and kernels and g.dtype == torch.float32:
        return _BY_DEPTH, _by_depth
    return _BY_ROWS, _by_rows


class ConvolutionGradients:
    """Every example's gradient is built, in pieces: shape (pieces, n, ...), by parameter.

    By rows a piece is a kernel column, whose products are one batched multiplication.
    """

    def __init__(self, layer: Convolution, gradients: Gradients, method: str) -> None:
        self._layer, self._gradients, self.method = layer, gradients, method
        self.dtype = summing_dtype(*gradients.values())

    def norms(self) -> Iterable[Tensor]:
        for gradient in self._gradients.values():
            yield from vector_norms(gradient.flatten(2)).unbind()

    def weighted_sum(self, factors: Tensor) -> Gradients:
        sums: Gradients = {}
        factors = factors.to(self.dtype)
        for parameter, gradient in self._gradients.items():
            summed = factors @ gradient.flatten(2)
            if parameter is self._layer.weight and self.method == _BY_ROWS:
                summed = _in_order(self._layer, summed[:, None])
            sums[parameter] = summed.view(parameter.shape)
        return sums

    def select(self, rows: Tensor) -> LayerGradients:
        selected = {p: gradient[:, rows] for p, gradient in self._gradients.items()}
        return ConvolutionGradients(self._layer, selected, self.method)

    def of_each(self, out: Gradients) -> None:
        for parameter, built in self._gradients.items():
            each = built.flatten(2)
            if parameter is self._layer.weight and self.method == _BY_ROWS:
                each = _in_order(self._layer, each)
            out[parameter].copy_(each.reshape(-1, *parameter.shape))


def _padded(layer: Convolution, inputs: Tensor) -> Tensor:
    """``inputs`` with the layer's own padding around them."""
    if layer.padding == "valid":
        return inputs
    if layer.padding == "same":
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        sizes_added = [dilation * (kernel - 1) for kernel, dilation in sizes]
        pads = [(added // 2, added - added // 2) for added in sizes_added]
    else:
        pads = [(int(pad), int(pad)) for pad in layer.padding]
    if not any(chain.from_iterable(pads)):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, list(chain.from_iterable(reversed(pads))), mode=mode)


def _by_groups(layer: Convolution, x: Tensor, g: Tensor) -> Tensor:
    """All examples' weight gradients as one convolution with n times the groups, (1, n, ...)."""
    n, outs = g.shape[:2]
    size = (n * outs, *layer.weight.shape[1:])
    gradient: Tensor = torch.ops.aten.convolution_backward(
        g.reshape(1, n * outs, *g.shape[2:]),
        x.reshape(1, n * x.shape[1], *x.shape[2:]),
        x.new_empty(1).expand(size),
        None,
        layer.stride,
        [0] * len(layer.stride),
        layer.dilation,
        False,
        [0] * len(layer.stride),
        n * layer.groups,
        [False, True, False],
    )[1]
    return gradient.view(1, n, -1)


def _by_depth(layer: Convolution, x: Tensor, g: Tensor) -> Tensor:
    """One input channel a group: the output's gradient slides over it as a kernel, (1, n, ...).

    The gradient of kernel place (i, j) meets the input at stride·position + dilation·(i, j): a
    convolution with stride and dilation exchanged, for every example and output channel by itself.
    oneDNN has vectorised kernels for it.
    """
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):
        x, g = x[:, :, None], g[:, :, None]
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    outs = layer.out_channels // layer.groups
    tall, wide = (
        apart * (taps - 1) + step * (places - 1) + 1
        for taps, apart, step, places in zip(kernel, dilation, stride, g.shape[2:], strict=True)
    )
    x = x[..., :tall, :wide].reshape(-1, 1, tall, wide)
    g = g.reshape(-1, outs, *g.shape[2:])

    def build(x: Tensor, g: Tensor) -> Tensor:
        planes = g.shape[0] * g.shape[1]
        return F.conv2d(
            x.expand(-1, g.shape[1], -1, -1).reshape(1, planes, tall, wide),
            g.reshape(planes, 1, *g.shape[2:]),
            stride=dilation,
            dilation=stride,
            groups=planes,
        ).view(*g.shape[:2], -1)

    at_once = max(1, _PLANES // (x.element_size() * tall * wide))
    n = len(x)
    if n * outs > at_once:
        rows, planes = _even(n, at_once), _even(outs, max(1, at_once // n))
        each = [
            torch.cat([build(some, part) for part in back.split(planes, 1)], 1)
            for some, back in zip(x.split(rows), g.split(rows), strict=True)
        ]
        built = torch.cat(each)
    else:
        built = build(x, g)
    return built.view(1, n // layer.groups, -1)


def _even(count: int, most: int) -> int:
    """The size of parts of ``count`` that are as equal as can be, none above ``most``."""
    return math.ceil(count / math.ceil(count / most))


def _by_rows(layer: Convolution, x: Tensor, g: Tensor) -> Tensor:
    """Rows are copied once for each kernel row; kernel columns are shifts of the same memory.

    With W columns in a padded row, position (i, j) of the output's gradient is put at
    i·W + stride·j, with zeros between. Kernel column c then meets a value c·dilation places further
    on in the unfolded rows, for all positions alike: a view, and one batched product a column.
    """
    if isinstance(layer, nn.Conv1d):
        x, g = x[:, :, None], g[:, :, None]
        height, down, apart = 1, 1, 1
    else:
        height, down, apart = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    columns, right, between = layer.kernel_size[-1], layer.stride[-1], layer.dilation[-1]
    n = len(g) * layer.groups
    x = x.reshape(n, -1, *x.shape[2:])
    g = g.reshape(n, -1, *g.shape[2:])
    ins, wide = x.shape[1], x.shape[3]
    outs, tall, across = g.shape[1:]

    strides = x.stride()
    patches = x.as_strided(
        (n, ins, height, tall, wide),
        (strides[0], strides[1], apart * strides[2], down * strides[2], strides[3]),
        x.storage_offset(),
    )
    part = min(n, max(1, _CACHE // (g.element_size() * tall * wide * (ins * height + outs))))
    rows = x.new_empty((part, ins, height, tall, wide))
    spread = g.new_zeros((part, outs, tall, wide))
    length = tall * wide - between * (columns - 1)
    built = g.new_empty((columns, n, ins * height, outs))
    for first in range(0, n, part):
        here = slice(first, min(first + part, n))
        size = here.stop - first
        rows[:size].copy_(patches[here])
        spread[:size, ..., : right * (across - 1) + 1 : right] = g[here]
        flat = rows[:size].view(size, ins * height, tall * wide)
        back = spread[:size].flatten(2)[:, :, :length].mT
        for column in range(columns):
            start = between * column
            torch.bmm(flat[:, :, start : start + length], back, out=built[column, here])
    return built.view(columns, n // layer.groups, -1)


def _in_order(layer: Convolution, built: Tensor) -> Tensor:
    """Pieces (column, n, group·channel·row·output) of ``_by_rows`` in the weight's order, n times.

    Shape (n, *weight.shape).
    """
    groups, outs = layer.groups, layer.out_channels // layer.groups
    pieces = built.view(*built.shape[:2], groups, -1, outs)
    return pieces.permute(1, 2, 4, 3, 0).reshape(-1, *layer.weight.shape)
