"""Every model gets a plan that answers, or one sentence with the reason and what helps."""

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    EvaluatorPool,
    MeasurementOwner,
    Polynomial,
    RoundedLogits,
    Square,
    certify,
    compile_model,
)
from privacy.inference.errors import CannotPlanError, EvaluatorFailedError, ReleaseError
from tests.privacy.inference.evaluator.evaluator_program import start_process
from tests.privacy.inference.inference_models import tutorial_cnn

KINDS = ("ReLU", "Tanh", "Sigmoid", "GELU", "SiLU", "Softplus", "ELU")


def answers(compiled: CompiledModel, inputs: np.ndarray) -> float:
    """The largest error of an encrypted logit."""
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    logits = [owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] for x in inputs]
    return float(np.abs(logits - compiled.predict(inputs)).max())


def fitted(kind: str, degree: int, low: float, high: float) -> Polynomial:
    return Polynomial.fitted(getattr(nn, kind)(), low=low, high=high, degree=degree)


@pytest.mark.parametrize(
    ("kind", "degree", "there"),
    [
        ("Tanh", 2, 1),
        ("Sigmoid", 2, 1),
        ("Tanh", 5, 5),
        ("Tanh", 6, 5),
        ("ReLU", 3, 2),
        ("ReLU", 6, 6),
        ("GELU", 7, 6),
        ("SiLU", 4, 4),
    ],
)
def test_a_fitted_polynomial_has_the_degree_that_is_there_and_answers(
    kind: str, degree: int, there: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(7)
    polynomial = fitted(kind, degree, -2.0, 2.0)
    assert len(polynomial.coefficients) == there + 1
    assert ("nothing of degree" in caplog.text) == (there < degree)
    assert ("straight line" in caplog.text) == (there == 1)
    model = nn.Sequential(nn.Linear(16, 8), polynomial, nn.Linear(8, 2)).eval()
    compiled = compile_model(model, input_shape=(16,), input_range=(0.0, 1.0))
    x = np.random.default_rng(0).uniform(0, 1, (2, 16))
    assert answers(compiled, x) < 2.0**compiled.plan.error_bits


@pytest.mark.parametrize("coefficients", [[0.0, 0.5, 1e-17], [0.1, 1e-16, 0.3, 1e-17, 0.2]])
def test_coefficients_of_rounding_do_not_stand_in_the_way(coefficients: list[float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Polynomial(coefficients), nn.Linear(8, 3)).eval()
    compiled = compile_model(model, input_shape=(6,), input_range=(-1.0, 1.0))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 6))
    assert answers(compiled, x) < 2.0**compiled.plan.error_bits


def test_a_function_that_does_not_change_is_refused() -> None:
    with pytest.raises(ValueError, match="constant between low = 2"):
        Polynomial.fitted(nn.Hardtanh(), low=2.0, high=3.0)
    with pytest.raises(ValueError, match="not finite between low"):
        Polynomial.fitted(torch.log, low=-2.0, high=-1.0)


@st.composite
def cells(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[float, float]]:
    """Fitted polynomials of every kind, degree and interval on every range, up to three in a row.

    Deeper ones take ten seconds to plan, and mostly a ring that the test below leaves out.
    """
    torch.manual_seed(draw(st.integers(0, 10**6)))
    low, high = draw(st.sampled_from([(-2.0, 2.0), (-1.0, 3.0), (0.0, 8.0), (-50.0, 50.0)]))
    layers: list[nn.Module] = [nn.Linear(8, 6)]
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        kind, degree = draw(st.sampled_from(KINDS)), draw(st.integers(2, 7))
        layers += [fitted(kind, degree, low, high), nn.Linear(6, 6)]
    span = draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-100.0, 100.0)]))
    return nn.Sequential(*layers).eval(), span


