"""Opacus's optimizer, with the noise drawn from the operating system's randomness."""

import math

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor
from torch.optim import Optimizer

from privacy.mechanisms import Randomness, gaussian

from ._gradients import Gradients, LayerGradients

# Opacus's own guard against a division by zero; it also leaves room for the norm's rounding.
EPSILON = 1e-6


@torch.no_grad()
def clipped_sum(layers: list[LayerGradients], *, clipping_norm: float, scale: float) -> Gradients:
    """Sum over the examples of scale·min(1, S/‖g‖)·g, g being one example's gradient.

    An example whose norm is not finite in the model's precision (NaN, infinite or overflowing)
    adds zero: it takes no part in the sum, and every example's influence stays at most scale·S.

    Parameters
    ----------
    layers : list of LayerGradients
        All layers of the model, for the same examples.
    clipping_norm : float
        S, over all layers together.
    scale : float
        What the sum is multiplied by, 1 over the expected batch for an average.

    Returns
    -------
    dict of nn.Parameter to Tensor
        By parameter, in its shape.
    """
    parts = torch.stack([part for layer in layers for part in layer.norms()])
    norms: Tensor = torch.linalg.vector_norm(parts, dim=0)
    if not math.isfinite(float(norms.sum())):
        finite = torch.isfinite(norms)
        layers = [layer.only(finite) for layer in layers]
        norms = norms[finite]
    factors = norms.add_(EPSILON).reciprocal_().mul_(scale * clipping_norm).clamp_(max=scale)
    found: Gradients = {}
    for layer in layers:
        found.update(layer.weighted_sum(factors))
    return found


class NoisyOptimizer(DPOptimizerFastGradientClipping):
    """Adds up averaged clipped gradients, adds the noise once a logical batch, steps.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Steps.
    randomness : Randomness
        Where the noise comes from.
    noise_multiplier : float
        z.
    sensitivity : float
        The most that one example moves the average, S over the expected batch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        randomness: Randomness,
        noise_multiplier: float,
        sensitivity: float,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=sensitivity,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.randomness = randomness

    def add_clipped(self, gradients: Gradients) -> None:
        """Add one physical batch's clipped gradients to the logical batch's sum."""
        for parameter, gradient in gradients.items():
            summed: Tensor | None = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = gradient if summed is None else summed.add_(gradient)  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Take from the parameters what training put there."""
        self.zero_grad(set_to_none=True)
        for parameter in self.params:
            del parameter.summed_grad

    def accumulate(self) -> None:
        """What had no gradient in the whole batch counts as zero, so that it gets noise too."""
        for parameter in self.params:
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter)

    def add_noise(self) -> None:
        """Add noise of standard deviation z·sensitivity to every coordinate."""
        if not self.noise_multiplier:
            for parameter in self.params:
                parameter.grad = parameter.summed_grad
            return
        sizes = [parameter.numel() for parameter in self.params]
        drawn = gaussian(
            sum(sizes),
            sigma=self.noise_multiplier * self.max_grad_norm,
            randomness=self.randomness,
        )
        noise = torch.from_numpy(drawn).split(sizes)
        for parameter, piece in zip(self.params, noise, strict=True):
            noisy = parameter.summed_grad.double() + piece.view_as(parameter).to(parameter.device)
            parameter.grad = noisy.to(parameter.dtype)
