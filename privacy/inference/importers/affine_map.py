"""Affine maps in double precision, by which linear estimators are put together."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class AffineMap:
    """x ↦ weight·x + bias.

    Attributes
    ----------
    weight : ndarray, shape (outputs, inputs)
    bias : ndarray, shape (outputs,)
    """

    weight: Vector
    bias: Vector

    def then(self, after: "AffineMap") -> "AffineMap":
        """Another map of this one's outputs, as one map of the inputs."""
        return AffineMap(after.weight @ self.weight, after.weight @ self.bias + after.bias)

    def layer(self) -> nn.Linear:
        """The map as a layer in double precision; no random number is drawn for it."""
        outputs, inputs = self.weight.shape
        made: nn.Linear = nn.utils.skip_init(
            nn.Linear, inputs, outputs, dtype=torch.float64, device="cpu"
        )
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(self.weight))
            made.bias.copy_(torch.from_numpy(self.bias))
        return made


Steps = list[AffineMap | str]
"""Affine maps and names of activations in a row."""


def inputs(steps: Steps) -> int:
    """How many values the first map takes."""
    return int(next(step.weight.shape[1] for step in steps if isinstance(step, AffineMap)))
