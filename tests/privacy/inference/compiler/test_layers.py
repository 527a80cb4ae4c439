"""Every layer of the page on encrypted inference, with every option, beside PyTorch."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import Evaluator, MeasurementOwner, Square, compile_model
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.errors import UnsupportedLayerError

RANGE = (-1.0, 1.0)
Drawn = tuple[nn.Module, tuple[int, ...]]


def check(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """A layer between two others: what PyTorch computes, its matrices compute."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(*RANGE, (3, *shape))
    layer = layer.double().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of odd kernels
        try:
            made = layer(torch.from_numpy(x))
        except (RuntimeError, ValueError, AssertionError):
            assume(False)
        assume(made.numel() > 0)
        model = nn.Sequential(layer, Square(), nn.Flatten(), nn.Linear(made[0].numel(), 2).double())
        expected = model(torch.from_numpy(x)).numpy()
        network = lower(model, shape, RANGE)
    logits = network(x.reshape(3, -1).T).T
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def one_or_two(draw: st.DrawFn, axes: int, low: int, high: int) -> int | tuple[int, ...]:
    if draw(st.booleans()):
        return draw(st.integers(low, high))
    return tuple(draw(st.integers(low, high)) for _ in range(axes))


def shapes(draw: st.DrawFn, axes: int, channels: int) -> tuple[int, ...]:
    return (channels, *(draw(st.integers(1, 9)) for _ in range(axes)))


@st.composite
def convolutions(draw: st.DrawFn) -> Drawn:
    axes, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    channels = groups * draw(st.integers(1, 2))
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d}[axes]
    padding: Any = draw(st.sampled_from(["same", "valid", None]))
    stride = 1 if padding == "same" else one_or_two(draw, axes, 1, 3)
    layer = kind(
        channels,
        groups * draw(st.integers(1, 2)),
        one_or_two(draw, axes, 1, 4),
        stride=stride,
        padding=one_or_two(draw, axes, 0, 2) if padding is None else padding,
        dilation=one_or_two(draw, axes, 1, 2),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    return layer, shapes(draw, axes, channels)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Drawn:
    axes, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    channels = groups * draw(st.integers(1, 2))
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[axes]
    layer = kind(
        channels,
        groups * draw(st.integers(1, 2)),
        one_or_two(draw, axes, 1, 4),
        stride=one_or_two(draw, axes, 1, 3),
        padding=one_or_two(draw, axes, 0, 2),
        output_padding=one_or_two(draw, axes, 0, 2),
        dilation=one_or_two(draw, axes, 1, 3),
        groups=groups,
        bias=draw(st.booleans()),
    )
    return layer, shapes(draw, axes, channels)


@st.composite
def pools(draw: st.DrawFn) -> Drawn:
    axes = draw(st.sampled_from([1, 2]))
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([None, 1, 2, 3])),
        "padding": one_or_two(draw, axes, 0, 2),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if axes == 2:
        options["divisor_override"] = draw(st.sampled_from([None, 3]))
    kind: Any = {1: nn.AvgPool1d, 2: nn.AvgPool2d}[axes]
    layer = kind(one_or_two(draw, axes, 1, 4), **options)
    return layer, shapes(draw, axes, draw(st.integers(1, 3)))


@st.composite
def adaptive_pools(draw: st.DrawFn) -> Drawn:
    axes = draw(st.sampled_from([1, 2]))
    size: Any = one_or_two(draw, axes, 1, 5)
    if axes == 2 and draw(st.booleans()):
        size = (None, draw(st.integers(1, 4)))
    kind: Any = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[axes]
    return kind(size), shapes(draw, axes, draw(st.integers(1, 3)))


@st.composite
def pads(draw: st.DrawFn) -> Drawn:
    axes = draw(st.sampled_from([1, 2]))
    kind = draw(st.sampled_from(["Zero", "Constant", "Reflection", "Replication", "Circular"]))
    low = -2 if kind in ("Zero", "Constant") else 0
    around = tuple(draw(st.integers(low, 3)) for _ in range(2 * axes))
    rest = [draw(st.sampled_from([0.0, -1.5, 0.3]))] if kind == "Constant" else []
    layer = getattr(nn, f"{kind}Pad{axes}d")(around, *rest)
    return layer, shapes(draw, axes, draw(st.integers(1, 2)))


@st.composite
def upsamplings(draw: st.DrawFn) -> Drawn:
    axes = draw(st.sampled_from([1, 2]))
    linear = {1: ["linear"], 2: ["bilinear", "bicubic"]}[axes]
    mode = draw(st.sampled_from(["nearest", *linear]))
    options: dict[str, Any] = {"mode": mode}
    if mode != "nearest":
        options["align_corners"] = draw(st.booleans())
    if draw(st.booleans()):
        options["size"] = one_or_two(draw, axes, 1, 9)
    else:
        options["scale_factor"] = draw(st.sampled_from([2, 1.5, 3]))
    return nn.Upsample(**options), shapes(draw, axes, draw(st.integers(1, 2)))


