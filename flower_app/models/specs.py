"""The models of a run by name, with their inputs and hyper-parameters, without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from flower_app.data.features import FEATURE_HIGH, FEATURE_LOW, FEATURES
from flower_app.data.inputs import InputKind


@dataclass(frozen=True)
class ModelSpec:
    """A model's inputs and outputs.

    It sees of an image the ``kind`` of ``flower_app.data.encode``, or of a user's ``own`` data
    what their task says: an array of ``shape`` with every value from ``low`` to ``high`` whatever
    the example (for a vector also one end for each feature). It gives ``classes`` logits, called
    ``class_names`` where they have names, and ``feature_names`` are those of a user's table, in
    which ``choices`` belong together: a column's name, the place of its first feature, and its
    categories. Its layers have ``parameters``, in all; 0 where the model must be made to count
    them. Its logits are polynomials of the inputs where ``in_ckks``; shares take the others too.
    """

    name: str
    kind: InputKind
    shape: tuple[int, ...]
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    parameters: int = 0
    classes: int = 10
    in_ckks: bool = True
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    choices: tuple[tuple[str, int, tuple[str, ...]], ...] = ()


MODELS: Mapping[str, ModelSpec] = {
    "hog-linear": ModelSpec("hog-linear", "hog", (FEATURES,), FEATURE_LOW, FEATURE_HIGH, 3_920),
    "mlp": ModelSpec("mlp", "pixels", (1, 28, 28), 0.0, 1.0, 50_890),
    "cnn": ModelSpec("cnn", "pixels", (1, 28, 28), 0.0, 1.0, 17_298),
    "relu-cnn": ModelSpec("relu-cnn", "pixels", (1, 28, 28), 0.0, 1.0, 17_298, in_ckks=False),
}


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters that suit a model, chosen on images that belong to no client.

    T; S; the server's optimizer; the client's SGD, with full-batch steps a round; C.
    """

    rounds: int
    clipping_norm: float
    server_learning_rate: float
    server_momentum: float
    local_learning_rate: float
    local_steps: int
    example_clipping_norm: float


RECIPES: Mapping[str, Recipe] = {
    "hog-linear": Recipe(75, 0.02, 40.0, 0.9, 1.0, 1, 1.0),
    "mlp": Recipe(100, 0.005, 12.0, 0.9, 1.0, 1, 10.0),
    "cnn": Recipe(100, 0.005, 6.0, 0.9, 1.0, 1, 0.2),
    "relu-cnn": Recipe(100, 0.005, 6.0, 0.9, 1.0, 1, 0.2),
}


@dataclass(frozen=True)
class SiloRecipe:
    """Hyper-parameters of distributed DP-SGD, chosen on images that belong to no silo.

    T steps; p; S of one record's gradient; the server's optimizer.
    """

    rounds: int
    record_sampling_rate: float
    clipping_norm: float
    server_learning_rate: float
    server_momentum: float


SILO_RECIPES: Mapping[str, SiloRecipe] = {
    "hog-linear": SiloRecipe(250, 0.02, 0.5, 20.0, 0.9),
    "mlp": SiloRecipe(250, 0.02, 0.2, 2.0, 0.9),
    "cnn": SiloRecipe(250, 0.02, 0.2, 4.0, 0.9),
    "relu-cnn": SiloRecipe(250, 0.02, 0.2, 4.0, 0.9),
}

OWN_RECIPES: Mapping[str, Recipe] = {
    "logistic": Recipe(60, 0.1, 2.0, 0.9, 1.0, 1, 1.0),
    "mlp": Recipe(60, 0.1, 2.0, 0.9, 1.0, 1, 1.0),
    "cnn": Recipe(60, 0.05, 2.0, 0.9, 1.0, 1, 1.0),
}
"""For users' own data: that of logistic was chosen on made-up tables, the others are first guesses.

A model by a user's function has that of mlp.
"""

OWN_SILO_RECIPES: Mapping[str, SiloRecipe] = {
    "logistic": SiloRecipe(100, 0.1, 0.5, 1.0, 0.9),
    "mlp": SiloRecipe(100, 0.1, 0.5, 0.5, 0.9),
    "cnn": SiloRecipe(100, 0.1, 0.5, 0.5, 0.9),
}
