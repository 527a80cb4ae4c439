"""How a trial is run before anything is charged: on what, at which state, what counts as equal.

Nothing of it comes from a private record. Whether a trial succeeds is seen by whoever waits for the
update, so it may depend on the model, the loss and the shapes of the data alone.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privacy.training.records import Kind

# Records that a trial is run on.
BATCH = 5

# Relative to the largest number of what is compared: in batches of one size, and of several,
# where other kernels round otherwise.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF, OTHER_SIZE = 3e-2, 10.0


@dataclass(frozen=True)
class Values:
    """What records are made up of.

    Parameters
    ----------
    numbers : str
        ``normal`` for standard normal ones, ``uniform`` in [0, 1), ``binary`` for 0 and 1,
        ``counts`` from 1 to 4.
    integers : int or None
        What every integer is; None draws 0 and 1, which every table and every choice of two
        classes has.
    """

    numbers: str
    integers: int | None


# Tried in this order: a model may take no negative numbers, a loss one class or whole numbers only.
VALUES = (
    Values("normal", None),
    Values("uniform", None),
    Values("uniform", 1),
    Values("uniform", 0),
    Values("binary", None),
    Values("counts", None),
)


def made_up(kind: Kind, values: Values) -> list[Tensor]:
    """``BATCH`` records of this kind, always the same: each tensor of shape (BATCH, ...)."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = []
    for shape, dtype, device in kind:
        size = (BATCH, *shape)
        if dtype.is_floating_point or dtype.is_complex:
            drawn = _numbers(values.numbers, size, generator)
        elif dtype == torch.bool or values.integers is None:
            drawn = torch.randint(0, 2, size, generator=generator, device="cpu")
        else:
            drawn = torch.full(size, values.integers, device="cpu")
        made.append(drawn.to(device=device, dtype=dtype))
    return made


def _numbers(which: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if which == "normal":
        return torch.randn(size, generator=generator, device="cpu")
    if which == "uniform":
        return torch.rand(size, generator=generator, device="cpu")
    low, high = (0, 2) if which == "binary" else (1, 5)
    return torch.randint(low, high, size, generator=generator, device="cpu")


def largest_of(values: Tensor) -> float:
    """The largest finite magnitude."""
    if not values.numel():
        return 0.0
    largest = float(values.abs().amax())
    if largest < float("inf"):
        return largest
    finite = values[values.isfinite()]
    return float(finite.abs().amax()) if finite.numel() else 0.0


def closeness(values: Tensor) -> float:
    """What counts as rounding, relative to the largest; ``torch.autocast`` rounds to half."""
    if not (values.is_floating_point() or values.is_complex()):
        return 0.0
    if torch.is_autocast_enabled(values.device.type):
        return HALF
    return CLOSE.get(values.dtype, HALF)


def same_numbers(
    one: Tensor,
    other: Tensor,
    slack: float = 1.0,
    least: float = 0.0,
    *,
    close: float = 0.0,
    missing: bool = False,
) -> bool:
    """Whether they differ by no more than rounding, or ``least``.

    Rounding is that of their own precision, or ``close``, of what they were computed from. NaN is
    equal to nothing, or to itself where numbers may be ``missing``.
    """
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    if not one.is_floating_point() and not one.is_complex():
        return torch.equal(one, other)
    same = one == other
    if missing:
        same |= one.isnan() & other.isnan()
    apart = torch.where(same, 0, one - other).abs().amax()
    close = slack * max(close, closeness(one))
    return float(apart) <= max(close * largest_of(one), least)


class GlobalGenerators:
    """The generators that a program draws from without naming one: torch's, Python's, NumPy's."""

    def __init__(self, devices: set[int]) -> None:
        self._devices = devices
        self._seed = 0
        self._seeded: dict[int, list[object]] = {}

    def restart(self, seed: int) -> None:
        """Dropout and the like draw the same after the same seed."""
        seed_global(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        for device in self._devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        self._seed = seed
        if seed not in self._seeded:
            self._seeded[seed] = self._states()

    def drew(self) -> bool:
        """Whether random numbers were drawn since the start."""
        return self._states() != self._seeded[self._seed]

    def _states(self) -> list[object]:
        cudas = (torch.cuda.default_generators[device] for device in self._devices)
        numpys = np.random.get_state(legacy=False)  # noqa: NPY002
        return [
            *(
                each.get_state().cpu().numpy().tobytes()
                for each in (torch.default_generator, *cudas)
            ),
            random.getstate(),
            (numpys["state"]["pos"], numpys["has_gauss"], numpys["state"]["key"].tobytes()),
        ]


@contextmanager
def kept_randomness(model: nn.Module) -> Iterator[GlobalGenerators]:
    """The process's random state stays as it was, whatever is drawn within."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield GlobalGenerators(devices)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_global(seed: int) -> None:
    """Seed torch's global generator: ``torch.manual_seed`` asks every device, which is slow."""
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
    generator = torch.Generator("cpu").manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.requires_grad or not parameter.numel():
                    continue
                if bool(parameter.amin() == parameter.amax()):
                    before[parameter] = parameter.clone()
                    drawn = torch.rand(parameter.shape, generator=generator, device="cpu")
                    parameter.add_((0.05 + 0.1 * drawn).to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before.items():
                parameter.copy_(values)
