"""On shares the workers compute what the integers give, and the integers what PyTorch gives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import Square
from privacy.shared_inference import Plan, SharedModel, compile_model
from privacy.shared_inference.clear import in_the_clear
from privacy.shared_inference.compiler.curves import CURVES, SLOPE_BITS, line
from privacy.shared_inference.errors import CannotPlanError, UnsupportedLayerError
from privacy.shared_inference.material import worker_piece_bytes
from privacy.shared_inference.plan import (
    AffineStep,
    LargestStep,
    LineStep,
    MaximumStep,
    ReluStep,
    SquareStep,
    rounds_of,
)
from privacy.shared_inference.ring import as_signed, quantised
from tests.privacy.shared_inference.parties import Protocol
from tests.privacy.shared_inference.shared_models import MODELS, made
from tests.privacy.shared_inference.test_plan import written


def drawn(compiled: SharedModel, count: int, seed: int = 0) -> np.ndarray:
    """Inputs of the range [-1, 1], the first two at its ends, some at corners."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(-1, 1, (count, *compiled.plan.input_shape))
    values[::3] = np.sign(values[::3])
    values[0], values[1 % count] = -1.0, 1.0
    return values


def check(compiled: SharedModel, inputs: np.ndarray) -> None:
    """Shares against integers, and integers against PyTorch."""
    plan = compiled.plan
    integers = quantised(inputs, plan.input_bits)
    clear = in_the_clear(plan, compiled.weights, integers)
    shared = Protocol(plan, compiled.weights).run(integers)
    steps = [step for step in plan.steps if isinstance(step, ReluStep | SquareStep | LineStep)]
    if not any(step.shift for step in steps):
        assert np.array_equal(shared, clear)
    expected = compiled.predict(inputs)
    if plan.answer == "class":
        low = as_signed(shared)[0] & ((1 << plan.class_bits) - 1)
        chosen = expected[np.arange(len(inputs)), plan.logits - 1 - low]
        assert (expected.max(axis=1) - chosen <= 2 * plan.error).all()
    else:
        for made_of in (clear, shared):
            off = np.abs(as_signed(made_of).T / 2.0**plan.answer_bits - expected)
            assert off.max() <= plan.error


