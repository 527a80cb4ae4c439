"""What makes a model friendly to encryption while it is trained."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from privacy.inference import Polynomial, Square, compile_model, logit_bound
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.compiler.lowering.modules import NOTHING

SHAPE, RANGE = (1, 6, 6), (-0.5, 1.0)


def models() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {
        "squares": nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1),
            Square(),
            nn.Flatten(),
            nn.Sequential(nn.Linear(27, 8), Square(), nn.Dropout()),
            nn.Linear(8, 4),
        ),
        "polynomials": nn.Sequential(
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(9, 8),
            Polynomial([0.1, -0.5, 0.3, 0.2], trainable=True),
            nn.Linear(8, 4),
        ),
    }


@pytest.mark.parametrize("name", models())
def test_no_input_exceeds_the_bound_and_the_proof_is_as_tight(name: str) -> None:
    model = models()[name].double().eval()
    bound = logit_bound(model, input_shape=SHAPE, input_range=RANGE).item()
    corners = torch.randint(0, 2, (4000, *SHAPE)).double() * 1.5 - 0.5
    for _ in range(20):
        corners.requires_grad_()
        (gradient,) = torch.autograd.grad(model(corners).abs().max(dim=1).values.sum(), corners)
        corners = (corners + 0.3 * gradient.sign()).clamp(*RANGE).detach()
    largest = float(model(corners).abs().max().detach())
    assert largest <= bound
    plan = compile_model(model, input_shape=SHAPE, input_range=RANGE, tolerance=1.0).plan
    assert 2.0 ** (plan.logit_bits - 1) <= max(1.0, bound)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 7)),
    "Conv2d": (nn.Conv2d(2, 2, 3, stride=2, groups=2, bias=False), (2, 7, 6)),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(1, 2, 2, output_padding=0), (1, 3, 4)),
    "AvgPool1d": (nn.AvgPool1d(2, ceil_mode=True), (2, 5)),
    "ConstantPad2d": (nn.ConstantPad2d((1, -1, 2, 0), 3.0), (1, 4, 4)),
    "Upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 3, 3)),
    "Unflatten": (nn.Unflatten(1, (2, 3)), (6,)),
    "BatchNorm2d": (nn.BatchNorm2d(2).eval(), (2, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_of_a_layer_is_that_of_its_matrix(name: str) -> None:
    """One layer is exact: there is a corner where its largest output is reached."""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    for value in layer.parameters():
        nn.init.normal_(value)
    # A Linear for the parameters that a bound takes its kind of number from.
    last = nn.Flatten()
    with torch.no_grad():
        width = last(layer(torch.zeros(1, *shape))).shape[1]
        linear = nn.Linear(width, width)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    model = nn.Sequential(layer, last, linear).double()
    low = np.random.default_rng(0).integers(-128, 0, shape) / 64  # of single precision
    bound = logit_bound(model, input_shape=shape, input_range=(low, low + 1.5)).item()
    (affine,) = lower(model, shape, (low, low + 1.5)).layers[0].affines
    centre = affine((low + 0.75).ravel())
    radius = abs(affine.matrix) @ np.full(low.size, 0.75)
    assert bound == pytest.approx(float((np.abs(centre) + radius).max()), rel=1e-9)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Upsample(scale_factor=2, mode="bicubic"), r"layer 0 \(Upsample\)"),
        (nn.BatchNorm2d(1), r"layer 0 \(BatchNorm2d\) in training mode"),
        (nn.ReLU(), r"layer 0 \(ReLU\): relu"),
    ],
)
def test_what_has_no_bound_is_refused_by_name(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match=f"logit_bound has no interval arithmetic for {words}"):
        logit_bound(model, input_shape=(1, 4, 4), input_range=RANGE)


class _Negated(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x) + 3.0


class _Residual(nn.Module):
    """Paths that join, functions and operators."""

    def __init__(self, *, trained: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.act = Polynomial([0.1, 0.5, 0.2], trainable=trained)
        self.last = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        first, second = (x + self.inner(x)).chunk(2, dim=1)
        gated = torch.cat([first * second, 1 - 0.5 * second**2], dim=1)
        pooled = nn.functional.avg_pool2d(gated, 2, ceil_mode=True)
        rows = pooled.flatten(2).mean(dim=1) / 2
        wide = torch.cat([rows, rows + rows * rows, rows[:, :1] @ torch.ones(1, 1).to(rows)], 1)
        return self.last(wide)


def worst_of(model: nn.Module, shape: tuple[int, ...], low: float, high: float) -> float:
    """The largest logit that hill climbing between corners reaches."""
    corners = torch.where(torch.rand(500, *shape) < 0.5, low, high).double()
    for _ in range(20):
        corners.requires_grad_()
        (gradient,) = torch.autograd.grad(model(corners).abs().max(dim=1).values.sum(), corners)
        corners = (corners + 0.3 * gradient.sign()).clamp(low, high).detach()
    return float(model(corners).abs().max().detach())


@pytest.mark.parametrize("traced", [False, True])
def test_paths_that_join_have_a_bound(traced: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = _Residual().double().eval()
    if traced:  # as replace_activations returns them
        model = fx.symbolic_trace(model)
    bound = logit_bound(model, input_shape=SHAPE, input_range=RANGE).item()
    assert worst_of(model, SHAPE, *RANGE) <= bound
    # Where the range is a point, so is the bound.
    middle = 0.3 * torch.ones(1, *SHAPE).double()
    least = logit_bound(model, input_shape=SHAPE, input_range=(0.3, 0.3 + 1e-9)).item()
    assert least == pytest.approx(float(model(middle).detach().abs().max()), rel=1e-6)


def test_the_bound_of_a_residual_network_reaches_every_weight() -> None:
    torch.manual_seed(0)
    model = _Residual(trained=True).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    bits = []
    for _ in range(30):
        optimizer.zero_grad()
        bound = logit_bound(model, input_shape=SHAPE, input_range=RANGE).log2()
        bound.backward()
        assert all(each.grad is not None for each in model.parameters())
        optimizer.step()
        bits.append(bound.item())
    assert bits[-1] < bits[0] - 1


def _bounded(function: Callable[[Tensor], Tensor]) -> float:
    """The bound of a function of two numbers in [-1, 2] and [0.5, 1]."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    ends = ([-1.0, 0.5], [2.0, 1.0])
    return logit_bound(Model(), input_shape=2, input_range=ends).item()


