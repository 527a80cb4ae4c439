"""Values are a graph: layers read several, some wider than a ciphertext, some several levels up."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    Evaluator,
    MeasurementOwner,
    Polynomial,
    Square,
    ThreeParties,
    compile_model,
)
from privacy.inference.arithmetic.network import Activation, Network
from privacy.inference.compiler.lowering.layers import depressed, stretch
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.compiler.ranges import ranges
from privacy.inference.errors import CannotPlanError

NUMBERS = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 3))
RANGE = (-1.0, 1.0)


def sources(network: Network) -> list[tuple[int, ...]]:
    return [layer.sources for layer in network.layers]


def error(compiled: CompiledModel, low: float = -1.0) -> float:
    """Of an encrypted answer, in predicted errors."""
    plan = compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    if plan.parties:
        weights = compiled.encrypt_weights(material)
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name=plan.parties[2])
    else:
        evaluator = Evaluator(compiled, material)
    x = np.random.default_rng(0).uniform(low, 1.0, (plan.batch_size, *plan.input_shape))
    query = owner.encrypt(x if plan.batch_size > 1 else x[0])
    logits = owner.logits(evaluator.evaluate(query))
    return float(np.abs(logits - compiled.predict(x)).max() / 2.0**plan.error_bits)


@st.composite
def polynomials(draw: st.DrawFn, degree: int) -> Activation:
    rest = draw(st.lists(NUMBERS, min_size=degree, max_size=degree))
    return depressed(Activation((*rest, draw(st.sampled_from([1.0, -0.5, 2.0]))), ""))[3]


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


class Residual(nn.Module):
    """Blocks of two layers, as He et al. have them: the activation comes after the addition."""

    def __init__(self, blocks: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2 * blocks)])
        self.act = activation
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = self.act(x + other(self.act(one(x))))
        return self.last(x)


class Paths(nn.Module):
    """The input itself, two activations of it, and one that another polynomial follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 20), nn.Linear(8, 4)
        self.last = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) ** 2
        return self.last(
            torch.cat([self.b(y) ** 3, self.c(y - x) ** 2 + self.c(x), y, x[:, :4]], 1)
        )


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_residual_block_reads_what_skips_it_and_nothing_before_that(blocks: int) -> None:
    torch.manual_seed(0)
    network = lower(Residual(blocks, 6, Square()), (6,))
    expected = [(0,)]
    for block in range(blocks):
        before = 2 * block + 1
        expected += [(before,), (before, before + 1)]
    assert sources(network) == [*expected, (2 * blocks + 1,)]
    assert {layer.outputs for layer in network.layers[:-1]} == {6}


def test_activations_that_share_a_polynomial_are_one_layer() -> None:
    """A square may be stretched; a cube is a layer of its own, and so are two far apart."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x) ** 2, self.b(x)
            return self.last(torch.cat([y, 3 * (z - 1) ** 2 + 2, z**3, y[:, :1] ** 2], 1))

    torch.manual_seed(0)
    network = lower(Branches(), (5,))
    assert sources(network) == [(0,), (0,), (1,), (1, 2, 3)]
    assert [layer.outputs for layer in network.layers] == [7, 4, 1, 2]


@pytest.mark.parametrize("widest", [None, 4, 7, 16])
@pytest.mark.parametrize("make", [lambda: Residual(2, 8, Polynomial([0.1, 0.5, 0.3])), Paths])
def test_a_network_in_parts_is_the_network(make: Any, widest: int | None) -> None:
    """The input read beside other values, and values wider than a ciphertext, change nothing."""
    torch.manual_seed(0)
    model = make().double().eval()
    network = lower(model, (8,), widest=widest)
    assert widest is None or max(layer.outputs for layer in network.layers[:-1]) <= widest
    x = np.random.default_rng(0).uniform(*RANGE, (8, 50))
    with torch.no_grad():
        expected = model(torch.from_numpy(x.T)).numpy().T
    np.testing.assert_allclose(network(x), expected, atol=1e-9)
    np.testing.assert_allclose(network.centred(x)(x), expected, atol=1e-9)
    bound = ranges(network.centred(x), *RANGE).logits
    assert (expected <= bound.high[:, None]).all()
    assert (expected >= bound.low[:, None]).all()


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(
    "make", [lambda: Residual(2, 8, Polynomial([0.1, 0.5, 0.3])), Paths], ids=["residual", "paths"]
)
def test_an_encrypted_answer_is_the_models(make: Any, batch_size: int) -> None:
    torch.manual_seed(0)
    compiled = compile_model(make(), input_shape=8, input_range=RANGE, batch_size=batch_size)
    assert error(compiled) < 2


def test_encrypted_weights_answer_residual_networks() -> None:
    torch.manual_seed(0)
    parties = ThreeParties("laboratory", "clinic", "cloud")
    model = Residual(1, 8, Square())
    compiled = compile_model(
        model, input_shape=8, input_range=RANGE, parties=parties, tolerance=0.2
    )
    assert error(compiled) < 2


class Block(nn.Module):
    """Two convolutions, and the activation after the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.act = Polynomial([0.0, 1.0, 0.05])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + 0.3 * self.two(self.act(self.one(x))))
        return y