@st.composite
def reshapings(draw: st.DrawFn) -> Drawn:
    shape = (4, draw(st.integers(1, 3)) * 2, draw(st.integers(1, 3)) * 2)
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Flatten(draw(st.integers(1, 3)), draw(st.integers(-3, -1))),
        nn.Unflatten(1, draw(st.sampled_from([(2, 2), (4, 1), (-1, 2)]))),
        nn.Unflatten(-1, (2, -1)),
        nn.PixelShuffle(2),
        nn.PixelUnshuffle(2),
        nn.ChannelShuffle(2),
        nn.Unfold(2, padding=draw(st.integers(0, 1)), stride=draw(st.integers(1, 2))),
    ]
    return draw(st.sampled_from(layers)), shape


@st.composite
def norms(draw: st.DrawFn) -> Drawn:
    channels = draw(st.integers(1, 4))
    two = draw(st.booleans())
    options = {"affine": draw(st.booleans()), "eps": draw(st.sampled_from([1e-5, 0.1]))}
    layer: Any = nn.BatchNorm2d(channels, **options) if two else nn.BatchNorm1d(channels, **options)
    layer.running_mean = torch.randn(channels)
    layer.running_var = torch.rand(channels) + 0.5
    rest = shapes(draw, 2, channels) if two else shapes(draw, draw(st.integers(0, 1)), channels)
    return layer, rest


KINDS: dict[str, Callable[[], st.SearchStrategy[Drawn]]] = {
    "Conv1d, Conv2d": convolutions,
    "ConvTranspose1d, ConvTranspose2d": transposed_convolutions,
    "AvgPool1d, AvgPool2d": pools,
    "AdaptiveAvgPool1d, AdaptiveAvgPool2d": adaptive_pools,
    "padding": pads,
    "Upsample": upsamplings,
    "shapes": reshapings,
    "BatchNorm1d, BatchNorm2d": norms,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_pytorchs_whatever_its_options(kind: str) -> None:
    @given(drawn=KINDS[kind]())
    @settings(max_examples=60, deadline=None)
    def alike(drawn: Drawn) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(*drawn)

    alike()


def test_a_pruned_transposed_convolution_is_read_off_its_weights() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    layer.weight = nn.Parameter(layer.weight[:, :2, :2].clone())
    assert layer.bias is not None
    layer.bias = nn.Parameter(layer.bias[:2])
    check(layer, (2, 4, 5))


ENCRYPTED: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {
    "Conv1d": ([nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.AvgPool1d(2, ceil_mode=True)], (2, 9)),
    "ConvTranspose1d": ([nn.ConvTranspose1d(2, 2, 3, stride=2), nn.AdaptiveAvgPool1d(4)], (2, 5)),
    "ConvTranspose2d": ([nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=1)], (1, 3, 4)),
    "padding": ([nn.ConstantPad2d((1, -1, 2, 0), 0.5), nn.Conv2d(1, 2, 3)], (1, 5, 6)),
    "Upsample": ([nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 2, 3)], (1, 4, 3)),
    "nearest": ([nn.Upsample(scale_factor=2), nn.ZeroPad1d(1), nn.Conv1d(2, 2, 3)], (2, 4)),
    "Unflatten": ([nn.Linear(6, 12), nn.Unflatten(1, (3, 4)), nn.BatchNorm1d(3)], (6,)),
}


@pytest.mark.parametrize("name", ENCRYPTED)
def test_an_encrypted_answer_of_each_kind_is_within_its_predicted_error(name: str) -> None:
    torch.manual_seed(0)
    layers, shape = ENCRYPTED[name]
    body = nn.Sequential(*layers, Square(), nn.Flatten()).double().eval()
    with torch.no_grad():
        width = body(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    model = nn.Sequential(body, nn.Linear(width, 3)).double().eval()
    compiled = compile_model(model, input_shape=shape, input_range=RANGE, tolerance=0.1)
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(*RANGE, (2, *shape))
    logits = [owner.logits(evaluator.evaluate(owner.encrypt(one)))[0] for one in x]
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert np.abs(logits - expected).max() < 2.0**compiled.plan.error_bits


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.LayerNorm(4), r"0 \(LayerNorm\) cannot be evaluated under encryption; train without"),
        (nn.MaxPool1d(2), r"0 \(MaxPool1d\) .* use nn\.AvgPool1d of the same size"),
        (nn.AvgPool3d(1), r"0 \(AvgPool3d\) .* use nn\.AvgPool2d, with depth among the channels"),
        (nn.Upsample(scale_factor=2, mode="trilinear"), r"0 \(Upsample\) does not take inputs"),
        (nn.Conv1d(2, 2, 7), r"0 \(Conv1d\) does not take inputs of shape \(3, 4\)"),
        (nn.Unflatten(1, (5, 5)), r"0 \(Unflatten\) does not take inputs of shape \(3, 4\)"),
        (nn.Unflatten(0, (7, 1)), "does not take a batch of .* must not depend on their number"),
        (nn.Flatten(0, 1), r"0 \(Flatten\) makes shape .* mixes the images of a batch"),
        (nn.ZeroPad1d(-2), r"0 \(ZeroPad1d\) has no outputs"),
        (nn.MultiheadAttention(4, 1), r"0 \(MultiheadAttention\) cannot be evaluated"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_its_name_and_a_remedy(
    layer: nn.Module, words: str
) -> None:
    model = nn.Sequential(layer, nn.Flatten()).eval()
    with pytest.raises((UnsupportedLayerError, ValueError), match=words):
        compile_model(model, input_shape=(3, 4), input_range=RANGE)
