"""Whose trials need not be run again: what reads nothing but arguments, constants and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from privacy.inference import Square
from privacy.training.model_checks.program_identity import program_identity
from privacy.training.per_example.loss import ExampleLoss

LOSS = ExampleLoss(cross_entropy)
FACTOR = 2.0
NUMBERS = [1.0]


class Plain(nn.Module):
    """A user's model as most are."""

    scale = 2.0

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.activation(self.first(x)))
        return outputs * self.scale

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return torch.relu(x)


def test_a_users_class_has_one_whatever_its_weights() -> None:
    assert program_identity(Plain(), LOSS) is not None
    assert program_identity(Plain(), LOSS) == program_identity(Plain(), LOSS)
    model = nn.Sequential(nn.Linear(3, 4), Square(), nn.Linear(4, 2))
    assert program_identity(model, LOSS) is not None


class Wider(Plain):
    scale = 3.0


class Otherwise(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return torch.tanh(x)


def _frozen() -> nn.Module:
    model = Plain()
    model.first.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [Wider, Otherwise, lambda: Plain(5), _frozen])
def test_another_method_constant_or_shape_has_another(make: Callable[[], nn.Module]) -> None:
    known = program_identity(make(), LOSS)
    assert known is not None
    assert known != program_identity(Plain(), LOSS)


class Reading(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # a closure


class WithGlobal(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return x * FACTOR


class WithList(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return x * NUMBERS[0]


class WithNumpy(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return x * float(np.random.rand())  # noqa: NPY002


class Odd(Plain):
    @property
    def state(self) -> Any:
        return NUMBERS

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def test_a_global_constant_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program_identity(WithGlobal(), LOSS)
    assert before == program_identity(WithGlobal(), LOSS) is not None
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert program_identity(WithGlobal(), LOSS) != before
    values = program_identity(WithList(), LOSS)
    monkeypatch.setitem(globals(), "NUMBERS", [2.0])
    assert program_identity(WithList(), LOSS) != values


def _hooked() -> nn.Module:
    model = Plain()
    model.first.register_forward_hook(lambda *_: None)
    return model


def _patched() -> nn.Module:
    model = Plain()
    model.forward = lambda x: x  # type: ignore[method-assign]
    return model


def _with_numbers() -> nn.Module:
    model = Plain()
    model.memory = np.zeros(3)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("make", [Reading, WithNumpy, Odd, _hooked, _patched, _with_numbers])
def test_what_may_act_otherwise_the_next_time_has_none(make: Callable[[], nn.Module]) -> None:
    assert program_identity(make(), LOSS) is None
