"""Models that the tests of shared inference compile."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privacy.inference import Square


class Residual(nn.Module):
    """A block that skips an activation, and functions in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.last(x.mean(dim=(2, 3)))


MODELS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": ((12,), lambda: nn.Sequential(nn.Linear(12, 3))),
    "relu": ((10,), lambda: nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))),
    "one logit": ((6,), lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU6(), nn.Linear(5, 1))),
    "squares": (
        (8,),
        lambda: nn.Sequential(
            nn.Linear(8, 6), Square(), nn.Linear(6, 5), Square(), nn.Linear(5, 3)
        ),
    ),
    "pools": (
        (1, 9, 9),
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 2, 2), nn.MaxPool2d(2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Flatten(), nn.Linear(8, 5)),
        ),
    ),
    "residual": ((2, 5, 5), Residual),
    "curves": (
        (6,),
        lambda: nn.Sequential(
            *(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 4)),
            *(nn.Tanh(), nn.Linear(4, 4), nn.SiLU(), nn.GELU("tanh"), nn.Linear(4, 3)),
        ),
    ),
    "hard": (
        (2, 8),
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 3, 3, padding=1), nn.Hardtanh(-0.5, 0.75), nn.AvgPool1d(2)),
            *(nn.Conv1d(3, 2, 2), nn.PReLU(2), nn.AdaptiveMaxPool1d(2)),
            *(nn.Flatten(), nn.Linear(4, 3), nn.Hardsigmoid(), nn.Linear(3, 3)),
        ),
    ),
}


def made(name: str, seed: int = 0) -> tuple[tuple[int, ...], nn.Module]:
    """A model with weights from a seed, and its input's shape."""
    torch.manual_seed(seed)
    shape, make = MODELS[name]
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
    return shape, model.eval()