def test_the_bound_is_exact_where_each_input_counts_once() -> None:
    assert _bounded(lambda x: x * torch.tensor([-3.0, 2.0]).double()) == 6.0
    assert _bounded(lambda x: x[:, :1] - 2 * x[:, 1:]) == 3.0
    assert _bounded(lambda x: torch.sub(x[:, :1], x[:, 1:], alpha=-4)) == 6.0
    assert _bounded(lambda x: torch.cat([x, 1 - 2 * x], 1)) == 3.0
    assert _bounded(lambda x: (x**2 - x)[:, :1]) == pytest.approx(2.0)  # as (x - 0.5)² - 0.25
    with pytest.raises(TypeError, match=r"the model: softmax; use operations"):
        _bounded(lambda x: x.softmax(1))
    with pytest.raises(TypeError, match="for a model that returns tuple"):
        _bounded(lambda x: x.split(1, dim=1))  # type: ignore[return-value,arg-type]


def test_a_product_is_bounded_as_the_two_squares_that_are_evaluated() -> None:
    ratio = (1.0 / 2.0) ** 0.5  # the sizes of both factors
    reach = ratio * 1.5 + 0.25 / ratio
    high, low = 0.0, 0.0
    for sign in (1.0, -1.0):
        centre = abs(ratio * 0.5 + sign * 0.75 / ratio)
        most, least = (centre + reach) ** 2, centre**2 - 2 * centre * reach
        high += (most if sign > 0 else -least) / 4
        low += (least if sign > 0 else -most) / 4
    assert _bounded(lambda x: x[:, :1] * x[:, 1:]) == pytest.approx(max(high, -low))


