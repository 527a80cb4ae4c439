"""What the models of a run are called and what they expect, without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from flower_app.data.features import FEATURE_HIGH, FEATURE_LOW, FEATURES
from flower_app.data.inputs import InputKind


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
    parameters
        Of its layers, in all.
    classes
        How many logits it gives.
    """

    name: str
    kind: InputKind
    shape: tuple[int, ...]
    low: float
    high: float
    parameters: int
    classes: int = 10


MODELS: Mapping[str, ModelSpec] = {
    "hog-linear": ModelSpec("hog-linear", "hog", (FEATURES,), FEATURE_LOW, FEATURE_HIGH, 3_920),
    "mlp": ModelSpec("mlp", "pixels", (1, 28, 28), 0.0, 1.0, 50_890),
    "cnn": ModelSpec("cnn", "pixels", (1, 28, 28), 0.0, 1.0, 17_298),
}
