"""A module in the making: layers in the order of the file, each with the values that it takes."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from privacy.inference.importers.onnx_layers import Paths
from privacy.inference.importers.onnx_values import MAX_ELEMENTS, Constant, Data, Node, Value

_OPEN_BATCHES = (1_000_003, 1_000_033)
"""Primes, which no size of a model is a multiple of."""


class Builder:
    """Collects layers.

    Parameters
    ----------
    kind : torch.dtype
        Of weights and constants.
    batch : int, optional
        How many inputs the file is made for, where it says so.

    Attributes
    ----------
    batch, other_batch : int
        Sizes of a batch with which shapes are computed, to tell what depends on them.
    """

    def __init__(self, kind: torch.dtype, batch: int | None) -> None:
        self.kind = kind
        self.batch, self.other_batch = _OPEN_BATCHES if batch is None else (batch, batch)
        self._layers: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def add(
        self, node: Node, layer: nn.Module, sources: Sequence[Data], shape: Sequence[int]
    ) -> Data:
        """Append a layer; ``shape`` is that of one output."""
        if math.prod(shape) > MAX_ELEMENTS or min(shape, default=1) < 1:
            raise node.refused(f"makes shape {tuple(shape)} of an input, which is not taken")
        self._layers.append((node.operator, layer, tuple(source.index for source in sources)))
        return Data(len(self._layers), tuple(shape))

    def sizes(self, value: Value, chosen: slice) -> Constant:
        """Axes of a value's shape, the batch's first."""
        if isinstance(value, Constant):
            shapes = [value.array.shape, value.other.shape]
        else:
            shapes = [(batch, *value.shape) for batch in (self.batch, self.other_batch)]
        made = [np.array(shape[chosen], dtype=np.int64) for shape in shapes]
        return Constant(made[0], made[1])

    def layer(self, data: Data) -> nn.Module | None:
        """The layer that made a value; None for the input."""
        return self._layers[data.index - 1][1] if data.index else None

    def sources(self, data: Data) -> tuple[int, ...]:
        """The values that the layer took."""
        return self._layers[data.index - 1][2] if data.index else ()

    def module(self, output: Data) -> nn.Module:
        """The layers that the output needs: one after the other, or on several paths."""
        needed, waiting = {0}, [output.index]
        while waiting:
            index = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting += self._layers[index - 1][2]
        order = sorted(needed)
        places = {index: place for place, index in enumerate(order)}
        operations: dict[str, nn.Module] = OrderedDict()
        sources = []
        for index in order[1:]:
            operator, layer, taken = self._layers[index - 1]
            operations[f"{len(operations)}_{operator}"] = layer
            sources.append([places[source] for source in taken])
        if sources == [[place] for place in range(len(sources))]:
            return nn.Sequential(OrderedDict(operations))
        return Paths(operations, sources)
