"""The models a run can train, each of which can be evaluated under encryption."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flower_app.data import typical
from flower_app.data.features import FEATURES
from flower_app.models.specs import MODELS

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)

# Chosen on the validation images.
_MLP_WIDTH = 2.0
_CNN_WIDTH = 2.2


@dataclass(frozen=True)
class _Start:
    """First weights of a CNN: factors of its filters and of its pooling, and the bias after it.

    ``less`` is the share of its typical hidden numbers that the bias subtracts.
    """

    gain: float
    pool: float
    bias: float
    less: float


_CNNS = {"cnn": _Start(1.3, 0.37, 1.0, 0.5), "relu-cnn": _Start(4.0, 4.0, 0.0, 0.0)}


def build_model(name: str) -> nn.Sequential:
    """Return a model with its first weights, which are the same everywhere and depend on no data.

    ``hog-linear`` starts at zero and has no bias: where clients know a few digits each, a bias
    mostly learns which digits were drawn. The first layers of ``mlp`` and ``cnn`` start as
    filters for strokes in four directions, whose squares say how much of a stroke there is;
    their last layers start at zero. Under differential privacy a good start is worth more than a
    random one: what is there already need not be learned through noise. The hidden numbers of
    ``cnn`` start less half of what digits drawn by rule have (``data.typical``). ``relu-cnn`` is
    ``cnn`` with ReLUs for squares, without that; inference in shares takes it as it is.

    ``"hog-linear"``: 392 → 10 on fixed features. ``"mlp"``: 784 → 64, square, → 10. ``"cnn"``:
    convolution of 1 → 4 channels, 7 × 7, stride 3, square, 256 → 64, square, 64 → 10, the network
    of TenSEAL's fourth tutorial. Another name raises ``ValueError``.
    """
    if name == "hog-linear":
        return nn.Sequential(_with(nn.Linear(FEATURES, 10, bias=False), np.zeros((10, FEATURES))))
    # Brings TenSEAL with it; a deployed client starts a process for every message.
    from privacy.inference import Square

    if name == "mlp":
        places = np.arange(4) * 5 + 6.0
        filters = [
            _stroke_filter(angle, (row, column), _MLP_WIDTH, 28)
            for row in places
            for column in places
            for angle in _ANGLES
        ]
        return nn.Sequential(
            nn.Flatten(),
            _with(nn.Linear(784, 64), np.reshape(filters, (64, 784))),
            Square(),
            _with(nn.Linear(64, 10), np.zeros((10, 64))),
        )
    if name in _CNNS:
        cnn = _CNNS[name]
        activation = Square if name == "cnn" else nn.ReLU
        filters = [_stroke_filter(angle, (3, 3), _CNN_WIDTH, 7) for angle in _ANGLES]
        # Each hidden number sums one direction over neighbouring places, 8 × 8 of them to 4 × 4.
        near = np.maximum(0, 1 - np.abs(np.arange(8) - (np.arange(4) * 2 + 0.5)[:, None]) / 2)
        pool = np.einsum("kl,ai,bj->kablij", np.eye(4), near, near).reshape(64, 256)
        bias = cnn.bias - cnn.less * np.array(typical.HIDDEN) / 10
        return nn.Sequential(
            _with(nn.Conv2d(1, 4, kernel_size=7, stride=3), cnn.gain * np.expand_dims(filters, 1)),
            activation(),
            nn.Flatten(),
            _with(nn.Linear(256, 64), cnn.pool * pool, bias=bias),
            activation(),
            _with(nn.Linear(64, 10), np.zeros((10, 64))),
        )
    raise ValueError(f"model = {name!r} is unknown; choose one of {', '.join(MODELS)}")


_ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)


def _stroke_filter(
    angle: float, centre: tuple[float, float], width: float, side: int
) -> NDArray[np.float64]:
    """Return a Gaussian's derivative along a direction, float64 (side, side), of length 1."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    rows, columns = rows - centre[0], columns - centre[1]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    values = along * np.exp(-(rows**2 + columns**2) / (2 * width**2))
    return np.asarray(values / np.linalg.norm(values))


def _with(
    layer: _Layer, weight: NDArray[np.float64], bias: NDArray[np.float64] | float = 0.0
) -> _Layer:
    """Give a layer its first weights."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))
    return layer
