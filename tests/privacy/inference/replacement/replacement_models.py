"""Small networks with activations, and data drawn by rule on which they can be replaced."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.inference import PublicData


def drawn(inputs: int = 400, width: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs in [-1, 1] and the class of each: which quarter its first two numbers lie in."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(inputs, width, generator=generator) * 2 - 1
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def public(inputs: int = 400, width: int = 6) -> PublicData:
    return PublicData(*drawn(inputs, width))


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(1)
    activation = nn.ReLU() if activation is None else activation
    return nn.Sequential(nn.Linear(6, 12), activation, nn.Linear(12, 4))


def deeper() -> nn.Sequential:
    torch.manual_seed(4)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *hidden, nn.Linear(16, 4))


def trained(model: nn.Module, data: PublicData, epochs: int = 20) -> nn.Module:
    """The model, trained in place with torch alone; in evaluation mode."""
    torch.manual_seed(2)
    inputs, labels = data.inputs, data.labels
    assert isinstance(inputs, Tensor)
    assert isinstance(labels, Tensor)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()
