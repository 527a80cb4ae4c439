"""The optimizer's step by a clipped sum and its noise; plain gradient descent."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privacy.arguments import number
from privacy.mechanisms import Randomness, add_gaussian
from privacy.training.per_example.gradients import Gradients


class GradientDescent:
    """Plain gradient descent, ``torch.optim.SGD`` without its options: x ← x − η·g.

    The first optimizer that ``torch.optim`` makes in a process loads TorchDynamo, over a CPU
    second, and a deployed client starts a process for every message.

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
        rate = number("learning_rate", learning_rate, above=0)
        tensors = [] if isinstance(parameters, (nn.Module, Tensor)) else list(parameters)
        if not tensors or not all(isinstance(each, Tensor) for each in tensors):
            raise TypeError("parameters are no tensors; give model.parameters()")
        self.param_groups: list[dict[str, Any]] = [{"params": tensors, "lr": rate}]

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class NoisyOptimizer:
    """Adds up clipped gradients in units of S, adds noise once a logical batch, steps.

    Sums over physical batches, the noise and the average are in double precision; the result is
    rounded to the parameter's precision once, after the noise (float16: to its largest number where
    it lies beyond). ``sensitivity`` is the most that one example moves the average, S over the
    expected batch: a sum in units of S is multiplied by it.
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
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self._trained = [each for each in self._parameters if each.requires_grad]
        self._sums: Gradients = {}

    def add_clipped(self, gradients: Gradients) -> None:
        """Add one physical batch's clipped gradients to the logical batch's sum."""
        for parameter, gradient in gradients.items():
            summed = self._sums.get(parameter)
            self._sums[parameter] = gradient if summed is None else summed.double().add_(gradient)

    def step(self) -> None:
        """Step by the sum and its noise, and begin the next logical batch."""
        # A parameter without a gradient in the whole batch counts as zero, so it gets noise too.
        sums = [self._sums.pop(each, None) for each in self._trained]
        gradients = [
            torch.zeros_like(each, dtype=torch.float32) if summed is None else summed
            for each, summed in zip(self._trained, sums, strict=True)
        ]
        if self._noise_multiplier:
            gradients = self._noisy(gradients)
        gradients = [gradient.mul_(self._sensitivity) for gradient in gradients]
        self._clear()  # of frozen parameters too: a gradient left there would be stepped by
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            if parameter.dtype == torch.float16:
                largest = torch.finfo(torch.float16).max
                gradient = gradient.clamp(-largest, largest)
            parameter.grad = gradient.to(parameter.dtype)
        self._optimizer.step()
        self._clear()

    def _noisy(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients with noise of standard deviation z, in units of S, on every coordinate."""
        # It is drawn on the CPU, where its law and its secrecy are proved, and goes to a device in
        # one copy, for which the CPU does not wait.
        sizes = [gradient.numel() for gradient in gradients]
        drawn = torch.from_numpy(np.zeros(sum(sizes)))
        devices = {gradient.device for gradient in gradients}
        if torch.cuda.is_available() and any(device.type == "cuda" for device in devices):
            drawn = drawn.pin_memory()
        add_gaussian(drawn.numpy(), sigma=self._noise_multiplier, randomness=self._randomness)
        pieces = {device: drawn.to(device, non_blocking=True).split(sizes) for device in devices}
        return [
            gradient.double() + pieces[gradient.device][i].view_as(gradient)
            for i, gradient in enumerate(gradients)
        ]

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
