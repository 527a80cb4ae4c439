"""The optimizer's step by a clipped sum and its noise; plain gradient descent."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privacy.arguments import number, renamed
from privacy.mechanisms import Randomness
from privacy.training._noise_ahead import NoiseAhead
from privacy.training.per_example.gradients import Gradients


@renamed(lr="learning_rate", params="parameters")
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
    expected batch: a sum in units of S is multiplied by it. Within ``drawing``, ``begin`` each
    logical batch once its records are drawn, and draw nothing else from ``randomness`` until
    ``step``.
    """

    def __init__(
        self,
        optimizer: Optimizer | GradientDescent,
        *,
        randomness: Randomness,
        noise_multiplier: float,
        sensitivity: float,
    ) -> None:
        self._optimizer, self._sensitivity = optimizer, sensitivity
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self._trained = [each for each in self._parameters if each.requires_grad]
        self._sums: Gradients = {}
        self._sizes = [each.numel() for each in self._trained]
        self._noise: NoiseAhead | None = None
        if noise_multiplier:
            self._noise = NoiseAhead(
                sum(self._sizes), sigma=noise_multiplier, randomness=randomness
            )

    def drawing(self) -> AbstractContextManager[object]:
        """A context around all steps, in which a thread may draw the noise."""
        return nullcontext() if self._noise is None else self._noise

    def begin(self) -> None:
        """Begin a logical batch."""
        if self._noise is not None:
            self._noise.begin()

    def add_clipped(self, gradients: Gradients) -> None:
        """Add one physical batch's clipped gradients to the logical batch's sum."""
        for parameter, gradient in gradients.items():
            summed = self._sums.get(parameter)
            self._sums[parameter] = gradient if summed is None else summed.double().add_(gradient)

    def step(self) -> None:
        """Step by the sum and its noise, and begin the next logical batch."""
        # A parameter without a gradient in the whole batch counts as zero, so it gets noise too.
        sums = [self._sums.pop(each, None) for each in self._trained]
        if self._noise is None:
            gradients = self._without_noise(sums)
        else:
            gradients = self._noisy(sums, self._noise.take())
        self._clear()  # of frozen parameters too: a gradient left there would be stepped by
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            gradient.mul_(self._sensitivity)
            if parameter.dtype == torch.float16:
                largest = torch.finfo(torch.float16).max
                gradient.clamp_(-largest, largest)
            # Not the noise's own memory, which the next step overwrites.
            parameter.grad = gradient.to(parameter.dtype, copy=self._noise is not None)
        self._optimizer.step()
        self._clear()

    def _without_noise(self, sums: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            torch.zeros_like(each, dtype=torch.float32) if summed is None else summed
            for each, summed in zip(self._trained, sums, strict=True)
        ]

    def _noisy(self, sums: Sequence[Tensor | None], noise: npt.NDArray[np.float64]) -> list[Tensor]:
        """The sums with noise of standard deviation z, in units of S, on every coordinate.

        They are added where the noise lies, if that is where the parameters lie. It is drawn on the
        CPU, where its law and its secrecy are proved, and goes to a device in one copy, for which
        the CPU does not wait.
        """
        drawn = sent = torch.from_numpy(noise)
        devices = {each.device for each in self._trained}
        if torch.cuda.is_available() and any(device.type == "cuda" for device in devices):
            sent = drawn.pin_memory()  # of its own: the next noise may come before it is read
        pieces = {
            device: (
                drawn if device.type == "cpu" else sent.to(device, non_blocking=sent is not drawn)
            ).split(self._sizes)
            for device in devices
        }
        gradients = []
        for i, (parameter, summed) in enumerate(zip(self._trained, sums, strict=True)):
            noisy = pieces[parameter.device][i].view(parameter.shape)
            gradients.append(noisy if summed is None else noisy.add_(summed))
        return gradients

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
