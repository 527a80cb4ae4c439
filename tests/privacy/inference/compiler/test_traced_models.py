"""Any forward that PyTorch's tracer follows: functions, operators, several paths, own modules."""

import copy
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.inference import (
    Evaluator,
    MeasurementOwner,
    Polynomial,
    Square,
    certify,
    compile_model,
)
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

RANGE = (-1.0, 1.0)
Forward = Callable[[Tensor, "Weights"], Tensor]


class Weights(nn.Module):
    """Constants that a function may use, in a model that calls it."""

    def __init__(self, forward: Forward, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        channels = shape[0]
        self.function = forward
        self.kernel = nn.Parameter(torch.randn(3, channels, 2, 2))
        self.back = nn.Parameter(torch.randn(channels, 3, 2, 2))
        self.line = nn.Parameter(torch.randn(3, channels, 2))
        self.matrix = nn.Parameter(torch.randn(5, shape[-1]))
        self.left = nn.Parameter(torch.randn(4, shape[-2] if len(shape) > 1 else 1))
        self.each = nn.Parameter(torch.randn(channels, *[1] * (len(shape) - 1)) + 2.0)
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("variance", torch.rand(channels) + 0.5)
        self.square = Square()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self).flatten(1)


IMAGES: dict[str, Forward] = {
    "F.conv2d": lambda x, w: F.conv2d(x, w.kernel, padding=1, stride=(1, 2), dilation=(1, 2)),
    "F.conv2d, same": lambda x, w: F.conv2d(x, w.kernel, None, 1, "same"),
    "F.conv_transpose2d": lambda x, w: F.conv_transpose2d(x, w.back, None, 2, 0, 1),
    "F.avg_pool2d": lambda x, w: F.avg_pool2d(x, 2, ceil_mode=True),
    "F.avg_pool2d, all": lambda x, w: F.avg_pool2d(x, x.size()[2:]),
    "F.adaptive_avg_pool2d": lambda x, w: F.adaptive_avg_pool2d(x, (2, None)),
    "F.interpolate": lambda x, w: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "F.interpolate, size": lambda x, w: F.interpolate(x, size=x.shape[-1]),
    "F.pad": lambda x, w: F.pad(x, (1, 2, -1, 0), value=0.5),
    "F.pad, circular": lambda x, w: F.pad(x, (1, 0, 0, 1), mode="circular"),
    "F.linear": lambda x, w: F.linear(x, w.matrix),
    "F.batch_norm": lambda x, w: F.batch_norm(x, w.mean, w.variance, w.mean),
    "F.dropout": lambda x, w: F.dropout(x, 0.5, training=w.training),
    "matmul": lambda x, w: torch.matmul(x, w.matrix.T),
    "@ from the left": lambda x, w: w.left @ x,
    "@ vector": lambda x, w: x @ w.matrix[0],
    "mean": lambda x, w: x.mean(dim=(2, 3)),
    "mean of one axis": lambda x, w: x.mean(-1, keepdim=True) + x,
    "sum": lambda x, w: torch.sum(x, 1),
    "flatten": lambda x, w: torch.flatten(x, 1),
    "view": lambda x, w: x.view(x.size(0), -1),
    "reshape": lambda x, w: x.reshape((len(x), x.shape[1], -1)),
    "permute": lambda x, w: x.permute(0, 3, 1, 2).contiguous(),
    "transpose": lambda x, w: x.transpose(1, -1),
    "mT": lambda x, w: x.mT,
    "movedim": lambda x, w: x.movedim(1, -1),
    "unsqueeze": lambda x, w: x.unsqueeze(1).squeeze(1),
    "unflatten": lambda x, w: x.unflatten(-1, (1, -1)),
    "cat": lambda x, w: torch.cat([x, x * 2, x[:, :1]], dim=1),
    "cat with a constant": lambda x, w: torch.cat([x, w.each.expand_as(x)], dim=1),
    "stack": lambda x, w: torch.stack([x, -x], dim=2),
    "chunk": lambda x, w: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1),
    "split": lambda x, w: x.split([1, x.shape[-1] - 1], dim=-1)[1],
    "unbind": lambda x, w: sum(x.unbind(-1)),  # type: ignore[return-value, arg-type]
    "indices": lambda x, w: x[:, :, ::2, 1:],
    "index of an axis": lambda x, w: x[..., 0],
    "index by numbers": lambda x, w: x[:, [0, 0]],
    "index_select": lambda x, w: x.index_select(-1, torch.tensor([1, 0])),
    "flip": lambda x, w: x.flip(-1),
    "roll": lambda x, w: torch.roll(x, 1, dims=2),
    "expand": lambda x, w: x.unsqueeze(1).expand(-1, 2, -1, -1, -1),
    "repeat": lambda x, w: x.repeat(1, 2, 1, 1),
    "one loop after another": lambda x, w: torch.cat([row * 2 for row in x.unbind(1)], 1),
    "+ constant": lambda x, w: 1 + x + 0.5,
    "+ weights": lambda x, w: w.each + x,
    "- ": lambda x, w: 1.0 - x - 2.0 - w.each,
    "weights - ": lambda x, w: w.each - x,
    "torch.sub": lambda x, w: torch.sub(x, w.each, alpha=2),
    "torch.add": lambda x, w: torch.add(x, x.flip(-1), alpha=0.5),
    "rsub": lambda x, w: torch.rsub(x, 3.0, alpha=2),
    "* weights": lambda x, w: x * w.each,
    "/ weights": lambda x, w: x / w.each / 3,
    "neg": lambda x, w: -x,
    "broadcast": lambda x, w: x + x.mean((2, 3), keepdim=True),
    "sub of two": lambda x, w: x.flip(-1) - 2 * x,
    "+x": lambda x, w: +x,
    "data": lambda x, w: x.data * 2,
    "ones_like": lambda x, w: torch.cat([x, torch.ones_like(x)], 1),
    "zeros_like": lambda x, w: torch.zeros_like(x)[:, :1] + x,
    "full_like": lambda x, w: torch.full_like(x, 3.0) - x,
    "new_ones": lambda x, w: torch.cat([x.new_ones(x.shape[0], 1, *x.shape[2:]), x], 1),
    "new_zeros": lambda x, w: torch.stack([x, x.new_zeros(x.shape)], 1),
    "new_full": lambda x, w: x * x.new_full((1,), 0.5),
    "new_tensor": lambda x, w: x + x.new_tensor([[0.5]]),
}
POWERS: dict[str, Forward] = {
    "x * x": lambda x, w: x * x,
    "x ** 2": lambda x, w: x**2,
    "torch.square": lambda x, w: torch.square(x),
    "x.square()": lambda x, w: x.square(),
    "torch.pow": lambda x, w: torch.pow(x, 5),
    "x ** 7": lambda x, w: x**7,
    "x ** 3.0": lambda x, w: x**3.0,
    "a polynomial by hand": lambda x, w: 0.1 + 0.5 * x + 0.2 * x * x - 0.3 * x**3,
    "by Horner": lambda x, w: ((0.2 * x + 0.5) * x - 0.1) * x + 1,
    "a product": lambda x, w: x * x.flip(-1),
    "a gate": lambda x, w: x * x.mean((2, 3), keepdim=True),
    "a product of sizes": lambda x, w: (100 * x + 3) * (x.flip(-1) * 0.01),
    "x + x * x": lambda x, w: x + w.square(x),
    "x ** 8, as squares": lambda x, w: (x**4) ** 2 * 0.1,
    "module and function": lambda x, w: w.drop(w.square(x)) + x.flip(2),
    "two of two degrees": lambda x, w: x**2 + (x.flip(-1) + 0.1) ** 3,
    "three polynomials": lambda x, w: (
        x**4 + x + (x.flip(-1) ** 4 - 2 * x.flip(-1) ** 2 + x.flip(-1))
    ),
    "a chain of skips": lambda x, w: (lambda y: y + (y.flip(-1)) ** 2)(x + x.flip(2) ** 2),
    "unequal depths": lambda x, w: torch.cat([((x + 1) ** 2 + x.flip(-1)) ** 2, x.flip(2)], 1),
}