@given(cell=cells())
@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
def test_every_cell_of_the_grid_answers_or_says_why_not(
    cell: tuple[nn.Sequential, tuple[float, float]],
) -> None:
    """Six standard deviations of noise: by chance alone below 1e-6 a run.

    About one cell in a hundred has a layer that hardly depends on the one before. That they have a
    plan and no evaluator is a reason too.
    """
    model, span = cell
    x = np.random.default_rng(0).uniform(*span, (1, 8))
    try:
        compiled = compile_model(model, input_shape=(8,), input_range=span)
        if compiled.plan.degree > 1 << 14:
            return  # an answer takes a minute: test_depth and test_graphs have some of this ring
        error = answers(compiled, x)
    except CannotPlanError as refusal:
        helps = "narrow input_range|make the model shallower|make it|with a smaller tolerance$"
        if not re.search(helps, str(refusal)):
            raise
        return
    assert error < 2.0**compiled.plan.worst_error_bits


def squares(depth: int, gain: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(30, 16)]
    for _ in range(depth):
        layers += [Square(), nn.Linear(16, 16)]
    with torch.no_grad():
        layers[0].weight *= gain
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (squares(40), r"needs 41 levels, 35 fit .* make it shallower.* bootstrapping"),
        (squares(8, 3.0), r"a logit can reach 2\^\d+, .* narrow input_range"),
        (squares(8, 1e6), r"larger than any number of double precision; narrow input_range"),
        (squares(16, 1e9), r"larger than any number of double precision; narrow input_range"),
    ],
)
def test_a_model_that_is_too_deep_says_what_decides(model: nn.Sequential, words: str) -> None:
    with pytest.raises(CannotPlanError, match=words):
        compile_model(model, input_shape=(30,), input_range=(0.0, 1.0))


def test_logits_that_could_be_large_are_to_be_trained_down() -> None:
    for gain, wide in ((1.0, False), (100.0, True)):
        with pytest.raises(CannotPlanError, match="least predicted error") as refusal:
            compile_model(
                squares(2, gain), input_shape=(30,), input_range=(0.0, 1.0), tolerance=1e-12
            )
        assert ("train the bound of the logits, 2^" in str(refusal.value)) == wide


def test_the_tolerance_that_a_refusal_names_is_enough() -> None:
    model = nn.Sequential(*squares(1))
    with pytest.raises(CannotPlanError, match="least predicted error") as refusal:
        compile_model(model, input_shape=(30,), input_range=(-1e4, 1e4), tolerance=1e-9)
    named = re.search(r"tolerance=(\S+)$", str(refusal.value))
    assert named is not None
    compile_model(
        model, input_shape=(30,), input_range=(-1e4, 1e4), tolerance=float(named.group(1))
    )


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_a_layer_of_zeros_has_a_plan_and_no_evaluator(which: str, batch_size: int) -> None:
    """A model before training can be planned, and does not come up."""
    model = nn.Sequential(
        nn.Linear(4, 5), Square(), nn.Linear(5, 5), Square(), nn.Linear(5, 2)
    ).eval()
    nn.init.zeros_(model[{"first": 0, "middle": 2, "last": 4}[which]].weight)
    compiled = compile_model(
        model, input_shape=(4,), input_range=(0.0, 1.0), batch_size=batch_size, tolerance=0.5
    )
    material = DataOwner(compiled.plan).public_material()
    with pytest.raises(CannotPlanError, match=r"are all zero, .*; train the model") as refusal:
        Evaluator(compiled, material)
    assert "tolerance" not in str(refusal.value)


def test_small_weights_are_kept_from_rounding_to_zero_as_far_as_scales_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), Square(), nn.Linear(5, 5), Square(), nn.Linear(5, 2)
    ).eval()
    with torch.no_grad():
        model[2].weight *= 1e-9
    compiled = compile_model(model, input_shape=(4,), input_range=(0.0, 1.0))
    x = np.random.default_rng(0).uniform(0, 1, (1, 4))
    assert answers(compiled, x) < 2.0**compiled.plan.worst_error_bits
    with torch.no_grad():
        model[2].weight *= 1e-25
    vanishing = compile_model(model, input_shape=(4,), input_range=(0.0, 1.0))
    material = DataOwner(vanishing.plan).public_material()
    with pytest.raises(CannotPlanError, match=r"middle layer round to zero .* smaller tolerance$"):
        Evaluator(vanishing, material)


