"""Clipped sums equal a loop over one example at a time, for every kind of layer and method."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention
from torch import Tensor, nn

from privacy.training import ClipOnly, FullBatch, GradientDescent, train
from privacy.training.errors import GradientError
from privacy.training.per_example.capture import Capture
from privacy.training.per_example.gradients import MARGIN, clipped_sum

shapes = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def losses_of(outputs: Tensor) -> Tensor:
    """Some loss of every number that comes out, different at each place."""
    flat = outputs.flatten(1)
    places = torch.arange(flat.shape[1], dtype=flat.dtype)
    return (flat * torch.cos(places)).sum(1).square() + (flat - 0.5).square().sum(1)


def reference(model: nn.Module, inputs: Tensor, clipping_norm: float) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for one in inputs:
        loss = losses_of(model(one[None])).sum()
        sums = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in sums))
        factor = min(1.0, clipping_norm / (norm * (1 + MARGIN)))
        for summed, gradient in zip(total, sums, strict=True):
            summed += factor * gradient
    return total


def ours(model: nn.Module, inputs: Tensor, clipping_norm: float) -> tuple[list[Tensor], set[str]]:
    with Capture(model) as capture:
        layers = capture.gradients(losses_of(model(inputs)))
        sums = clipped_sum(list(layers.values()), clipping_norm=clipping_norm)
        built = {
            p: torch.full((len(inputs), *p.shape), math.nan, dtype=torch.float64) for p in sums
        }
        with torch.no_grad():
            for layer in layers.values():
                layer.of_each(built)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert_built(built, sums, clipping_norm)
    return [clipping_norm * sums.get(p, torch.zeros_like(p)) for p in trained], {
        layer.method for layer in layers.values()
    }


def assert_built(
    built: dict[Tensor, Tensor], sums: dict[Tensor, Tensor], clipping_norm: float
) -> None:
    """That each example's gradient, built and clipped by itself, adds up to the clipped sum."""
    parts = [torch.linalg.vector_norm(each.double().flatten(1), dim=1) for each in built.values()]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    largest = min(torch.finfo(summed.dtype).max for summed in sums.values())
    finite = norms <= largest
    factors = (norms[finite] * (1 + MARGIN)).reciprocal().clamp(max=1 / clipping_norm)
    scale = max((float(s.abs().max()) for s in sums.values() if s.numel()), default=0.0)
    for parameter, each in built.items():
        assert each.shape == (len(norms), *parameter.shape)
        total = (each[finite].double().flatten(1).T @ factors).view(parameter.shape)
        torch.testing.assert_close(
            total, sums[parameter].double(), rtol=1e-5, atol=1e-5 * scale + 1e-12
        )


def assert_same(model: nn.Module, inputs: Tensor, *methods: str) -> None:
    """In double precision, where only a wrong formula differs, and in the usual single one.

    ``methods`` are those that single precision uses, among others.
    """
    exact = copy.deepcopy(model).double()
    for dtype in (torch.float64, torch.float32):
        trained = copy.deepcopy(model).to(dtype)
        given_inputs, exact_inputs = inputs, inputs
        if inputs.is_floating_point():
            given_inputs = inputs.to(dtype)
            exact_inputs = given_inputs.double()
        for clipping_norm in (0.05, 1.0, 1e6):
            expected = reference(exact, exact_inputs, clipping_norm)
            sums, used = ours(trained, given_inputs, clipping_norm)
            scale = max(float(e.abs().max()) for e in expected)
            for f, e in zip(sums, expected, strict=True):
                assert f.shape == e.shape
                assert f.dtype == dtype
                torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-5 * scale + 1e-12)
    assert set(methods) <= used, used


@shapes
@given(
    seed=seeds,
    n=st.integers(1, 5),
    ins=st.integers(1, 6),
    outs=st.integers(1, 6),
    between=st.lists(st.integers(1, 5), max_size=2),
    bias=st.booleans(),
)
def test_linear(seed: int, n: int, ins: int, outs: int, between: list[int], bias: bool) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(ins, 4), nn.Tanh(), nn.Linear(4, outs, bias=bias))
    assert_same(model, torch.randn(n, *between, ins))


