"""State of the model and the process that is put back after a trial or a training."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError


class GlobalGenerators:
    """The generators that a program draws from without naming one: torch's, Python's, NumPy's."""

    def __init__(self, devices: set[int]) -> None:
        self._devices = devices
        self._seed = 0
        self._states_after_seeding: dict[int, list[object]] = {}

    def seed(self, seed: int) -> None:
        """Seed all; dropout and the like draw the same after the same seed."""
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        for device in self._devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        self._seed = seed
        if seed not in self._states_after_seeding:
            self._states_after_seeding[seed] = self._states()

    def drew(self) -> bool:
        """Whether random numbers were drawn since the last ``seed``."""
        return self._states() != self._states_after_seeding[self._seed]

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
def preserved_randomness(model: nn.Module) -> Iterator[GlobalGenerators]:
    """Put the process's random state back afterwards."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield GlobalGenerators(devices)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_torch(seed: int) -> None:
    """Seed torch's global generator: ``torch.manual_seed`` asks every device, which is slow."""
    torch.default_generator.manual_seed(seed)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the whole model into evaluation mode meanwhile."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def away_from_constants(model: nn.Module) -> Iterator[None]:
    """Give constant trainable parameters other values meanwhile.

    The first step opens a path that a gate of zero closes now.
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


class Buffers:
    """A model's buffers as they were; clipping and noise do not protect their content."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: (b, b._version, b.clone()) for name, b in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Put all back, and name those that had other values."""
        changed = []
        now = dict(self._model.named_buffers())
        for name in now.keys() - self._before.keys():
            changed.append(name)
            self._put(name, None)
        for name, (original, version, value) in self._before.items():
            buffer = now.get(name)
            if buffer is original and original._version == version:
                continue
            if buffer is None or not _same(buffer, value):
                changed.append(name)
            original.copy_(value)
            self._put(name, original)
            self._before[name] = original, original._version, value
        return changed

    def _put(self, name: str, buffer: Tensor | None) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self._model.get_submodule(parent), own, buffer)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def refuse_changed(buffers: Sequence[str]) -> None:
    """Refuse a model whose buffers changed."""
    if buffers:
        raise GradientError(
            f"buffer '{buffers[0]}' changed in training: what it holds of the records is neither "
            "clipped nor noised; make the layer keep no statistics"
        )
