"""Each activation by name: its polynomial is the least-squares one of a NumPy reference."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf, expit
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.inference import Polynomial, PublicData, compile_model, replace_activations
from privacy.inference.replacement.elementwise import FUNCTIONS as NAMES
from privacy.inference.replacement.elementwise import MODULES, Function

Values = NDArray[np.float64]


def _softplus(x: Values) -> Values:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


ALPHA, SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
REFERENCES: dict[type[nn.Module], tuple[nn.Module, Callable[[Values], Values]]] = {
    nn.ReLU: (nn.ReLU(), lambda x: np.maximum(x, 0)),
    nn.ReLU6: (nn.ReLU6(), lambda x: np.clip(x, 0, 6)),
    nn.LeakyReLU: (nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    nn.PReLU: (nn.PReLU(init=0.3), lambda x: np.where(x > 0, x, np.float32(0.3) * x)),
    nn.RReLU: (nn.RReLU(0.1, 0.3), lambda x: np.where(x > 0, x, 0.2 * x)),
    nn.ELU: (nn.ELU(0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    nn.SELU: (nn.SELU(), lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(x))),
    nn.CELU: (nn.CELU(0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5))),
    nn.GELU: (nn.GELU(), lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
    nn.SiLU: (nn.SiLU(), lambda x: x * expit(x)),
    nn.Mish: (nn.Mish(), lambda x: x * np.tanh(_softplus(x))),
    nn.Hardswish: (nn.Hardswish(), lambda x: x * np.clip(x + 3, 0, 6) / 6),
    nn.Hardtanh: (nn.Hardtanh(-0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7)),
    nn.Hardsigmoid: (nn.Hardsigmoid(), lambda x: np.clip(x + 3, 0, 6) / 6),
    nn.Hardshrink: (nn.Hardshrink(0.6), lambda x: np.where(np.abs(x) > 0.6, x, 0.0)),
    nn.Softshrink: (nn.Softshrink(0.6), lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.6, 0)),
    nn.Tanhshrink: (nn.Tanhshrink(), lambda x: x - np.tanh(x)),
    nn.Sigmoid: (nn.Sigmoid(), expit),
    nn.LogSigmoid: (nn.LogSigmoid(), lambda x: -_softplus(-x)),
    nn.Tanh: (nn.Tanh(), np.tanh),
    nn.Softplus: (nn.Softplus(beta=2), lambda x: _softplus(2 * x) / 2),
    nn.Softsign: (nn.Softsign(), lambda x: x / (1 + np.abs(x))),
    nn.Threshold: (nn.Threshold(0.3, -0.1), lambda x: np.where(x > 0.3, x, -0.1)),
}
"""Every module that is replaced."""
LOW, HIGH = -3.0, 5.0


def grid() -> PublicData:
    """One number an input: a grid over the range, which is all that the activation meets."""
    return PublicData(torch.linspace(LOW, HIGH, 5000)[:, None])


def around(activation: nn.Module) -> nn.Sequential:
    """A network in which the activation meets the inputs themselves."""
    model = nn.Sequential(nn.Linear(1, 1), activation, nn.Linear(1, 2))
    with torch.no_grad():
        first, last = model[0], model[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        first.weight.fill_(1.0)
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        last.bias.zero_()
    return model.eval()


def test_every_replaced_module_has_a_reference() -> None:
    assert set(REFERENCES) == set(MODULES)


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("degree", [2, 3, 7])
def test_a_polynomial_is_the_closest_one_to_its_activation(
    kind: type[nn.Module], degree: int
) -> None:
    activation, reference = REFERENCES[kind]
    replaced = replace_activations(around(activation), data=grid(), degree=degree, epochs=0)
    (row,) = replaced.report.activations
    assert row.activation == kind.__name__
    assert LOW <= row.low < LOW + 0.01
    assert HIGH - 0.01 < row.high <= HIGH

    # All values occur alike often, so that least squares need no weights.
    x = np.linspace(row.low, row.high, 4001)
    best = np.polynomial.Polynomial.fit(x, reference(x), degree)
    polynomial = replaced.model.get_submodule(row.name)
    with torch.no_grad():
        given = polynomial.double()(torch.from_numpy(x)).numpy()
    size = np.abs(reference(x)).max()
    assert np.abs(given - best(x)).max() < 0.02 * size
    assert row.fit_error == pytest.approx(np.abs(given - reference(x)).max(), abs=1e-3 * size)
    root = np.sqrt(np.mean((given - reference(x)) ** 2))
    least = np.sqrt(np.mean((best(x) - reference(x)) ** 2))
    assert root < 1.01 * least + 1e-6 * size


class Functional(nn.Module):
    """A network whose activation is a function of its forward."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 1), nn.Linear(1, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.function(self.first(x)))
        return logits


