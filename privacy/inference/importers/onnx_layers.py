"""Operations of ONNX that are no layers of PyTorch, as modules; and a model of several paths."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Scaled(nn.Module):
    """Every element times a constant, whose shape broadcasts to that of a batch."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the constant."""
        return x * self.factor

    def extra_repr(self) -> str:
        """The constant's shape."""
        return f"factor of shape {tuple(self.factor.shape)}"


class Shifted(nn.Module):
    """Every element plus a constant, whose shape broadcasts to that of a batch."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the constant."""
        return x + self.offset

    def extra_repr(self) -> str:
        """The constant's shape."""
        return f"offset of shape {tuple(self.offset.shape)}"


class Sum(nn.Module):
    """Two values, added."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of ``x`` and ``y``, which broadcast."""
        return x + y


class Difference(nn.Module):
    """A value less another one."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference of ``x`` and ``y``, which broadcast."""
        return x - y


class Product(nn.Module):
    """Two values, multiplied element by element."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The product of ``x`` and ``y``, which broadcast."""
        return x * y


class Joined(nn.Module):
    """Values one after the other along an axis, counted with the batch's."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *parts: Tensor) -> Tensor:
        """The parts, concatenated."""
        return torch.cat(parts, dim=self.axis)

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


class Permuted(nn.Module):
    """Axes in another order; the batch's stays first."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with its axes permuted."""
        return x.permute(self.axes)

    def extra_repr(self) -> str:
        """The axes."""
        return f"axes={self.axes}"


class Reshaped(nn.Module):
    """Another shape of each input of the batch."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` in shape (batch, *shape)."""
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """The shape, without the batch."""
        return f"shape={self.shape}"


class Selected(nn.Module):
    """Chosen values of each input, in any order and as often as wanted.

    Parameters
    ----------
    places : ndarray of int
        Of the chosen ones among all values of an input, flat.
    shape : sequence of int
        Of what is chosen of one input.
    """

    places: Tensor

    def __init__(self, places: NDArray[np.int64], shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("places", torch.from_numpy(np.array(places)))
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """The values of ``x`` in these places, in shape (batch, *shape)."""
        return x.flatten(1)[:, self.places].reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """The shape, without the batch."""
        return f"shape={self.shape}"


class Padded(nn.Module):
    """A constant around the values; negative widths cut off."""

    def __init__(self, widths: Sequence[int], value: float) -> None:
        super().__init__()
        self.widths, self.value = tuple(widths), value

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with the constant around it; widths as :func:`torch.nn.functional.pad` has them."""
        return nn.functional.pad(x, self.widths, value=self.value)

    def extra_repr(self) -> str:
        """The widths, last axis first, and the constant."""
        return f"widths={self.widths}, value={self.value:g}"


class Mean(nn.Module):
    """Means along axes, counted with the batch's."""

    def __init__(self, axes: Sequence[int], *, keep: bool) -> None:
        super().__init__()
        self.axes, self.keep = tuple(axes), keep

    def forward(self, x: Tensor) -> Tensor:
        """The means of ``x``."""
        return x.mean(dim=self.axes, keepdim=self.keep)

    def extra_repr(self) -> str:
        """The axes, and whether they stay as axes of one."""
        return f"axes={self.axes}, keep={self.keep}"


class Paths(nn.Module):
    """Operations in the order in which they run, each with the values that it takes.

    Parameters
    ----------
    operations : dict of str to nn.Module
    sources : sequence of sequence of int
        For each operation the values that it takes: 0 is the model's input, k the output of the
        k-th operation. The last operation's output is the model's.
    """

    def __init__(self, operations: dict[str, nn.Module], sources: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(operations)
        self.sources = tuple(map(tuple, sources))

    def forward(self, x: Tensor) -> Tensor:
        """The last operation's output for a batch ``x``."""
        values = [x]
        for operation, sources in zip(self.operations.values(), self.sources, strict=True):
            values.append(operation(*(values[source] for source in sources)))
        return values[-1]

    def extra_repr(self) -> str:
        """Which values each operation takes."""
        return f"sources={self.sources}"
