"""Values that skip an activation go through it as finite differences of its polynomial."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.inference import Polynomial, Square, compile_model
from privacy.inference.arithmetic.network import Activation
from privacy.inference.compiler.lowering.carrying import copies, fitted, stretch
from privacy.inference.compiler.lowering.chain import depressed
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.compiler.ranges import ranges
from privacy.inference.errors import CannotPlanError

NUMBERS = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def polynomials(draw: st.DrawFn, degree: int) -> Activation:
    rest = draw(st.lists(NUMBERS, min_size=degree, max_size=degree))
    return depressed(Activation((*rest, draw(st.sampled_from([1.0, -0.5, 2.0]))), ""))[3]


@given(data=st.data(), degree=st.integers(2, 7))
@settings(max_examples=150, deadline=None)
def test_any_lower_polynomial_is_a_sum_of_shifted_copies(data: st.DataObject, degree: int) -> None:
    activation = data.draw(polynomials(degree))
    wanted = tuple(data.draw(st.lists(NUMBERS, min_size=2, max_size=degree + 1)))
    if not any(wanted[1:]):
        wanted = (0.0, 1.0)
    radius, made = fitted(activation, lambda _: wanted, data.draw(st.sampled_from([0.3, 1.0, 9.0])))
    assert len(made.shifts) <= degree
    y = np.linspace(-radius, radius, 9)
    total = made.constant + sum(
        weight * activation(y + shift)
        for weight, shift in zip(made.weights, made.shifts, strict=True)
    )
    expected = np.polynomial.polynomial.polyval(y, wanted)
    assert np.abs(total - expected).max() <= 1e-8 * np.abs(expected).max()


def test_a_value_past_a_square_takes_two_copies_at_the_ends_of_its_range() -> None:
    made = copies(Activation((0.0, 0.0, 1.0), ""), (0.0, 1.0), 3.0)
    np.testing.assert_allclose(made.shifts, [-3.0, 3.0])
    np.testing.assert_allclose(made.weights, [-1 / 12, 1 / 12])


def test_a_square_takes_two_copies_of_a_cubic() -> None:
    assert len(copies(Activation((0.0, 0.7, 0.0, 1.0), ""), (0.0, 0.0, 1.0), 1.0).shifts) == 2


@given(data=st.data(), degree=st.integers(2, 7), factor=st.floats(0.2, 4.0))
@settings(max_examples=60, deadline=None)
def test_a_stretched_polynomial_is_known_again(
    data: st.DataObject, degree: int, factor: float
) -> None:
    activation = data.draw(polynomials(degree))
    powers = np.arange(degree + 1)
    other = np.array(activation.coefficients) * factor ** (powers - degree)
    known = stretch(activation, Activation(tuple(other.tolist()), ""))
    assert known is not None
    x = np.linspace(-2, 2, 7)
    expected = np.polynomial.polynomial.polyval(x, other)
    np.testing.assert_allclose(activation(known * x) / known**degree, expected, atol=1e-9)


class Skips(nn.Module):
    """Blocks that each add to what goes past them."""

    def __init__(self, blocks: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.act = activation
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.2 * self.act(layer(x))
        return self.last(x)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_residual_network_stays_as_wide_however_deep(blocks: int) -> None:
    """What goes past a block is the sum so far, not every summand by itself."""
    torch.manual_seed(0)
    network = lower(Skips(blocks, 6, Square()), (6,))
    assert [affine.outputs for affine in network.affines] == [3 * 6] * blocks + [2]


@pytest.mark.parametrize("blocks", [1, 3])
def test_only_what_is_used_is_carried(blocks: int) -> None:
    """The narrowest place on the way decides: four values of thirty-six."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.layer = nn.Linear(36, 4), nn.Linear(36, 5)
            self.rest = nn.ModuleList([nn.Linear(5, 5) for _ in range(blocks - 1)])
            self.act, self.last = Square(), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.layer(x))
            for layer in self.rest:
                y = self.act(layer(y))
            return self.last(torch.cat([y, self.down(x)], 1))

    torch.manual_seed(0)
    network = lower(Narrow(), (36,))
    assert [affine.outputs for affine in network.affines] == [5 + 2 * 4] * blocks + [2]


def test_an_activation_of_a_short_path_waits_where_that_is_narrower() -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(8, 2), nn.Linear(2, 20)
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.act, self.last = Square(), nn.Linear(28, 2)

        def forward(self, x: Tensor) -> Tensor:
            long = self.act(self.second(self.act(self.first(x))))
            return self.last(torch.cat([long, self.act(self.wide(self.narrow(x)))], 1))

    torch.manual_seed(0)
    network = lower(Waits(), (8,))
    assert [affine.outputs for affine in network.affines] == [8 + 2 * 2, 8 + 20, 2]


@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_no_input_in_the_range_escapes_the_bounds_of_a_residual_network(
    seed: int, blocks: int
) -> None:
    torch.manual_seed(seed)
    model = Skips(blocks, 4, Polynomial([0.1, 0.3, 0.4])).double().eval()
    bound = ranges(lower(model, (4,)), -1.0, 1.0).logits
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    inside = np.random.default_rng(seed).uniform(-1, 1, (200, 4))
    with torch.no_grad():
        logits = model(torch.from_numpy(np.vstack([corners, inside]))).numpy()
    assert (logits <= bound.high + 1e-9).all()
    assert (logits >= bound.low - 1e-9).all()


def test_a_plan_does_not_tell_which_weights_are_zero() -> None:
    plans = []
    for zeros in (False, True):
        torch.manual_seed(0)
        model = Skips(2, 6, Square())
        if zeros:
            with torch.no_grad():
                for layer in model.layers:
                    layer.weight[1:4] = 0.0
                    layer.bias[1:4] = 0.0
                model.last.weight[:, 2] = 0.0
        network = lower(model, (6,))
        plans.append(network)
        compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0), tolerance=0.2)
    for one, other in zip(plans[0].affines, plans[1].affines, strict=True):
        assert (one.structure != other.structure).nnz == 0


@pytest.mark.parametrize("skip", [False, True])
def test_values_that_could_overflow_beside_others_are_refused_by_name(skip: bool) -> None:
    """Points of the range are finite, bounds of all inputs are not."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.wide, self.small = nn.Linear(400, 3).double(), nn.Linear(3, 3).double()
            self.last = nn.Linear(6, 2).double()
            with torch.no_grad():
                self.wide.weight.normal_(std=1e152)
                self.small.weight *= 1e-300

        def forward(self, x: Tensor) -> Tensor:
            y = self.wide(x) ** 2
            one, other = self.small(y), self.small(y.flip(1))
            return self.last(torch.cat([one**3, other if skip else other**2], 1))

    with pytest.raises(CannotPlanError, match=r"after layer (small|pow) .* can be larger"):
        compile_model(Steep(), input_shape=400, input_range=(-1.0, 1.0))


def test_a_coefficient_that_vanishes_is_none() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y + (y * 1e-200) ** 2

    assert lower(Tiny(), (3,)).activations == ()
