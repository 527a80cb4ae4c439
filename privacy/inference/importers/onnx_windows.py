"""Convolutions and averages of ONNX over one or two axes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_layers import Padded, Scaled
from privacy.inference.importers.onnx_values import Array, Data, Node


@dataclass(frozen=True)
class Axis:
    """Windows along one axis.

    Attributes
    ----------
    size, kernel, stride, dilation : int
    begin, end : int
        Padding that the file asks for.
    outputs : int
        How many windows there are.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    outputs: int

    @property
    def after(self) -> int:
        """Padding at the end that the last window reaches, none of it unused."""
        last = (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
        return max(last - self.begin - self.size, 0)

    def counts(self, *, padding: bool) -> Array:
        """How many elements each window averages: with the padding that is asked for, or without.

        What ``ceil_mode`` reaches beyond the padding is never counted.
        """
        starts = np.arange(self.outputs)[:, None] * self.stride - self.begin
        places = starts + np.arange(self.kernel) * self.dilation
        low, high = (-self.begin, self.size + self.end) if padding else (0, self.size)
        return np.asarray(((places >= low) & (places < high)).sum(axis=1))


def axes_of(node: Node, data: Data, kernel: list[int]) -> list[Axis]:
    """The windows of a Conv or an AveragePool along each axis behind the channels."""
    sizes = data.shape[1:]
    number = len(sizes)
    if number not in (1, 2) or len(kernel) != number:
        raise node.refused(
            f"works on inputs of shape {data.shape} with kernel {kernel}; (channels, length) and "
            "(channels, height, width) are taken"
        )
    strides = node.attribute("strides", []) or [1] * number
    dilations = node.attribute("dilations", []) or [1] * number
    pads = node.attribute("pads", []) or [0] * (2 * number)
    rule = node.attribute("auto_pad", "NOTSET")
    upwards = bool(node.attribute("ceil_mode", 0)) if node.operator == "AveragePool" else False
    lengths = (len(strides), len(dilations), len(pads))
    if lengths != (number, number, 2 * number) or min(*kernel, *strides, *dilations) < 1:
        raise node.refused("has strides, dilations or pads that do not go with its kernel")
    if min(pads) < 0 or (rule != "NOTSET" and any(pads)):
        raise node.refused(f"has pads {pads} with auto_pad {rule}")
    if node.operator == "AveragePool" and rule.startswith("SAME") and max(dilations) > 1:
        raise node.refused(f"has dilations with auto_pad {rule}, on which runtimes differ; pad it")
    made = []
    for place, size in enumerate(sizes):
        reach = (kernel[place] - 1) * dilations[place] + 1
        stride, begin, end = strides[place], pads[place], pads[number + place]
        if rule in ("SAME_UPPER", "SAME_LOWER"):
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            begin = total // 2 if rule == "SAME_UPPER" else total - total // 2
            end = total - begin
        elif rule not in ("NOTSET", "VALID"):
            raise node.refused(f"has auto_pad {rule!r:.40}")
        room = size + begin + end - reach
        outputs = (math.ceil(room / stride) if upwards else room // stride) + 1
        if upwards and (outputs - 1) * stride >= size + begin:
            outputs -= 1  # no window begins in the padding at the end
        if outputs < 1 or room < 0:
            raise node.refused(f"has a kernel of {kernel}, larger than its inputs {data.shape}")
        made.append(Axis(size, kernel[place], stride, dilations[place], begin, end, outputs))
    return made


def _padded(node: Node, graph: Builder, data: Data, axes: list[Axis]) -> Data:
    widths = [width for axis in reversed(axes) for width in (axis.begin, axis.after)]
    if not any(widths):
        return data
    shape = (data.shape[0], *(axis.begin + axis.size + axis.after for axis in axes))
    return graph.add(node, Padded(widths, 0.0), [data], shape)


def convolution(node: Node, graph: Builder) -> Data:
    """Conv."""
    data, weight = node.data(), node.weights(1, "weights", 3, 4)
    groups = node.attribute("group", 1)
    axes = axes_of(node, data, list(weight.shape[2:]))
    kernel = node.attribute("kernel_shape", []) or list(weight.shape[2:])
    outputs, channels = len(weight), weight.shape[1] * groups
    if groups < 1 or channels != data.shape[0] or outputs % groups:
        raise node.refused(
            f"has weights of shape {weight.shape} in {groups} groups, inputs of shape {data.shape}"
        )
    if kernel != list(weight.shape[2:]):
        raise node.refused(f"has kernel_shape {kernel}, weights of shape {weight.shape}")
    bias = None if node.given(2) is None else node.weights(2, "a bias", 1)
    if bias is not None and len(bias) != outputs:
        raise node.refused(f"has a bias of {len(bias)} numbers for {outputs} channels")
    # PyTorch pads both ends alike.
    even = all(axis.begin == axis.end for axis in axes)
    given = data if even else _padded(node, graph, data, axes)
    kind = nn.Conv1d if len(axes) == 1 else nn.Conv2d
    layer = nn.utils.skip_init(
        kind,
        channels,
        outputs,
        tuple(kernel),
        stride=tuple(axis.stride for axis in axes),
        padding=tuple(axis.begin if even else 0 for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
        groups=groups,
        bias=bias is not None,
        dtype=graph.kind,
        device="cpu",
    )
    _fill(layer.weight, weight)
    if bias is not None:
        _fill(layer.bias, bias)
    return graph.add(node, layer, [given], (outputs, *(axis.outputs for axis in axes)))


def transposed_convolution(node: Node, graph: Builder) -> Data:
    """ConvTranspose with the same padding at both ends of an axis, as PyTorch has it."""
    data, weight = node.data(), node.weights(1, "weights", 3, 4)
    number, groups = weight.ndim - 2, node.attribute("group", 1)
    kernel = node.attribute("kernel_shape", []) or list(weight.shape[2:])
    strides, dilations, more = (
        node.attribute(name, []) or [usual] * number
        for name, usual in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    pads = node.attribute("pads", []) or [0] * (2 * number)
    if node.attribute("auto_pad", "NOTSET") != "NOTSET" or node.attribute("output_shape", []):
        raise node.refused("has auto_pad or output_shape; export it with pads")
    if len(data.shape) != number + 1 or kernel != list(weight.shape[2:]):
        raise node.refused(f"has weights of shape {weight.shape} for inputs {data.shape}")
    lengths = {len(strides), len(dilations), len(more)}
    if lengths != {number} or len(pads) != 2 * number or min(*strides, *dilations) < 1:
        raise node.refused("has strides, dilations or pads that do not go with its kernel")
    if pads[:number] != pads[number:] or min(pads) < 0:
        raise node.refused(f"has pads {pads}; give both ends of an axis the same")
    if any(not 0 <= after < max(by) for after, *by in zip(more, strides, dilations, strict=True)):
        raise node.refused(f"has output_padding {more}, not below strides or dilations")
    if groups < 1 or len(weight) != data.shape[0] or len(weight) % groups:
        raise node.refused(f"has weights of shape {weight.shape} in {groups} groups")
    outputs = weight.shape[1] * groups
    bias = None if node.given(2) is None else node.weights(2, "a bias", 1)
    if bias is not None and len(bias) != outputs:
        raise node.refused(f"has a bias of {len(bias)} numbers for {outputs} channels")
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d = nn.utils.skip_init(
        nn.ConvTranspose1d if number == 1 else nn.ConvTranspose2d,
        len(weight),
        outputs,
        tuple(kernel),
        stride=tuple(strides),
        padding=tuple(pads[:number]),
        output_padding=tuple(more),
        groups=groups,
        bias=bias is not None,
        dilation=tuple(dilations),
        dtype=graph.kind,
        device="cpu",
    )
    _fill(layer.weight, weight)
    if layer.bias is not None and bias is not None:
        _fill(layer.bias, bias)
    lengths_after = [
        (size - 1) * stride - 2 * pad + dilation * (width - 1) + after + 1
        for size, stride, pad, dilation, width, after in zip(
            data.shape[1:], strides, pads[:number], dilations, kernel, more, strict=True
        )
    ]
    return graph.add(node, layer, [data], (outputs, *lengths_after))


def average(node: Node, graph: Builder) -> Data:
    """AveragePool."""
    data = node.data()
    kernel = node.attribute("kernel_shape", [])
    with_padding = bool(node.attribute("count_include_pad", 0))
    axes = axes_of(node, data, kernel)
    shape = (data.shape[0], *(axis.outputs for axis in axes))
    strides = tuple(axis.stride for axis in axes)
    kind: Any = nn.AvgPool1d if len(axes) == 1 else nn.AvgPool2d
    divisors = np.ones(())
    for axis in axes:
        divisors = divisors[..., None] * axis.counts(padding=with_padding)
    given = _padded(node, graph, data, axes)
    if all(axis.dilation == 1 for axis in axes):
        made = graph.add(node, kind(tuple(kernel), stride=strides), [given], shape)
    else:
        made = graph.add(node, _dilated_average(data.shape[0], axes, graph.kind), [given], shape)
    factors = math.prod(kernel) / divisors
    if bool((factors == 1).all()):
        return made
    factor = torch.from_numpy(factors).to(graph.kind)
    return graph.add(node, Scaled(factor), [made], shape)


def _dilated_average(channels: int, axes: list[Axis], kind: torch.dtype) -> nn.Module:
    layer: nn.Conv1d | nn.Conv2d = nn.utils.skip_init(
        nn.Conv1d if len(axes) == 1 else nn.Conv2d,
        channels,
        channels,
        tuple(axis.kernel for axis in axes),
        stride=tuple(axis.stride for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
        groups=channels,
        bias=False,
        dtype=kind,
        device="cpu",
    )
    with torch.no_grad():
        layer.weight.fill_(1 / math.prod(axis.kernel for axis in axes))
    return layer


def global_average(node: Node, graph: Builder) -> Data:
    """GlobalAveragePool."""
    data = node.data()
    if len(data.shape) not in (2, 3):
        raise node.refused(f"works on inputs of shape {data.shape}; one or two axes are taken")
    ones = (1,) * (len(data.shape) - 1)
    layer = nn.AdaptiveAvgPool1d(1) if len(ones) == 1 else nn.AdaptiveAvgPool2d((1, 1))
    return graph.add(node, layer, [data], (data.shape[0], *ones))


def _fill(parameter: Tensor, values: Array) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values))