ALIKE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "polynomial": (Polynomial([0.125, -0.5, 0.25]), lambda x: 0.125 - 0.5 * x + 0.25 * x**2),
    "power": (Polynomial([0.0, 0.0, 0.0, 2.0]), lambda x: torch.pow(x, 3) * 2),
    "square": (Square(), torch.square),
    "sum": (lambda x: 3 * x - 1, lambda x: x + x - torch.ones_like(x) + x),
    "matrix": (lambda x: x @ MATRIX, lambda x: nn.functional.linear(x, MATRIX.T)),
    "constants": (lambda x: x * ROW - ROW, lambda x: torch.sub(torch.mul(ROW, x), ROW)),
    "difference": (lambda x: ROW - x, lambda x: torch.rsub(x, ROW)),
    "quotient": (lambda x: x / 4, lambda x: torch.div(x, 4)),
}
MATRIX, ROW = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double(), torch.tensor([-1.0, 2.0]).double()


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_written_otherwise_has_the_same_bound(name: str) -> None:
    class Model(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function, self.first = function, _Negated(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.first(x))

    bounds = []
    for function in ALIKE[name]:
        torch.manual_seed(1)
        model = Model(function).double()
        bounds.append(logit_bound(model, input_shape=3, input_range=(-1.0, 2.0)).item())
        assert worst_of(model, (3,), -1.0, 2.0) <= bounds[-1] * (1 + 1e-12)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)


def test_training_it_down_gives_the_plan_its_bits_back() -> None:
    model = models()["squares"]
    before = compile_model(model, input_shape=SHAPE, input_range=RANGE, tolerance=1.0).plan
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        logit_bound(model, input_shape=SHAPE, input_range=RANGE).log2().backward()
        optimizer.step()
    after = compile_model(model, input_shape=SHAPE, input_range=RANGE, tolerance=1.0).plan
    assert after.logit_bits < before.logit_bits


@pytest.mark.parametrize("layer", NOTHING)
def test_a_layer_that_does_nothing_to_a_question_leaves_the_bound_as_it_is(
    layer: type[nn.Module],
) -> None:
    linear = nn.Linear(2, 2)
    bounds = [
        logit_bound(model, input_shape=(2,), input_range=(0.0, 1.0))
        for model in (nn.Sequential(linear, layer()), nn.Sequential(linear))
    ]
    assert bounds[0] == bounds[1]


def test_what_has_no_bound_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(TypeError, match="ReLU"):
        logit_bound(model, input_shape=(2,), input_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="input_range"):
        logit_bound(model, input_shape=(2,), input_range=(1.0, 0.0))


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_a_fitted_polynomial_is_like_the_activation_in_its_interval(degree: int) -> None:
    polynomial = Polynomial.fitted(nn.Sigmoid(), low=-2.0, high=3.0, degree=degree)
    assert isinstance(polynomial.coefficients, nn.Parameter)
    x = torch.linspace(-2, 3, 50)
    error = (polynomial(x) - torch.sigmoid(x)).abs().max().item()
    assert error < {2: 0.1, 3: 0.03, 5: 0.01}[degree]
    relu = Polynomial.fitted(nn.ReLU(), low=-1.0, high=1.0, trainable=False)
    assert not list(relu.parameters())
    assert np.isclose(relu(torch.tensor(0.5)).item(), 0.5, atol=0.2)
    with pytest.raises(ValueError, match="degree is 9"):
        Polynomial.fitted(nn.ReLU(), low=-1.0, high=1.0, degree=9)
    with pytest.raises(ValueError, match="low and high"):
        Polynomial.fitted(nn.ReLU(), low=1.0, high=1.0)