FUNCTIONS: list[tuple[Callable[[Tensor], Tensor], nn.Module]] = [
    (F.relu, nn.ReLU()),
    (lambda x: F.relu(x, inplace=True), nn.ReLU()),
    (torch.relu, nn.ReLU()),
    (lambda x: x.relu(), nn.ReLU()),
    (torch.relu_, nn.ReLU()),
    (lambda x: x.relu_(), nn.ReLU()),
    (F.relu6, nn.ReLU6()),
    (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
    (lambda x: F.elu(x, alpha=0.7), nn.ELU(0.7)),
    (F.selu, nn.SELU()),
    (torch.selu, nn.SELU()),
    (F.celu, nn.CELU()),
    (F.gelu, nn.GELU()),
    (lambda x: F.gelu(x, approximate="tanh"), nn.GELU(approximate="tanh")),
    (F.silu, nn.SiLU()),
    (F.mish, nn.Mish()),
    (F.hardswish, nn.Hardswish()),
    (F.hardtanh, nn.Hardtanh()),
    (F.hardsigmoid, nn.Hardsigmoid()),
    (F.hardshrink, nn.Hardshrink()),
    (F.softshrink, nn.Softshrink()),
    (F.tanhshrink, nn.Tanhshrink()),
    (F.sigmoid, nn.Sigmoid()),
    (torch.sigmoid, nn.Sigmoid()),
    (lambda x: x.sigmoid(), nn.Sigmoid()),
    (F.logsigmoid, nn.LogSigmoid()),
    (F.tanh, nn.Tanh()),
    (torch.tanh, nn.Tanh()),
    (lambda x: x.tanh_(), nn.Tanh()),
    (F.softplus, nn.Softplus()),
    (F.softsign, nn.Softsign()),
    (lambda x: F.threshold(x, 0.3, -0.1), nn.Threshold(0.3, -0.1)),
    (lambda x: F.rrelu(x, training=False), nn.RReLU()),
    (lambda x: torch.clamp(x, min=0), nn.ReLU()),
    (lambda x: x.clamp(min=0), nn.ReLU()),
    (lambda x: torch.clamp(x, -1, 1), nn.Hardtanh()),
    (lambda x: torch.clamp(input=x, min=-1, max=1), nn.Hardtanh()),
    (lambda x: F.hardtanh(min_val=-2.0, input=x), nn.Hardtanh(-2.0)),
    (F.elu_, nn.ELU()),
    (F.leaky_relu_, nn.LeakyReLU()),
]


@pytest.mark.parametrize("case", range(len(FUNCTIONS)))
def test_a_function_gets_the_polynomial_of_its_module(case: int) -> None:
    function, module = FUNCTIONS[case]
    model = Functional(function).eval()
    model.load_state_dict(
        {
            "first.weight": torch.tensor([[1.0]]),
            "first.bias": torch.tensor([0.0]),
            "last.weight": torch.tensor([[1.0], [-1.0]]),
            "last.bias": torch.tensor([0.0, 0.0]),
        }
    )
    replaced = replace_activations(model, data=grid(), degree=4, epochs=0)
    same = replace_activations(around(module), data=grid(), degree=4, epochs=0)
    (row,), (expected,) = replaced.report.activations, same.report.activations
    one, other = (
        each.model.get_submodule(name)
        for each, name in ((replaced, row.name), (same, expected.name))
    )
    assert isinstance(one, Polynomial)
    assert isinstance(other, Polynomial)
    assert torch.equal(one.coefficients, other.coefficients)
    assert row.fit_error == expected.fit_error


ARGUMENTS = {"threshold": (0.1, 0.2), "clamp": (0.0,), "clip": (0.0,)}
ARGUMENTS |= {"clamp_min": (0.0,), "clamp_max": (0.0,)}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_works_in_place_has_a_form_that_does_not(name: str) -> None:
    given = torch.linspace(-2, 2, 9)
    for home in (torch, F, Tensor):
        in_place = getattr(home, f"{name}_", None)
        if in_place is None:
            continue
        arguments = ARGUMENTS.get(name, ())
        expected = in_place(given.clone(), *arguments)
        x = given.clone()
        target = f"{name}_" if home is Tensor else in_place
        assert torch.equal(Function(target, *arguments)(x), expected)
        assert torch.equal(x, given)


def test_a_degree_that_is_no_better_than_a_line_is_not_taken() -> None:
    symmetric = PublicData(torch.linspace(-2.0, 2.0, 5000)[:, None])
    for activation, degree in ((nn.Tanh(), 3), (nn.ReLU(), 2), (nn.Sigmoid(), 3), (nn.GELU(), 2)):
        report = replace_activations(around(activation), data=symmetric, epochs=0).report
        assert report.activations[0].degree == degree, activation


def test_an_activation_that_is_straight_where_it_is_used_becomes_a_line() -> None:
    positive = PublicData(torch.linspace(1.0, 2.0, 500)[:, None])
    replaced = replace_activations(around(nn.ReLU()), data=positive, epochs=0)
    assert replaced.report.activations[0].degree == 1
    assert replaced.report.levels == 1
    assert isinstance(replaced.model, nn.Sequential)
    plan = compile_model(replaced.model, input_shape=1, input_range=(1.0, 2.0)).plan
    assert not any("rotation" in name for name in plan.operations)
