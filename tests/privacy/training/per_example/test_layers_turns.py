"""Each layer's gradients are computed when the backward pass comes by, and it comes by all."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from privacy.training.per_example.capture import Capture

DEPTH = 6


def test_tensors_of_a_layer_are_freed_after_its_turn() -> None:
    layers = [nn.Conv1d(4, 4, 3, padding=1) for _ in range(DEPTH)]
    inputs: list[weakref.ref[Tensor]] = []
    backprops: list[weakref.ref[Tensor]] = []
    alive: list[tuple[int, int]] = []

    def turn(backprop: Tensor) -> None:
        backprops.append(weakref.ref(backprop))
        kinds = (inputs, backprops)
        of_inputs, of_backprops = (sum(each() is not None for each in kind) for kind in kinds)
        alive.append((of_inputs, of_backprops))

    def watch(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(weakref.ref(given[0]))
        output.register_hook(turn)

    for layer in layers:
        layer.register_forward_hook(watch)
    model = nn.Sequential(*(nn.Sequential(layer, nn.Tanh()) for layer in layers))
    with Capture(model) as capture:
        capture.gradients(model(torch.rand(3, 4, 5)).sum((1, 2)))

    # Of the turns from the last layer to the first: its input, those of the layers before it.
    assert alive == [(count, 1) for count in range(DEPTH, 0, -1)]


class _Ignoring(nn.Module):
    """Numbers of its own for every example, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.own.expand(len(x), -1)


class _Branches(nn.Module):
    """Layers that no other layer's gradient depends on, each in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside = nn.Linear(3, 2), nn.Linear(3, 2)
        self.ignoring, self.last = _Ignoring(), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(first * self.beside(x.detach()) + self.ignoring(first))


@pytest.mark.parametrize("of_data", [False, True], ids=["", "data with a gradient"])
def test_no_layer_is_passed_by(of_data: bool) -> None:
    model, x = _Branches(), torch.rand(4, 3, requires_grad=of_data)
    losses = model(x).square().sum(1)
    expected = torch.autograd.grad(losses.sum(), list(model.parameters()))

    with Capture(model) as capture:
        layers = capture.gradients(model(x).square().sum(1))
        ones = torch.ones(4, dtype=torch.float64)
        with torch.no_grad():
            sums = {p: g for each in layers.values() for p, g in each.weighted_sum(ones).items()}

    assert list(layers) == ["first", "beside", "ignoring", "last"]
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(sums[parameter], gradient)
