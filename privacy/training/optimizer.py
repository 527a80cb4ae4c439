"""Clipped sums, their noise, and the step they make."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privacy.mechanisms import Randomness, add_gaussian
from privacy.training.per_example.gradients import (
    Gradients,
    LayerGradients,
    full_products,
    vector_norms,
)
from privacy.training.protection import positive

# By how much a clipped example stays below S, relatively: room for its coordinates' rounding.
MARGIN = 1e-6


@torch.no_grad()
def clipped_sum(layers: list[LayerGradients], *, clipping_norm: float) -> Gradients:
    """Sum over the examples of min(1/S, 1/‖g‖)·g, g being one example's gradient.

    It is the clipped sum in units of S, so that whatever S is, single precision holds it and
    rounds it by what is little beside the noise. Norms and factors are in double precision,
    products and sums in single at least, whatever the model's. An example whose norm is not
    finite (NaN, infinite or overflowing single precision) adds zero: it takes no part in the
    sum, and every example's influence stays at most 1.

    Parameters
    ----------
    layers : list of LayerGradients
        All layers of the model, for the same examples.
    clipping_norm : float
        S, over all layers together.

    Returns
    -------
    dict of nn.Parameter to Tensor
        By parameter, in its shape.
    """
    if not layers:
        return {}
    parts = torch.stack([part for layer in layers for part in layer.norms()], dim=-1)
    single = all(layer.dtype == torch.float32 for layer in layers)
    norms = torch.linalg.vector_norm(parts, dim=-1) if single else vector_norms(parts)
    total = float(norms.sum())
    if not math.isfinite(total):
        finite = torch.isfinite(norms)
        layers = [layer.only(finite) for layer in layers]
        norms = norms[finite]
    factors = norms.mul(1 + MARGIN).reciprocal_().clamp_(max=1 / clipping_norm)
    # Below its smallest normal number a precision rounds by more than the margin.
    smallest = max(torch.finfo(layer.dtype).tiny for layer in layers)
    if not 2 * smallest * total < 1:
        factors = torch.where(factors < smallest, 0.0, factors)
    found: Gradients = {}
    with full_products(factors.device):
        for layer in layers:
            found.update(layer.weighted_sum(factors))
    return found


class GradientDescent:
    """Plain gradient descent, ``torch.optim.SGD`` without its options: x ← x − η·g.

    The first optimizer that ``torch.optim`` makes in a process loads TorchDynamo, which takes a
    CPU second and more. A deployed client starts a process for every message, and takes a few
    steps in it: there this one is for.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        The model's.
    learning_rate : float
        η, above zero.

    Raises
    ------
    TypeError, ValueError
        If the parameters are something else, or the learning rate is not above zero and finite.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, learning_rate: float) -> None:
        positive("learning_rate", learning_rate, "a number above zero and finite")
        if isinstance(parameters, (nn.Module, Tensor)):
            raise TypeError(f"parameters is a {type(parameters).__name__}: give model.parameters()")
        held = list(parameters)
        if not all(isinstance(each, Tensor) for each in held):
            raise TypeError("parameters holds what is no parameter: give model.parameters()")
        self.param_groups: list[dict[str, Any]] = [{"params": held, "lr": learning_rate}]

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class NoisySteps:
    """Adds up clipped gradients in units of S, adds the noise once a logical batch, steps.

    Sums over physical batches, the noise and the average are in double precision; the result is
    rounded to the parameter's precision once, after the noise. What that cannot hold becomes the
    largest that it can.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or GradientDescent
        Steps.
    randomness : Randomness
        Where the noise comes from.
    noise_multiplier : float
        z.
    sensitivity : float
        The most that one example moves the average, S over the expected batch: what a sum in
        units of S is multiplied by.
    """

    def __init__(
        self,
        optimizer: Optimizer | GradientDescent,
        *,
        randomness: Randomness,
        noise_multiplier: float,
        sensitivity: float,
    ) -> None:
        self._optimizer, self._randomness = optimizer, randomness
        self._noise_multiplier, self._sensitivity = noise_multiplier, sensitivity
        self._held = [each for group in optimizer.param_groups for each in group["params"]]
        self._trained = [each for each in self._held if each.requires_grad]
        self._sums: Gradients = {}

    def add_clipped(self, gradients: Gradients) -> None:
        """Add one physical batch's clipped gradients to the logical batch's sum."""
        for parameter, gradient in gradients.items():
            summed = self._sums.get(parameter)
            self._sums[parameter] = gradient if summed is None else summed.double().add_(gradient)

    def step(self) -> None:
        """Step by the sum and its noise, and begin the next logical batch."""
        # What had no gradient in the whole batch counts as zero, so that it gets noise too.
        sums = [self._sums.pop(each, None) for each in self._trained]
        gradients = [
            torch.zeros_like(each, dtype=torch.float32) if summed is None else summed
            for each, summed in zip(self._trained, sums, strict=True)
        ]
        if self._noise_multiplier:
            gradients = self._noisy(gradients)
        gradients = [gradient.mul_(self._sensitivity) for gradient in gradients]
        self._forget()  # of frozen parameters too: a gradient left there would be stepped by
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            if parameter.dtype == torch.float16:
                largest = torch.finfo(torch.float16).max
                gradient = gradient.clamp(-largest, largest)
            parameter.grad = gradient.to(parameter.dtype)
        self._optimizer.step()
        self._forget()

    def _noisy(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients with noise of standard deviation z, in units of S, on every coordinate."""
        sizes = [gradient.numel() for gradient in gradients]
        drawn = np.zeros(sum(sizes))
        add_gaussian(drawn, sigma=self._noise_multiplier, randomness=self._randomness)
        noise = torch.from_numpy(drawn).split(sizes)
        return [
            gradient.double() + piece.view_as(gradient).to(gradient.device)
            for gradient, piece in zip(gradients, noise, strict=True)
        ]

    def _forget(self) -> None:
        for parameter in self._held:
            parameter.grad = None