def test_units_without_weights_are_evaluated_in_a_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Square(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[2].weight[0] = 0.0
    compiled = compile_model(
        model, input_shape=(4,), input_range=(0.0, 1.0), batch_size=3, tolerance=0.1
    )
    x = np.random.default_rng(0).random((3, 4))
    owner = MeasurementOwner(compiled.plan)
    logits = owner.logits(Evaluator(compiled, owner.public_material()).evaluate(owner.encrypt(x)))
    assert np.abs(logits - compiled.predict(x)).max() < 2.0**compiled.plan.error_bits


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(3, 16, 3), Square()], r"1 \(Square\) is given 788,544 values.*AvgPool2d"),
        ([nn.Conv2d(3, 64, 7, 2), nn.AvgPool2d(50)], r"0 \(Conv2d\) is a matrix of .*AvgPool2d"),
        ([nn.Flatten(), nn.Linear(150528, 16), Square()], r"give max_query_bytes=\d+"),
    ],
)
def test_photographs_are_refused_in_seconds(layers: list[nn.Module], words: str) -> None:
    with torch.no_grad():
        width = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, 3, 224, 224)).shape[1]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 2)).eval()
    with pytest.raises(CannotPlanError, match=words):
        compile_model(model, input_shape=(3, 224, 224), input_range=(0.0, 1.0))


def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), Square(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), Square(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Linear(120, 10)),
    )


