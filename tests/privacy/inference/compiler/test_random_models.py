"""Whatever the model, the encrypted answer is PyTorch's within the predicted error."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

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
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.compiler.ranges import Interval, ranges, tightened
from tests.privacy.inference.inference_models import tutorial_cnn


def check(compiled: CompiledModel, model: nn.Sequential, inputs: np.ndarray) -> None:
    plan = compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    if plan.parties:
        weights = compiled.encrypt_weights(material)
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name=plan.parties[2])
    else:
        evaluator = Evaluator(compiled, material)
    double = model.double().eval()
    for x in inputs:
        with torch.no_grad():
            expected = double(torch.from_numpy(x)[None]).numpy()[0]
        error = np.abs(owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] - expected).max()
        # Inputs that are drawn evenly, as the prediction supposes; it is six deviations of a
        # first-order model, so that 2 covers what is left out.
        assert error < 2 * 2.0**plan.error_bits, plan


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6, 7])
def test_polynomials_of_every_degree(degree: int) -> None:
    torch.manual_seed(degree)
    coefficients = [0.3, 0.8, *(0.4 / k for k in range(2, degree + 1))][: degree + 1]
    model = nn.Sequential(nn.Linear(6, 8), Polynomial(coefficients), nn.Linear(8, 3))
    compiled = compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0), tolerance=0.1)
    check(compiled, model, np.random.default_rng(0).uniform(-1, 1, (3, 6)))


@pytest.mark.parametrize("degree", [3, 4, 5, 6, 7])
def test_odd_and_even_polynomials(degree: int) -> None:
    """Coefficients that vanish are left out of the formulas."""
    torch.manual_seed(degree)
    coefficients = [0.0] * (degree + 1)
    coefficients[degree], coefficients[degree - 2] = 0.5, 0.25
    model = nn.Sequential(nn.Linear(6, 8), Polynomial(coefficients), nn.Linear(8, 3))
    compiled = compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0), tolerance=0.1)
    check(compiled, model, np.random.default_rng(0).uniform(-1, 1, (3, 6)))


@st.composite
def models(draw: st.DrawFn, *, degree: int = 3) -> tuple[nn.Sequential, tuple[int, ...]]:
    torch.manual_seed(draw(st.integers(0, 10**6)))
    activations = [Square, lambda: Polynomial([0.1, 0.5, 0.3])]
    if degree > 2:
        activations.append(lambda: Polynomial([0.0, 0.7, 0.1, 0.2]))
    activation = st.sampled_from(activations)
    layers: list[nn.Module] = []
    shape: tuple[int, ...]
    if draw(st.booleans()):
        channels, size = draw(st.sampled_from([1, 2])), draw(st.integers(5, 9))
        shape = (channels, size, size)
        groups = draw(st.sampled_from([1, channels]))
        out = groups * draw(st.integers(1, 3))
        layers.append(
            nn.Conv2d(
                channels,
                out,
                draw(st.integers(1, 3)),
                stride=draw(st.integers(1, 2)),
                padding=draw(st.integers(0, 1)),
                groups=groups,
                bias=draw(st.booleans()),
            )
        )
        if draw(st.booleans()):
            norm = nn.BatchNorm2d(out)
            norm.running_mean = torch.randn(out) * 0.1
            norm.running_var = torch.rand(out) + 0.5
            layers.append(norm)
        layers.append(draw(activation)())
        layers.append(
            draw(st.sampled_from([nn.Identity, lambda: nn.AvgPool2d(2), lambda: nn.Dropout(0.5)]))()
        )
        if draw(st.booleans()):
            layers.append(nn.AdaptiveAvgPool2d(2))
        layers.append(nn.Flatten())
    else:
        shape = (draw(st.integers(1, 40)),)
    with torch.no_grad():
        width = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[1]
    depth = draw(st.integers(0 if layers else 1, 2))
    for _ in range(depth):
        hidden = draw(st.integers(1, 40))
        layers += [nn.Linear(width, hidden), draw(activation)()]
        width = hidden
    head = nn.Sequential(nn.Linear(width, draw(st.integers(1, 12))), nn.Dropout())
    return nn.Sequential(*layers, head), shape


@given(model=models(), seed=st.integers(0, 10**6))
@settings(
    max_examples=15,
    deadline=None,
    # A failing model is reported as it was found: compiling hundreds to shrink it takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_models(model: tuple[nn.Sequential, tuple[int, ...]], seed: int) -> None:
    layers, shape = model
    compiled = compile_model(layers, input_shape=shape, input_range=(-1.0, 1.0), tolerance=0.25)
    check(compiled, layers, np.random.default_rng(seed).uniform(-1, 1, (2, *shape)))


@given(model=models(degree=2), seed=st.integers(0, 10**6))
@settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_models_with_encrypted_weights(
    model: tuple[nn.Sequential, tuple[int, ...]], seed: int
) -> None:
    layers, shape = model
    compiled = compile_model(
        layers,
        input_shape=shape,
        input_range=(-1.0, 1.0),
        tolerance=0.25,
        parties=ThreeParties("laboratory", "clinic", "cloud"),
    )
    check(compiled, layers, np.random.default_rng(seed).uniform(-1, 1, (1, *shape)))


@given(model=models())
@settings(max_examples=15, deadline=None)
def test_no_input_in_the_range_escapes_the_bounds(
    model: tuple[nn.Sequential, tuple[int, ...]],
) -> None:
    """The headroom claim, attacked by gradient from several starts."""
    layers, shape = model
    network = lower(layers, shape)
    bound = ranges(network, -1.0, 1.0).logits
    double = layers.double().eval()
    x = torch.rand(8, *shape, dtype=torch.float64) * 2 - 1
    for sign in (1.0, -1.0):
        worst = x.clone().requires_grad_()
        for _ in range(30):
            logits = double(worst)
            (gradient,) = torch.autograd.grad((sign * logits).max(dim=1).values.sum(), worst)
            worst = (worst + 0.2 * gradient.sign()).clamp(-1, 1).detach().requires_grad_()
        found = double(worst).detach().numpy()
        assert (found <= bound.high + 1e-9).all()
        assert (found >= bound.low - 1e-9).all()


def test_the_worst_inputs_of_a_cnn_do_not_overflow() -> None:
    """Corners of the range that gradient ascent finds, through encryption."""
    model = tutorial_cnn().double()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3.0
    compiled = compile_model(
        model, input_shape=(1, 28, 28), input_range=(0.0, 1.0), tolerance=100.0
    )
    worst = torch.rand(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    for _ in range(100):
        (gradient,) = torch.autograd.grad(model(worst).abs().max(), worst)
        worst = (worst + 0.1 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
    expected = model(worst).detach().numpy()[0]
    typical = np.abs(compiled.predict(np.random.default_rng(0).random((20, 784)))).max()
    assert np.abs(expected).max() > 4 * typical
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    logits = owner.logits(evaluator.evaluate(owner.encrypt(worst.detach().numpy()[0])))[0]
    assert np.abs(logits - expected).max() < 2.0**compiled.plan.worst_error_bits
    assert np.abs(expected).max() < 2.0**compiled.plan.logit_bits
    assert math.isfinite(compiled.plan.headroom_bits)


@given(
    inputs=st.integers(1, 12),
    hidden=st.integers(1, 20),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_no_corner_escapes_the_bound_of_a_quadratic_form(
    inputs: int, hidden: int, outputs: int, seed: int
) -> None:
    """All corners of the box, where a convex part is largest, and points inside."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, hidden), Square(), nn.Linear(hidden, outputs))
    network = lower(model, (inputs,))
    generator = np.random.default_rng(seed)
    low = generator.uniform(-2, 1, inputs)
    high = low + generator.uniform(0, 2, inputs)
    bound = tightened(*(layer.affines[0] for layer in network.layers), Interval(low, high))
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * inputs)).reshape(inputs, -1)
    inside = generator.random((inputs, 200))
    logits = network(low[:, None] + (high - low)[:, None] * np.hstack([corners, inside]))
    assert (logits <= bound.high[:, None]).all()
    assert (logits >= bound.low[:, None]).all()


def test_the_bound_of_a_quadratic_form_is_worth_having() -> None:
    """Hidden units that read the same inputs cannot all be at their worst at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 60), Square(), nn.Linear(60, 5))
    network = lower(model, (200,))
    first, last = (layer.affines[0] for layer in network.layers)
    spread = abs(first.matrix) @ np.ones(200) + np.abs(first.bias)
    interval = abs(last.matrix) @ spread**2 + np.abs(last.bias)
    assert ranges(network, -1.0, 1.0).logits.magnitude.max() < interval.max() / 4
