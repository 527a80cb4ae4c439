"""Convolutions, transposed ones among them: settings as PyTorch reads them, and their matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import sparse
from torch import Tensor, nn

from privacy.inference.compiler.lowering.matrices import Matrices, convolution

_DIRECT = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
ARGUMENTS = {
    **{f"conv{axes}d": _DIRECT for axes in (1, 2)},
    **{f"conv_transpose{axes}d": _TRANSPOSED for axes in (1, 2)},
}
"""Of PyTorch's functions, in their order."""
_Layer = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


def settings(layer: _Layer) -> dict[str, Any]:
    """A layer's, by the attributes that PyTorch reads when it runs."""
    names = ("weight", "stride", "padding", "dilation", "groups", "padding_mode")
    made = {name: getattr(layer, name) for name in names}
    if layer.padding_mode != "zeros":
        made["around"] = layer._reversed_padding_repeated_twice
    return made


def direct(given: Mapping[str, Any], shape: tuple[int, ...]) -> Matrices:
    """The matrix of a convolution of one or two axes."""
    weight, axes = given["weight"], given["weight"].ndim - 2
    _check_shape(shape, axes)

    def pad(values: Tensor) -> Tensor:
        if "around" in given:
            around = [*given["around"], *[0, 0] * (2 - axes)]
            return nn.functional.pad(values, around, mode=given["padding_mode"])
        padding, sides = given.get("padding", 0), []
        for axis in range(axes - 1, -1, -1):  # the last dimension first
            if isinstance(padding, str):
                both = _along(given.get("dilation", 1), axis) * (weight.shape[2 + axis] - 1)
                both = both if padding == "same" else 0
                sides += [both // 2, both - both // 2]
            else:
                sides += [_along(padding, axis)] * 2
        return nn.functional.pad(values, sides)

    return convolution(
        _in_two_axes(weight),
        (shape[0], *[1] * (2 - axes), *shape[1:]),
        stride=_both(given.get("stride", 1), axes),
        dilation=_both(given.get("dilation", 1), axes),
        groups=given.get("groups", 1),
        pad=pad,
    )


def transposed(
    given: Mapping[str, Any], shape: tuple[int, ...], outputs: tuple[int, ...]
) -> Matrices:
    """The matrix of a transposed convolution: that of the convolution back, turned around."""
    weight, axes = given["weight"], given["weight"].ndim - 2
    _check_shape(shape, axes)
    sides: list[int] = []
    for axis in range(axes - 1, -1, -1):
        sides += [_along(given.get("padding", 0), axis)] * 2
    places = (*[1] * (2 - axes), *shape[1:])
    matrix, structure = convolution(
        _in_two_axes(weight),
        (outputs[0], *[1] * (2 - axes), *outputs[1:]),
        stride=_both(given.get("stride", 1), axes),
        dilation=_both(given.get("dilation", 1), axes),
        groups=given.get("groups", 1),
        pad=lambda values: nn.functional.pad(values, sides),
        places=(places[0], places[1]),
    )
    return sparse.csr_array(matrix.T), sparse.csr_array(structure.T)


def _check_shape(shape: tuple[int, ...], axes: int) -> None:
    if len(shape) != axes + 1:
        wanted = "(channels, length)" if axes == 1 else "(channels, height, width)"
        raise ValueError(f"inputs of shape {shape} are not {wanted}")


def _in_two_axes(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 4 else weight[:, :, None]


def _both(setting: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (*[1] * (2 - axes), *(_along(setting, axis) for axis in range(axes)))


def _along(setting: int | Sequence[int], axis: int) -> int:
    """The setting of one axis: a single number is for both."""
    if isinstance(setting, int):
        return setting
    return setting[axis if len(setting) > 1 else 0]