def perceptron(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), Square()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    "make",
    [lenet, lambda: perceptron(784, 128, 10), lambda: perceptron(784, 512, 256, 10)],
)
def test_the_networks_that_people_bring_fit_by_default(make: Callable[[], nn.Sequential]) -> None:
    plan = compile_model(make(), input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
    assert plan.query_bytes <= 16_000_000


@pytest.mark.parametrize(
    ("model", "batch_size"),
    [(perceptron(784, 64, 10), 1), (perceptron(784, 10), 1), (perceptron(784, 10), 4)],
)
def test_the_bytes_that_a_refusal_names_are_enough_and_are_those_sent(
    model: nn.Sequential, batch_size: int
) -> None:
    def plan(limit: int) -> int:
        return compile_model(
            model,
            input_shape=(1, 28, 28),
            input_range=(0.0, 1.0),
            max_query_bytes=limit,
            batch_size=batch_size,
        ).plan.query_bytes

    with pytest.raises(CannotPlanError, match="give max_query_bytes=") as refusal:
        plan(20_000)
    named = re.search(r"max_query_bytes=(\d+)$", str(refusal.value))
    assert named is not None
    assert plan(int(named.group(1))) <= int(named.group(1))


@pytest.mark.parametrize("limit", [200_000, 600_000])
def test_a_tolerance_and_bytes_that_are_both_too_small_are_both_named(limit: int) -> None:
    def plan(tolerance: float, limit: int) -> int:
        return compile_model(
            perceptron(784, 64, 10),
            input_shape=(1, 28, 28),
            input_range=(0.0, 1.0),
            tolerance=tolerance,
            max_query_bytes=limit,
        ).plan.query_bytes

    with pytest.raises(CannotPlanError, match="least predicted error") as refusal:
        plan(1e-20, limit)
    named = re.search(r"tolerance=(\S+) and max_query_bytes=(\d+)$", str(refusal.value))
    assert named is not None
    assert limit < plan(float(named.group(1)), int(named.group(2))) <= int(named.group(2))


def one_layer() -> CompiledModel:
    return compile_model(perceptron(8, 3), input_shape=(8,), input_range=(-1.0, 1.0))


def two_layers() -> CompiledModel:
    """A model whose keys take megabytes."""
    return compile_model(perceptron(784, 64, 10), input_shape=(784,), input_range=(0.0, 1.0))


def test_a_service_of_a_model_that_dies_over_its_first_question_does_not_come_up() -> None:
    with EvaluatorPool(lambda: start_process(one_layer), processes=1) as pool:
        assert pool.running == 1
    # What ends a process when it evaluates, wherever it comes from: here its room for that.
    dying = start_process(two_layers, memory=1 << 20)
    with pytest.raises((EvaluatorFailedError, CannotPlanError)):
        EvaluatorPool(lambda: dying, processes=1)
    assert not dying.alive


def test_the_prediction_holds_for_inputs_with_structure() -> None:
    """Filters average noise away, so that noise says little of the errors that images have."""
    generator = np.random.default_rng(0)
    model = tutorial_cnn().eval()
    with torch.no_grad():
        edge = torch.ones(7, 7)
        edge[:, 3:] = -1.0
        model[0].weight.copy_(torch.stack([edge, -edge, edge.T, -edge.T])[:, None] / 7)
    compiled = compile_model(model, input_shape=(1, 28, 28), input_range=(0.0, 1.0))
    images = np.zeros((8, 1, 28, 28))
    for image in images:
        row, column = generator.integers(4, 16, 2)
        image[0, row : row + 9, column : column + 6] = 1.0
    certificate = certify(compiled, images, np.zeros(8, dtype=int))
    assert certificate.beyond_prediction == 0


def test_a_certificate_says_when_the_prediction_was_wrong() -> None:
    generator = np.random.default_rng(0)
    dark, bright = generator.random((2, 6, 1, 28, 28)) * np.array([1e-3, 1.0]).reshape(
        2, 1, 1, 1, 1
    )
    compiled = compile_model(
        perceptron(784, 64, 10), input_shape=(1, 28, 28), input_range=(0.0, 1.0), sample=dark
    )
    labels = np.zeros(6, dtype=int)
    assert certify(compiled, dark, labels).beyond_prediction == 0
    wrong = certify(compiled, bright, labels)
    assert wrong.beyond_prediction > 0
    assert wrong.beyond_worst_prediction == 0


def test_rounding_rests_on_the_error_of_the_worst_input() -> None:
    plan = compile_model(tutorial_cnn(), input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
    assert 2.0 ** (plan.error_bits + 8) < 1.0 < 2.0 ** (plan.worst_error_bits + 8)
    with pytest.raises(ReleaseError, match="worst input"):
        RoundedLogits(0).check(plan)


def with_small_logits(scale: float, *, layers: int = 2, single: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    wide = 784 if layers == 1 else 64
    last = nn.Linear(wide, 1 if single else 10)
    with torch.no_grad():
        last.weight *= scale
        last.bias.zero_()
    return nn.Sequential(*([nn.Linear(784, 64), Square()] if layers == 2 else []), last).eval()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("scale", "single"), [(3e-3, False), (3e-4, False), (1e-5, True)])
def test_the_default_tolerance_follows_logits_however_small(
    scale: float, single: bool, layers: int
) -> None:
    model = with_small_logits(scale, layers=layers, single=single)
    compiled = compile_model(model, input_shape=(784,), input_range=(0.0, 1.0))
    x = np.random.default_rng(5).uniform(0, 1, (3, 784))
    logits = compiled.predict(x)
    apart = np.abs(logits).mean() / 2 if single else logits.std(axis=1).mean()
    assert 2.0**compiled.plan.error_bits < apart / 20
    assert answers(compiled, x) < apart / 20


@pytest.mark.parametrize(("layers", "scale"), [(1, 1e-14), (2, 1e-30)])
def test_logits_too_small_for_any_plan_are_refused_and_scaling_helps(
    layers: int, scale: float
) -> None:
    model = with_small_logits(scale, layers=layers)
    with pytest.raises(CannotPlanError, match=r"scale the last layer up.*gives wrong classes"):
        compile_model(model, input_shape=(784,), input_range=(0.0, 1.0))
    with torch.no_grad():
        model[-1].weight /= scale
    compile_model(model, input_shape=(784,), input_range=(0.0, 1.0))


def test_an_error_beyond_what_logits_lie_apart_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = with_small_logits(1e-4)
    compile_model(model, input_shape=(784,), input_range=(0.0, 1.0))
    assert not caplog.records
    compile_model(model, input_shape=(784,), input_range=(0.0, 1.0), tolerance=0.1)
    assert "encrypted classes will be wrong; give tolerance=" in caplog.text


def test_logits_that_do_not_differ_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 5), Square(), nn.Linear(5, 10)).eval()
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, 0.1)
    compile_model(model, input_shape=(4,), input_range=(0.0, 1.0))
    assert "logits are all alike" in caplog.text