@pytest.mark.parametrize("answer", ["logits", "class"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name: str, answer: str) -> None:
    shape, model = made(name)
    if name == "one logit" and answer == "class":
        with pytest.raises(ValueError, match="its sign is the class"):
            compile_model(model, input_shape=shape, input_range=(-1, 1), answer=answer)
        return
    for batch in (1, 17):
        compiled = compile_model(
            model, input_shape=shape, input_range=(-1, 1), answer=answer, batch_size=batch
        )
        check(compiled, drawn(compiled, batch))


_EXCHANGES = {
    "linear": (0, 0),
    "relu": (3, 2),
    "one logit": (6, 4),
    "squares": (4, 2),
    "pools": (10, 8),
    "residual": (6, 4),
    "curves": (14, 10),
    "hard": (18, 12),
}
"""With the model in shares, and with one that the workers know."""


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_the_workers_know_takes_fewer_exchanges_and_less_material(name: str) -> None:
    shape, model = made(name)
    given = {"input_shape": shape, "input_range": (-1, 1), "batch_size": 9}
    plans = []
    for public in (False, True):
        compiled = compile_model(model, **given, public_model=public)
        plans.append(compiled.plan)
    check(compiled, drawn(compiled, 9))
    assert tuple(plan.exchanges for plan in plans) == _EXCHANGES[name]
    assert worker_piece_bytes(plans[1], 1) < worker_piece_bytes(plans[0], 1)
    assert Plan.from_bytes(plans[1].to_bytes()).digest == plans[1].digest != plans[0].digest


LAYERS = [nn.ReLU(), nn.LeakyReLU(0.3), nn.Hardtanh(), nn.ReLU6(), Square(), nn.Identity()]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(LAYERS)), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.sampled_from([0.3, 1.0, 4.0]),
)
def test_random_networks(
    hidden: list[tuple[int, nn.Module]], logits: int, seed: int, size: float
) -> None:
    torch.manual_seed(seed)
    layers, width = [], 7
    for outputs, activation in hidden:
        layers += [nn.Linear(width, outputs), activation]
        width = outputs
    model = nn.Sequential(*layers, nn.Linear(width, logits)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
    try:
        compiled = compile_model(model, input_shape=7, input_range=(-1, 1), batch_size=12)
    except CannotPlanError:
        return  # four squares of large weights in a row
    check(compiled, drawn(compiled, 12, seed))


@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.integers(2, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([4, 17]),
    st.integers(0, 2**31),
)
def test_random_pools(
    stride: int, size: int, channels: int, rectify: bool, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.ReLU() if rectify else nn.Identity(),
        nn.MaxPool2d(size, stride=stride, padding=size // 2),
        nn.Flatten(),
    )
    model.append(nn.LazyLinear(3))
    model(torch.zeros(1, 1, 8, 7))
    compiled = compile_model(model, input_shape=(1, 8, 7), input_range=(-1, 1), batch_size=batch)
    check(compiled, drawn(compiled, batch, seed))


def test_the_inputs_that_make_values_largest_do_not_wrap() -> None:
    """Found by following the gradient of every hidden value and logit to a corner of the range."""
    shape, model = made("residual", seed=3)
    compiled = compile_model(model, input_shape=shape, input_range=(-1, 1), batch_size=40)
    extremes: list[np.ndarray] = []
    for stage in (compiled.model.first, compiled.model.second, compiled.model.last):
        values: list[torch.Tensor] = []
        handle = stage.register_forward_hook(lambda _, __, out, values=values: values.append(out))
        for sign in (1.0, -1.0):
            x = torch.rand(1, *shape, dtype=torch.float64) * 2 - 1
            for _ in range(20):
                x = x.detach().requires_grad_()
                values.clear()
                compiled.model(x)
                (sign * values[0].flatten()[:6].sum()).backward()
                x = torch.sign(x.grad) * 0.5 + x.detach()
                x = x.clamp(-1, 1)
            extremes.append(torch.sign(x.detach()).numpy()[0])
        handle.remove()
    inputs = np.concatenate([np.array(extremes), drawn(compiled, 40 - len(extremes))])
    check(compiled, inputs)


def test_of_equal_logits_the_first_is_the_class() -> None:
    model = nn.Sequential(nn.Linear(2, 5)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1.0]]))
        model[0].bias.zero_()
    compiled = compile_model(
        model, input_shape=2, input_range=(-1, 1), answer="class", batch_size=3
    )
    inputs = quantised(np.array([[0.5, 0.5], [0.75, 0.5], [-1.0, 1.0]]), compiled.plan.input_bits)
    shared = Protocol(compiled.plan, compiled.weights).run(inputs)
    assert (4 - (as_signed(shared)[0] & 7)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("shift", [1, 13, 30, 61])
@pytest.mark.parametrize("kind", ["relu", "square"])
def test_shortening_is_off_by_one_at_most_and_never_fails(kind: str, shift: int) -> None:
    """Of 20,000 values up to 2^61 in magnitude, the ends among them."""
    plan = one_step(kind, shift, 20_000)
    generator = np.random.default_rng(shift)
    x = generator.integers(-(2**61) + 1, 2**61, (1, 20_000))
    x[0, :4] = -(2**61) + 1, 2**61 - 1, 0, -1
    weights = np.array([1, 0], np.uint64)
    made_of = Protocol(plan, weights).run(x.astype(np.uint64))
    low = x >> shift
    if kind == "relu":
        off = as_signed(made_of) - np.where(x < 0, 0, low)
        assert set(np.unique(off)) <= {0, 1}
        assert not off[x < 0].any()
    else:
        squares = [(low + extra).astype(np.uint64) ** np.uint64(2) for extra in (0, 1)]
        assert ((made_of == squares[0]) | (made_of == squares[1])).all()


def one_step(kind: str, shift: int, batch: int) -> Plan:
    """A plan of one value, an activation, and a matrix that leaves it as it is."""
    steps = [
        {"kind": kind, "source": 0, "size": 1, "shift": shift},
        {"kind": "affine", "terms": [[1, 1, 1, -1, -1]]},
    ]
    if kind == "relu":
        fields = {"source": 0, "size": 1, "width": min(62, 64 - shift), "shift": shift}
        steps[0] = {"kind": kind} | fields
    return Plan.from_bytes(written(*steps, input_shape=[1], batch_size=batch))


def test_maxima_before_relu_take_fewer_comparisons() -> None:
    """Four values are rectified as one, whichever stands first in the model."""
    for batch, maxima in ((1, [LargestStep]), (17, [MaximumStep, MaximumStep])):
        plans = []
        for layers in ((nn.ReLU(), nn.MaxPool2d(2)), (nn.MaxPool2d(2), nn.ReLU())):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(1, 1, 3), *layers, nn.Flatten(), nn.Linear(4, 2))
            given = {"input_shape": (1, 6, 6), "input_range": (0, 1), "batch_size": batch}
            plans.append(compile_model(model, **given).plan)
        kinds = [[type(step) for step in plan.steps] for plan in plans]
        assert kinds[0] == kinds[1] == [AffineStep, *maxima, ReluStep, AffineStep]
        assert [step.size for step in plans[0].steps if isinstance(step, ReluStep)] == [4]


