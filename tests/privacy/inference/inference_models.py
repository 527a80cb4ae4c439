"""Models that several tests share; trained weights are not needed to test arithmetic."""

import pytest
import torch
from torch import nn

from privacy.inference import Square


def tutorial_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 7, stride=3),
        Square(),
        nn.Flatten(),
        nn.Linear(256, 64),
        Square(),
        nn.Linear(64, 10),
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))


def linear(inputs: int = 784) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 10))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
