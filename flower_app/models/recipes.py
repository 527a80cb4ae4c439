"""The hyper-parameters that suit each model, chosen on images that belong to no client."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What suits a model, chosen on the validation split.

    Attributes
    ----------
    rounds : int
        T, the number of rounds.
    clipping_norm : float
        S, of a client's update.
    server_learning_rate, server_momentum : float
        Of the server's optimizer.
    local_learning_rate : float
        Of the client's SGD.
    local_steps : int
        Full-batch steps a round.
    example_clipping_norm : float
        C, of one example's gradient.
    """

    rounds: int
    clipping_norm: float
    server_learning_rate: float
    server_momentum: float
    local_learning_rate: float
    local_steps: int
    example_clipping_norm: float


RECIPES: Mapping[str, Recipe] = {
    "hog-linear": Recipe(
        rounds=75,
        clipping_norm=0.02,
        server_learning_rate=40.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=1.0,
    ),
    "mlp": Recipe(
        rounds=100,
        clipping_norm=0.005,
        server_learning_rate=12.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=10.0,
    ),
    "cnn": Recipe(
        rounds=100,
        clipping_norm=0.005,
        server_learning_rate=6.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=0.2,
    ),
}
