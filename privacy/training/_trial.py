"""How a trial is run before anything is charged: at which state, and what counts as equal."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Records that a trial is run on.
BATCH = 5

# Relative to the largest number of what is compared: in batches of one size, and of several,
# where other kernels round otherwise.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF, OTHER_SIZE = 3e-2, 10.0


def same_numbers(one: Tensor, other: Tensor, slack: float = 1.0) -> bool:
    if one.shape != other.shape:
        return False
    close = slack * CLOSE.get(one.dtype, HALF if one.is_floating_point() else 0.0)
    one, other = one.double(), other.double()
    finite = one[one.isfinite()].abs()
    largest = float(finite.amax()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=close, atol=close * largest, equal_nan=True)


@contextmanager
def fixed_randomness(model: nn.Module, seed: int) -> Iterator[None]:
    """Dropout and the like draw the same every time, and the process's state stays as it was."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        seed_global(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def seed_global(seed: int) -> None:
    # torch.manual_seed would ask every kind of device, which costs more than the trial.
    torch.default_generator.manual_seed(seed)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The whole model in evaluation mode, for comparisons that no random draw may disturb."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def away_from_constants(model: nn.Module) -> Iterator[None]:
    """Trainable parameters that start as constants, zero gates above all, have other values.

    A path that a zero shuts now opens with the first step.
    """
    before: dict[nn.Parameter, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.requires_grad or not parameter.numel():
                    continue
                if bool(parameter.amin() == parameter.amax()):
                    before[parameter] = parameter.clone()
                    drawn = torch.rand(parameter.shape, generator=generator)
                    parameter.add_((0.05 + 0.1 * drawn).to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before.items():
                parameter.copy_(values)
