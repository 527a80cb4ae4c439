"""A model's buffers stay as they were: what they gather from records is not protected."""

import torch
from torch import Tensor, nn


class Buffers:
    """The buffers of a model before training.

    Parameters
    ----------
    model : nn.Module
        The model.
    """

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
        for name, (held, version, value) in self._before.items():
            buffer = now.get(name)
            if buffer is held and held._version == version:
                continue
            if buffer is None or not _same(buffer, value):
                changed.append(name)
            held.copy_(value)
            self._put(name, held)
            self._before[name] = held, held._version, value
        return changed

    def _put(self, name: str, buffer: Tensor | None) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self._model.get_submodule(parent), own, buffer)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
