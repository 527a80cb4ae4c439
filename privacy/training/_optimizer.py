"""Opacus's optimizer, with the noise drawn from the operating system's randomness."""

from typing import Any

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor
from torch.optim import Optimizer

from privacy.mechanisms import Randomness, gaussian

from ._gradients import Gradients, LayerGradients

# Opacus's own guard against a division by zero; it also leaves room for the norm's rounding.
EPSILON = 1e-6


def clipped_sum(layers: list[LayerGradients], clipping_norm: float) -> Gradients:
    """Sum over the examples of min(1, S/‖g‖)·g, g being one example's gradient.

    An example whose norm is not finite in the model's precision (NaN, infinite or overflowing)
    adds zero: it takes no part in the sum, and every example's influence stays at most S.

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
    squared = torch.stack([layer.squared_norms() for layer in layers]).sum(0)
    finite = torch.isfinite(squared)
    if not bool(finite.all()):
        layers = [layer.only(finite) for layer in layers]
        squared = squared[finite]
    factors = (clipping_norm / (squared.sqrt() + EPSILON)).clamp(max=1.0)
    found: Gradients = {}
    for layer in layers:
        found.update(layer.weighted_sum(factors))
    return found


class NoisyOptimizer(DPOptimizerFastGradientClipping):
    """Takes sums of clipped gradients, adds the noise once a logical batch, averages, steps.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Steps.
    randomness : Randomness
        Where the noise comes from.
    settings : Any
        Opacus's: ``noise_multiplier``, ``max_grad_norm``, ``expected_batch_size``.
    """

    def __init__(self, optimizer: Optimizer, *, randomness: Randomness, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.randomness = randomness

    def add_clipped(self, gradients: Gradients) -> None:
        """Add one physical batch's clipped gradients to the logical batch's sum."""
        for parameter, gradient in gradients.items():
            summed: Tensor | None = getattr(parameter, "summed_grad", None)
            total = gradient if summed is None else summed.add_(gradient)
            parameter.summed_grad = total  # type: ignore[attr-defined]

    def accumulate(self) -> None:
        """What had no gradient in the whole batch counts as zero, so that it gets noise too."""
        for parameter in self.params:
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter)

    def add_noise(self) -> None:
        """Add noise of standard deviation z·S to every coordinate of the sum."""
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