def test_a_residual_network_of_cifars_size_is_answered() -> None:
    """Nine activations on 3 × 32 × 32, four blocks; two channels, so that keys are made soon."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 2, 5, stride=4, padding=1), Polynomial([0.0, 1.0, 0.05])),
        *(*(Block(2) for _ in range(4)), nn.Flatten(), nn.Linear(128, 10)),
    ).eval()
    compiled = compile_model(model, input_shape=(3, 32, 32), input_range=(0.0, 1.0), tolerance=0.1)
    assert [len(layer.sources) for layer in compiled.network.layers] == [1, *[1, 2] * 4, 1]
    assert compiled.plan.degree == 16384
    assert compiled.plan.headroom_bits >= 0
    assert error(compiled, low=0.0) < 2


@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_input_in_the_range_escapes_the_bounds_of_a_residual_network(
    seed: int, blocks: int
) -> None:
    torch.manual_seed(seed)
    model = Residual(blocks, 4, Polynomial([0.1, 0.3, 0.4])).double().eval()
    bound = ranges(lower(model, (4,)), *RANGE).logits
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    inside = np.random.default_rng(seed).uniform(-1, 1, (200, 4))
    with torch.no_grad():
        logits = model(torch.from_numpy(np.vstack([corners, inside]))).numpy()
    assert (logits <= bound.high + 1e-9).all()
    assert (logits >= bound.low - 1e-9).all()


def test_a_plan_does_not_tell_which_weights_are_zero() -> None:
    networks = []
    for zeros in (False, True):
        torch.manual_seed(0)
        model = Residual(1, 6, Square())
        if zeros:
            with torch.no_grad():
                model.layers[0].weight[1:4] = 0.0
                model.layers[0].bias[1:4] = 0.0
                model.last.weight[:, 2] = 0.0
        networks.append(lower(model, (6,)))
        compile_model(model, input_shape=(6,), input_range=RANGE, tolerance=0.2)
    for one, other in zip(networks[0].layers, networks[1].layers, strict=True):
        assert one.sources == other.sources
        for a, b in zip(one.affines, other.affines, strict=True):
            assert (a.structure != b.structure).nnz == 0


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

    with pytest.raises(CannotPlanError, match=r"after layer .*(small|pow).* can be larger"):
        compile_model(Steep(), input_shape=400, input_range=RANGE)


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


class Selected(nn.Module):
    """Logits of some of what an input and its squares are."""

    def __init__(self, select: Any) -> None:
        super().__init__()
        self.select = select
        self.last = nn.Linear(select(torch.zeros(1, 7)).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.select(x))


UNREAD = {
    "the input": lambda x: torch.cat([x * x, x], 1)[:, :6],
    "the squares": lambda x: torch.cat([x * x, x], 1)[:, 7:],
    "the input, before squares": lambda x: torch.cat([x * x, x], 1)[:, :6] ** 2,
    "the squares, before squares": lambda x: torch.cat([x * x, x], 1)[:, 7:] ** 2,
    "squares of squares": lambda x: torch.cat([(x * x) ** 2, x * x, x], 1)[:, 7:],
}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", UNREAD)
def test_what_no_logit_reads_is_not_evaluated(name: str, batch_size: int) -> None:
    torch.manual_seed(0)
    model = Selected(UNREAD[name])
    compiled = compile_model(model, input_shape=7, input_range=RANGE, batch_size=batch_size)
    layers = compiled.network.layers
    read = {source for layer in layers for source in layer.sources}
    assert read == set(range(len(layers)))
    assert error(compiled) < 1