@pytest.mark.parametrize("together", [2, 3, 4])
@pytest.mark.parametrize("size", range(2, 18))
def test_rounds_leave_the_earliest_largest(size: int, together: int) -> None:
    """Followed on numbers, of which several are largest; places stand for themselves."""
    generator = np.random.default_rng(size)
    windows = generator.permuted(np.tile(np.arange(size + 1), (9, 1)), axis=1)[:, :size]
    places, numbers = np.arange(size + 1), generator.integers(0, 4, size + 1)
    for step in rounds_of(windows, together):
        if len(step) == 1:
            columns = places[step[0]]
            best = numbers[columns].argmax(axis=1)
            places = columns[np.arange(len(columns)), best]
            continue
        left, right, rest = (places[part] for part in step)
        larger = np.where(numbers[left] >= numbers[right], left, right)
        places = np.concatenate([larger, rest])
    expected = windows[np.arange(9), numbers[windows].argmax(axis=1)]
    assert np.array_equal(places, expected)
    count = len(rounds_of(windows, together))
    assert count == math.ceil(round(math.log(size, together), 9))


@pytest.mark.parametrize("name", sorted(CURVES))
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-30, 20), (0.5, 0.5001), (-4000, 9)])
def test_curves_are_lines_within_their_stated_error(name: str, low: float, high: float) -> None:
    functions = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "gelu": nn.functional.gelu,
        "gelu by tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
        "silu": nn.functional.silu,
    }
    bits = 14
    made_of = line(name, low, high, bits)
    points = np.random.default_rng(0).uniform(low, high, 50_000)
    points[:2] = low, high
    exact = functions[name](torch.from_numpy(points)).numpy()
    off = np.abs(made_of.at(points * 2.0**bits) / 2.0 ** (bits + SLOPE_BITS) - exact)
    assert off.max() <= made_of.error
    if high - low <= 50:
        assert made_of.error < 0.008


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU()])
@pytest.mark.parametrize("ends", [(-3, 3), (-6, 6), (-12, 12), (-24, 24)])
def test_curves_hold_at_the_ends_at_knots_and_between(
    activation: nn.Module, ends: tuple[int, int]
) -> None:
    """Ranges that double: in one of them what is compared with a knot takes four bits more."""
    model = nn.Sequential(nn.Linear(1, 1), activation).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.zero_()
    given = {"input_shape": 1, "input_range": ends, "tolerance": 0.02}
    compiled = compile_model(model, **given, batch_size=400)
    (step,) = (step for step in compiled.plan.steps if isinstance(step, LineStep))
    knots = np.array(step.knots) * 2.0 ** (step.shift - 2 * compiled.plan.input_bits)
    assert (abs(knots) < ends[1]).all()
    near = np.concatenate([knots, knots - 1e-9, knots + 1e-9, (knots[1:] + knots[:-1]) / 2, ends])
    check(compiled, np.resize(np.concatenate([near, np.linspace(*ends, 400)]), (400, 1)))


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="Mish"):
        compile_model(nn.Sequential(nn.Mish(), nn.Linear(2, 2)), input_shape=2, input_range=(0, 1))
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(CannotPlanError, match="larger tolerance"):
        compile_model(model, input_shape=2, input_range=(0, 1), tolerance=1e-12)

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(2, 2), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            return self.relu(x) + x  # twice the rectified values, since x was changed

    with pytest.raises(UnsupportedLayerError, match="changes values in place"):
        compile_model(Changed(), input_shape=2, input_range=(-1, 1))