def compare(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = model.double().eval()
    x = np.random.default_rng(1).uniform(*RANGE, (3, *shape))
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    network = lower(model, shape, RANGE)
    logits = network(x.reshape(3, -1).T).T
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", [*IMAGES, *POWERS])
def test_a_function_is_pytorchs(name: str) -> None:
    function = (IMAGES | POWERS)[name]

    @given(shape=st.tuples(st.integers(2, 3), st.integers(2, 4), st.integers(2, 4)))
    @settings(max_examples=4, deadline=None)
    def alike(shape: tuple[int, ...]) -> None:
        compare(Weights(function, shape), shape)

    alike()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.conv1d(x, w.line, padding=1, stride=2),
        lambda x, w: F.conv1d(F.pad(x, (1, 1), mode="reflect"), w.line),
        lambda x, w: F.conv_transpose1d(x, w.line.transpose(0, 1), stride=2, output_padding=1),
        lambda x, w: F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
        lambda x, w: F.adaptive_avg_pool1d(x, 2),
        lambda x, w: F.interpolate(x, size=7, mode="linear", align_corners=True),
    ],
)
def test_a_function_of_one_axis_is_pytorchs(function: Forward) -> None:
    compare(Weights(function, (2, 6)), (2, 6))


class Residual(nn.Module):
    """A convolution, two residual blocks of which one widens, and a linear layer."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(4)])
        self.wider = nn.Conv2d(2, 4, 1)
        self.act = activation()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = x + 0.3 * self.act(self.norms[0](self.blocks[0](x)))
        x = self.wider(x) + 0.3 * self.act(self.norms[1](self.blocks[1](x)))
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Paths(nn.Module):
    """Several paths of unequal depth, a skip over everything, and shared modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(18, 2)
        self.act = Polynomial([0.1, 0.5, 0.3])

    def forward(self, x: Tensor, scale: float = 0.5) -> Tensor:
        a, b = self.shared(x).chunk(2, dim=1)
        if x.ndim != 2:
            raise ValueError("vectors")
        y = torch.cat([a * b, a], dim=1)
        z = self.act(self.shared(y) * scale)
        return self.head(torch.cat([x, z, self.shared(z) ** 2], dim=1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (lambda: Residual(Square), (1, 4, 4)),
    "residual of degree 3": (lambda: Residual(lambda: Polynomial([0, 0.5, 0.2, 0.1])), (1, 3, 3)),
    "paths": (Paths, (6,)),
    "functions": (lambda: Weights(POWERS["a polynomial by hand"], (1, 2, 2)), (1, 2, 2)),
    "a gate": (lambda: Weights(POWERS["a gate"], (2, 2, 2)), (2, 2, 2)),
    "two degrees": (lambda: Weights(POWERS["two of two degrees"], (1, 2, 2)), (1, 2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_encrypted_answer_is_pytorchs_within_the_predicted_error(name: str) -> None:
    make, shape = MODELS[name]
    model = make().eval()
    compiled = compile_model(model, input_shape=shape, input_range=RANGE, tolerance=0.25)
    compare(copy.deepcopy(model), shape)
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(*RANGE, (2, *shape))
    logits = [owner.logits(evaluator.evaluate(owner.encrypt(one)))[0] for one in x]
    assert np.abs(logits - compiled.predict(x)).max() < 2.0**compiled.plan.error_bits


def test_torchvisions_normalize_may_come_first() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    normalize = transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    compare(nn.Sequential(normalize, nn.Conv2d(3, 2, 2), Square(), nn.Flatten()), (3, 4, 4))


def by_value(x: Tensor, w: Weights) -> Tensor:
    if x.sum() > 0:  # refused: another input could go the other way
        return x
    return -x


def in_place(x: Tensor, w: Weights) -> Tensor:
    return x.add_(1)


def in_place_and_used_again(x: Tensor, w: Weights) -> Tensor:
    y = x * 1.0
    z = y
    y += 1
    return y * z


def at_random(x: Tensor, w: Weights) -> Tensor:
    return x * torch.rand(1, dtype=x.dtype)


REFUSED: dict[str, tuple[Forward, str]] = {
    "by value": (by_value, r"decides by the values of an input \(test_traced_models\.py, line \d+"),
    "in place": (in_place, r"add_ \(test_traced_models.py, line \d+\) changes a value in place"),
    "in place, unseen": (in_place_and_used_again, "does not answer as PyTorch runs it"),
    "at random": (at_random, "does not answer as PyTorch runs it"),
    "in place, behind a layer": (
        lambda x, w: w.drop(x * 2).mul_(3),
        r"^layer mul_ \(test_traced_models.py, line \d+\) changes a value in place",
    ),
    "relu in place": (lambda x, w: F.relu(x * 2, inplace=True), r"^layer relu_? \(test_.*Square"),
    "nothing to divide by": (lambda x, w: x / 0, "truediv .*divides by zero"),
    "a zero to divide by": (
        lambda x, w: x / torch.tensor([1.0, 0.0, 1.0, 1.0]),
        "truediv .*divides by zero",
    ),
    "relu": (lambda x, w: F.relu(x), r"relu \(test_.*cannot be evaluated .*Square\(\)"),
    "softmax": (lambda x, w: x.softmax(1), r"softmax \(test_.*leave it out"),
    "max_pool2d": (lambda x, w: F.max_pool2d(x, 2), r"max_pool2d .*use nn\.AvgPool2d"),
    "layer_norm": (lambda x, w: F.layer_norm(x, x.shape[1:]), "layer_norm .*nn.BatchNorm1d"),
    "a quotient": (lambda x, w: 1 / (x + 3), "divides by a value .* divide by a constant"),
    "a root": (lambda x, w: x**0.5, "takes the power 0.5; give a whole one from 1 to 7"),
    "a high power": (lambda x, w: x**8, "takes the power 8"),
    "a power of two": (lambda x, w: 2**x, "takes a power that depends on the model's input"),
    "the whole batch": (lambda x, w: x - x.mean(), "mean .*mixes the images of a batch"),
    "the batch's axis": (lambda x, w: x.mean(0) + x, "mean .*mixes the images of a batch"),
    "the batch moved": (lambda x, w: x.transpose(0, 1), "mixes the images of a batch"),
    "the batch turned": (lambda x, w: x.roll(1, 0), "roll .*mixes the images of a batch"),
    "an axis missing": (lambda x, w: x + x.mean((1, 2, 3)), "does not take inputs|batch"),
    "two matrices": (lambda x, w: x @ x.mT, "give a constant matrix"),
    "weights of the input": (lambda x, w: F.conv2d(x, x), "conv2d .*weights that depend"),
    "dropout left on": (lambda x, w: F.dropout(x), "drops values in evaluation mode too"),
    "batch statistics": (
        lambda x, w: F.batch_norm(x, None, None, training=True),
        "batch_norm .*give it running statistics",
    ),
    "half precision": (lambda x, w: x.float(), "float .*torch.float32 .*leave it out"),
    "a decision": (lambda x, w: x.argmax(1), "argmax .*leave it out: the data owner decides"),
    "several answers": (lambda x, w: x.chunk(2, dim=-1), "'tuple' object has no"),
    "a number": (lambda x, w: x * x.max().item(), r"max \(test_.*"),
    "no tensor": (lambda x, w: operator.matmul(x, 3), "does not take inputs|cannot be traced"),
    "NumPy": (lambda x, w: np.tanh(x), "cannot be traced|cannot be evaluated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_its_line(name: str) -> None:
    function, words = REFUSED[name]
    model = Weights(function, (2, 4, 4)).eval()
    with pytest.raises((UnsupportedLayerError, ValueError), match=words):
        compile_model(model, input_shape=(2, 4, 4), input_range=RANGE)


def test_wide_images_into_a_strided_convolution_compile() -> None:
    """Three channels of 224 by 224: no matrix larger than the weights that are used."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 16, stride=16), Square(), nn.Flatten(), nn.Linear(784, 5)
    )
    network = lower(model, (3, 224, 224), (0.0, 1.0), widest=8192)
    assert network.layers[0].affines[0].matrix.nnz == 784 * 3 * 16 * 16


def test_values_wider_than_eight_ciphertexts_are_refused_by_name() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x) ** 2).flatten(1)

    assert len(lower(Wide(), (1, 20, 50), RANGE, widest=375).layers) == 9
    with pytest.raises(CannotPlanError, match=r"pow .* is given 3,000 values, and 8 ciphertexts"):
        lower(Wide(), (1, 20, 50), RANGE, widest=374)


@pytest.mark.parametrize(
    "end", [lambda x: x.squeeze(1), lambda x: x[:, 0], lambda x: 2 * x.squeeze(-1) ** 2 - 1]
)
def test_a_single_logit_may_lack_its_axis(end: Callable[[Tensor], Tensor]) -> None:
    """As it is written for BCEWithLogitsLoss."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return end(self.last(self.first(x) ** 2))

    torch.manual_seed(0)
    model = Model().double().eval()
    compiled = compile_model(model, input_shape=5, input_range=RANGE, class_names=("no", "yes"))
    assert compiled.plan.logits == 1
    x = np.random.default_rng(0).uniform(-1, 1, (6, 5))
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert expected.shape == (6,)
    assert (compiled.predict(x)[:, 0] == expected).all()
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    for row, logit in zip(x, expected, strict=True):
        answered = owner.logits(evaluator.evaluate(owner.encrypt(row)))
        assert abs(answered[0, 0] - logit) < 2.0**compiled.plan.error_bits
    certificate = certify(compiled, x, expected > 0)
    assert certificate.plain_accuracy == certificate.agreement == 1.0


@pytest.mark.parametrize("kind", [nn.ParameterList, nn.ParameterDict])
def test_weights_may_lie_in_pytorchs_containers(kind: type[nn.Module]) -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = torch.linspace(-1, 1, 8).reshape(2, 4)
            held = (
                list(weights) if kind is nn.ParameterList else dict(zip("ab", weights, strict=True))
            )
            self.held = kind(held)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.held.values() if kind is nn.ParameterDict else self.held
            result: Tensor = (x * one) ** 2 + other
            return result

    compare(Held(), (4,))
    with pytest.raises(UnsupportedLayerError, match="cannot be traced"):
        compile_model(nn.Sequential(kind()), input_shape=4, input_range=RANGE)


def test_other_forms_of_a_model_are_refused_with_the_form_to_give() -> None:
    inner = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(UnsupportedLayerError, match=r"layer 1 \(RecursiveScriptModule\) is TorchS"):
        compile_model(
            nn.Sequential(nn.Linear(4, 4), torch.jit.script(inner)),
            input_shape=4,
            input_range=RANGE,
        )
    for wrapper, attribute in (
        (torch.compile, "_orig_mod"),
        (nn.DataParallel, "module"),
        (torch.optim.swa_utils.AveragedModel, "module"),
    ):
        wrapped = wrapper(inner)
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(UnsupportedLayerError, match=f"the model itself, .* {attribute}$"):
                compile_model(model, input_shape=4, input_range=RANGE)
    with pytest.raises(ValueError, match=r"here \(1, 4\), without the batch"):
        compile_model(inner, input_shape=(1, 4), input_range=RANGE)
