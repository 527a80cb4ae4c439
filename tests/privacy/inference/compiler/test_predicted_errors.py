"""No input in the range has an error above the plan's: where values and gains peak together too."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from privacy.inference import (
    CompiledModel,
    Evaluator,
    MeasurementOwner,
    Polynomial,
    Square,
    compile_model,
)

FEATURES = 200
Range = tuple[NDArray[np.float64], NDArray[np.float64]]


class Residual(nn.Module):
    """x² and its square, subtracted from one another."""

    def __init__(self) -> None:
        super().__init__()
        self.square = Square()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.square(x)
        return self.square(y) - 2 * y


def uneven(features: int = FEATURES) -> Range:
    """Ranges of their own, whose sizes lie some powers of ten apart."""
    generator = np.random.default_rng(3)
    low = generator.normal(size=features) * np.exp(2 * generator.normal(size=features))
    return low, low + np.exp(2 * generator.normal(size=features))


def maxima(model: nn.Module, low: NDArray[np.float64], high: NDArray[np.float64]) -> torch.Tensor:
    """Both ends of the range, and where steps along the gradient lead from its middle."""
    ends = [torch.tensor(low), torch.tensor(high)]
    for sign in (1, -1):
        x = torch.tensor((low + high) / 2)
        for _ in range(4):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(sign * model(x[None]).sum(), x)
            x = torch.where(gradient > 0, ends[1], ends[0])
        ends.append(x.detach())
    return torch.stack(ends)


def worst_error(compiled: CompiledModel, x: NDArray[np.float64]) -> float:
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    queries = [x] if compiled.plan.batch_size > 1 else list(x)
    answers = [owner.logits(evaluator.evaluate(owner.encrypt(query))) for query in queries]
    return float(np.abs(np.concatenate(answers) - compiled.predict(x)).max())


@pytest.mark.parametrize(
    "powers",
    [
        Residual,
        lambda: nn.Sequential(Polynomial([-0.24, -0.107, 0.48, 0.556]), Square()),
        lambda: nn.Sequential(Square(), Square()),
    ],
    ids=["a difference of powers", "a cube, squared", "a fourth power"],
)
def test_powers_of_features_with_uneven_ranges(powers: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    low, high = uneven()
    model = nn.Sequential(powers(), nn.Linear(FEATURES, 2)).double().eval()
    compiled = compile_model(model, input_shape=(FEATURES,), input_range=(low, high))
    assert worst_error(compiled, maxima(model, low, high).numpy()) <= (
        2.0**compiled.plan.worst_error_bits
    )


@pytest.mark.parametrize("weight", [0.0337, 0.0451, 0.0592, 0.0713])
def test_errors_of_equal_weights_of_a_batch_add_up(weight: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Square(), nn.Linear(FEATURES, 2, bias=False)).double().eval()
    nn.init.constant_(model[1].weight, weight)
    compiled = compile_model(model, input_shape=(FEATURES,), input_range=(0.0, 1.0), batch_size=4)
    x = np.stack([np.ones(FEATURES), np.full(FEATURES, 0.5), np.zeros(FEATURES)])
    assert worst_error(compiled, x) <= 2.0**compiled.plan.worst_error_bits


def test_a_batch_adds_a_bias_larger_than_its_answers_modulus() -> None:
    # The cube goes into a shift of x by 125, whose fourth power the last bias takes off again.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), Polynomial([-0.4, -0.4, -0.2, -1.0, -0.002]), nn.Linear(4, 2)
    )
    compiled = compile_model(
        model.double().eval(), input_shape=(3,), input_range=(-1.0, 1.0), batch_size=2
    )
    bias = float(np.abs(compiled.network.layers[-1].bias).max())
    modulus = sum(compiled.plan.prime_bits[: compiled.plan.answer_level])
    assert np.log2(bias) + compiled.plan.answer_scale_bits > modulus
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 3))
    assert worst_error(compiled, x) <= 2.0**compiled.plan.worst_error_bits


@pytest.mark.parametrize("width", [516, 700])
def test_what_is_taken_from_far_values_is_not_taken_from_empty_slots(width: int) -> None:
    # Squares near 6,400, which are moved around zero; a power of two of slots is wider than they.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), Square(), nn.Linear(width, 2)).double().eval()
    with torch.no_grad():
        model[0].bias.add_(80.0)
        model[2].weight.abs_()
    compiled = compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0), tolerance=1e3)
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (6, 6))
    assert worst_error(compiled, x) <= 2.0**compiled.plan.worst_error_bits


class Joined(nn.Module):
    """The inputs and their squares, side by side, and a polynomial of all of them."""

    def __init__(self, inputs: int, polynomial: list[float]) -> None:
        super().__init__()
        self.square, self.polynomial = Square(), Polynomial(polynomial)
        self.last = nn.Linear(2 * inputs, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.polynomial(torch.cat([x, self.square(x)], dim=1)))
        return y


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("polynomial", [[0.0, 0.1, 0.0, 1.0], [-0.5, 0.2, 0.3, 0.4, -0.15]])
@pytest.mark.parametrize("inputs", [3, 5, 6, 12])
def test_values_that_are_read_rotated_alone_have_a_rotations_error(
    inputs: int, polynomial: list[float], seed: int
) -> None:
    # What is moved by one step, all of it, costs a key switch, however few the steps are.
    torch.manual_seed(seed)
    model = Joined(inputs, polynomial).double().eval()
    compiled = compile_model(model, input_shape=(inputs,), input_range=(0.0, 1.0))
    x = np.random.default_rng(0).uniform(0.0, 1.0, (2, inputs))
    assert worst_error(compiled, x) <= 2.0**compiled.plan.worst_error_bits
