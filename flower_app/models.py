"""The models a run can train, each of which can be evaluated under encryption."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from flower_app.data.features import FEATURE_HIGH, FEATURE_LOW, FEATURES
from flower_app.data.inputs import PIXEL_HIGH, PIXEL_LOW, InputKind


class Square(nn.Module):
    """x ↦ x², the activation that encrypted arithmetic can do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the square of every element."""
        return x * x


@dataclass(frozen=True)
class ModelSpec:
    """What a model is and what it expects.

    Attributes
    ----------
    name
        As in the configuration.
    kind
        What it sees of an image, as ``flower_app.data.encode`` names it.
    shape
        Of one input.
    low, high
        Every value of every input lies between them, whatever the image.
    classes
        How many logits it gives.
    """

    name: str
    kind: InputKind
    shape: tuple[int, ...]
    low: float
    high: float
    classes: int = 10


MODELS: Mapping[str, ModelSpec] = {
    "hog-linear": ModelSpec("hog-linear", "hog", (FEATURES,), FEATURE_LOW, FEATURE_HIGH),
    "mlp": ModelSpec("mlp", "pixels", (1, 28, 28), PIXEL_LOW, PIXEL_HIGH),
    "cnn": ModelSpec("cnn", "pixels", (1, 28, 28), PIXEL_LOW, PIXEL_HIGH),
}


def build_model(name: str) -> nn.Sequential:
    """Return a fresh model; its initial weights depend on torch's generator and on no data.

    Parameters
    ----------
    name
        ``"hog-linear"``: 392 → 10 on fixed features. ``"mlp"``: 784 → 64, square, → 10.
        ``"cnn"``: convolution of 1 → 4 channels, 7 × 7, stride 3, square, 256 → 64, square,
        64 → 10, the network of TenSEAL's fourth tutorial.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if name == "hog-linear":
        linear = nn.Linear(FEATURES, 10)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(linear)
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=7, stride=3),
            Square(),
            nn.Flatten(),
            nn.Linear(256, 64),
            Square(),
            nn.Linear(64, 10),
        )
    raise ValueError(f"model = {name!r} is unknown; choose one of {', '.join(MODELS)}")