def test_linear_methods() -> None:
    torch.manual_seed(0)
    wide, narrow = nn.Linear(200, 150), nn.Linear(2, 3)
    assert_same(wide, torch.randn(4, 200), "two factors")
    assert_same(wide, torch.randn(4, 5, 200), "Gram matrices")
    assert_same(narrow, torch.randn(4, 50, 2), "matrix products")
    # Two examples at a time, and one more.
    assert_same(wide, torch.randn(5, 40, 200), "matrix products")


@shapes
@given(
    seed=seeds,
    n=st.integers(1, 4),
    dims=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    ins=st.sampled_from([1, 3, 8]),
    outs=st.sampled_from([1, 2, 8]),
    kernel=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    stride=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    dilation=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    padding=st.sampled_from(["valid", "same", 0, 1, 2]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
)
def test_convolution(
    seed: int,
    n: int,
    dims: int,
    groups: int,
    ins: int,
    outs: int,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    padding: str | int,
    mode: str,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    layer = kind(
        ins * groups,
        outs * groups,
        tuple(kernel[:dims]),  # type: ignore[arg-type]
        stride=1 if padding == "same" else tuple(stride[:dims]),  # type: ignore[arg-type]
        dilation=tuple(dilation[:dims]),  # type: ignore[arg-type]
        padding=padding,
        padding_mode=mode,
        groups=groups,
        bias=bias,
    )
    sizes = (9, 11)[:dims]
    few = "depthwise convolution" if ins == 1 else "row unfolding"
    method = few if min(ins, outs) < 8 else "grouped convolution"
    assert_same(layer, torch.randn(n, ins * groups, *sizes), method)


@pytest.mark.parametrize(("n", "size", "outs"), [(70, 60, 2), (3, 400, 5)])
def test_a_depthwise_convolution_in_parts(n: int, size: int, outs: int) -> None:
    """More than fits in one: split over the examples, and over the output channels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, outs, 5, stride=(3, 5))
    assert_same(layer, torch.randn(n, 1, size, size), "depthwise convolution")


def test_convolution_in_three_dimensions() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=1)
    assert_same(layer, torch.randn(3, 2, 4, 5, 6), "grouped convolution")


@shapes
@given(
    seed=seeds,
    n=st.integers(1, 5),
    length=st.integers(1, 6),
    padding=st.none() | st.integers(0, 3),
)
def test_embedding(seed: int, n: int, length: int, padding: int | None) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(4, 3, padding_idx=padding), nn.Linear(3, 2))
    assert_same(model, torch.randint(0, 4, (n, length)), "table rows")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (3, 6)),
        (nn.LayerNorm(6, bias=False), (3, 4, 6)),
        (nn.LayerNorm((4, 6)), (3, 4, 6)),
        (nn.RMSNorm(6), (3, 4, 6)),
        (nn.GroupNorm(2, 4), (3, 4, 5)),
        (nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
        (nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 6)),
    ],
    ids=str,
)
def test_normalisation(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), layer)
    assert_same(model, torch.randn(shape))


class Last(nn.Module):
    """The outputs of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs


@pytest.mark.parametrize("kind", [DPRNN, DPGRU, DPLSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
@settings(max_examples=4, deadline=None)
@given(seed=seeds, n=st.integers(1, 4), length=st.integers(1, 6))
def test_recurrent(
    kind: type[nn.Module], bidirectional: bool, seed: int, n: int, length: int
) -> None:
    torch.manual_seed(seed)
    layer = kind(3, 4, num_layers=2, batch_first=True, bidirectional=bidirectional)
    model = nn.Sequential(Last(layer), nn.Linear(8 if bidirectional else 4, 2))
    assert_same(model, torch.randn(n, length, 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = DPMultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.attention(x, x, x)[0]
        return outputs


def test_attention() -> None:
    torch.manual_seed(0)
    assert_same(Attention(), torch.randn(3, 4, 6))


class Own(nn.Module):
    """Parameters of its own, around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x * self.scale)) + self.scale


def test_a_module_that_opacus_does_not_know() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), Own(), nn.Linear(4, 2))
    assert_same(model, torch.randn(3, 5), "torch.func", "two factors")
    assert not hasattr(model[1], "ft_compute_sample_grad")


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4), (3, 4)),
        (nn.Conv2d(2, 2, 3, padding=1), (3, 2, 5, 5)),
        (nn.GroupNorm(2, 4), (3, 4, 5)),
        (Own(), (3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_called_twice(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_same(Twice(layer), torch.randn(shape))


def test_operations_in_place_after_a_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    assert_same(model, torch.randn(3, 5))


def test_frozen_parameters_take_no_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    assert_same(model, torch.randn(3, 1, 5, 5))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Linear(4, 2), torch.randn(5, 4)),
        (nn.Linear(40, 50), torch.randn(5, 3, 40)),
        (nn.Linear(4, 2), torch.randn(5, 30, 4)),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 2)),
            torch.randn(5, 1, 5, 5),
        ),
        (nn.Conv2d(8, 8, 3), torch.randn(5, 8, 5, 5)),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.randn(5, 4)),
    ],
)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_an_example_that_is_not_finite_adds_nothing(
    model: nn.Module, inputs: Tensor, poison: float
) -> None:
    """Also one whose gradient overflows the model's precision, though the input is finite."""
    good = torch.ones(len(inputs), dtype=torch.bool)
    good[[1, 3]] = False
    poisoned = inputs.clone()
    poisoned[1, 0], poisoned[3, -1] = poison, poison
    expected, _ = ours(model, inputs[good], 1.0)
    sums, _ = ours(model, poisoned, 1.0)
    for f, e in zip(sums, expected, strict=True):
        assert torch.isfinite(f).all()
        torch.testing.assert_close(f, e)


def test_a_poisoned_embedding_adds_nothing() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[3] = math.nan
    places = torch.tensor([[0, 1], [2, 3], [1, 1]])
    expected, _ = ours(model, places[[0, 2]], 1.0)
    sums, _ = ours(model, places, 1.0)
    for f, e in zip(sums, expected, strict=True):
        torch.testing.assert_close(f, e)


@shapes
@given(seed=seeds, length=st.integers(2, 12))
def test_cancelling_products_are_never_scaled_too_little(seed: int, length: int) -> None:
    """Large parts that cancel: the norm that clips is at least the gradient's true norm."""
    torch.manual_seed(seed)
    layer = nn.Linear(300, 300, bias=False)
    half = torch.randn(1, length, 300) * 1e4
    inputs = torch.cat([half, half + torch.randn_like(half) * 1e-2], 1)
    with Capture(layer) as capture:
        outputs = layer(inputs)
        signs = torch.cat([torch.ones(length), -torch.ones(length)])
        layers = capture.gradients((outputs.mean(2) * signs).sum(1))
    (gradients,) = layers.values()
    call_norm = float(next(iter(gradients.norms())))
    (built,) = gradients.weighted_sum(torch.ones(1, dtype=torch.float32)).values()
    assert gradients.method == "Gram matrices"
    a = inputs.double()
    b = (signs / 300).double()[None, :, None].expand(1, -1, 300)
    true = float((b.mT @ a).norm())
    assert call_norm >= true * (1 - 1e-6)
    assert built.shape == layer.weight.shape


class Patches(nn.Module):
    """A vision transformer's beginning: a class token and positions, then dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 6, 4))
        self.body = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.body(x)[:, 0]  # type: ignore[no-any-return]


class Prepended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


def test_dropout_beside_own_parameters_is_refused_and_the_remedy_trains() -> None:
    data = torch.randn(8, 5, 4), torch.arange(8) % 3

    def step(model: nn.Module) -> None:
        train(
            model,
            data,
            loss=nn.functional.cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )

    with pytest.raises(GradientError, match=r"\(model\).*'token', 'positions'.*dropout.*submodule"):
        step(Patches())
    step(nn.Sequential(Prepended(), Placed(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(24, 3)))
