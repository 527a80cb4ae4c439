"""A compiled model: the plan for others, and the weights for the model owner."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from privacy.inference.arithmetic.network import Network
from privacy.inference.input_range import inputs_of
from privacy.inference.packed_model import PackedModel


@dataclass(frozen=True)
class CompiledModel(PackedModel):
    """A model made ready for encrypted questions; made by :func:`compile_model`.

    It holds the model's weights, and no key. It is the model owner's; others may see the plan.

    Attributes
    ----------
    plan : Plan
    program : SlotProgram, ProductProgram or BatchProgram
        The packed weights.
    network : Network
        The model in the clear, as it was compiled: affine maps and polynomials in double precision.
    model : nn.Module
        The model itself as PyTorch runs it, in evaluation mode and double precision; encrypted
        answers are compared with it.
    """

    network: Network = field(repr=False)
    model: nn.Module = field(repr=False)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The model's own logits, in double precision, of inputs (images, ...): (images, logits).

        PyTorch computes them, from :attr:`model`.

        Raises
        ------
        TypeError, ValueError
            If an input has another shape than the plan's.
        """
        values = inputs_of("inputs", inputs, self.plan.input_shape)
        with torch.no_grad():
            logits = self.model(torch.from_numpy(values))
        return np.asarray(logits.numpy()).reshape(len(values), -1)
