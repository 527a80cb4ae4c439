"""Ranges of single features: declared, checked, scaled to one size, and named in refusals."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from privacy import shared_inference as shared
from privacy.inference import (
    BlindEvaluator,
    DataOwner,
    Evaluator,
    InputContract,
    MeasurementOwner,
    Plan,
    Square,
    ThreeParties,
    accept_plan,
    compile_model,
    logit_bound,
)
from privacy.inference.errors import OutOfRangeError, PlanRefusedError
from privacy.inference.input_range import bounds, input_range
from tests.privacy.shared_inference.parties import session

LOW, HIGH = [0.0, 18.0, -1e6, 0.5], [1.0, 99.0, 3e6, 0.5001]


def table(*, hidden: bool = True) -> nn.Sequential:
    """A model of four features of very different size, standardised first."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    norm.running_mean = torch.tensor([0.5, 40.0, 5e5, 0.50005])
    norm.running_var = torch.tensor([0.1, 200.0, 5e11, 1e-9])
    norm.eps = 0.0
    last = [nn.Linear(4, 8), Square(), nn.Linear(8, 3)] if hidden else [nn.Linear(4, 3)]
    return nn.Sequential(norm, *last).double().eval()


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(LOW, HIGH, (count, 4))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_of_every_size_are_answered_alike(hidden: bool, batch_size: int) -> None:
    model = table(hidden=hidden)
    compiled = compile_model(
        model,
        input_shape=4,
        input_range=(LOW, HIGH),
        batch_size=batch_size,
        tolerance=0.05,
        sample=drawn(20),
    )
    owner = MeasurementOwner(Plan.from_json(compiled.plan.to_json()))
    evaluator = Evaluator(compiled, owner.public_material())
    x = drawn(3)
    queries = [x] if batch_size > 1 else list(x)
    logits = np.vstack([owner.logits(evaluator.evaluate(owner.encrypt(q))) for q in queries])
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    # Six deviations of a first-order model, as in the tests of random models.
    assert np.abs(logits - expected).max() < 2 * 2.0**compiled.plan.error_bits
    np.testing.assert_allclose(compiled.network(x.T).T, expected, rtol=1e-9)


def test_features_of_every_size_are_answered_with_encrypted_weights() -> None:
    parties = ThreeParties("laboratory", "clinic", "cloud")
    compiled = compile_model(
        table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05, parties=parties
    )
    owner = MeasurementOwner(compiled.plan)
    material = owner.public_material()
    weights = compiled.encrypt_weights(material)
    evaluator = BlindEvaluator(compiled.plan, material, weights, name="cloud")
    x = drawn(1)[0]
    logits = owner.logits(evaluator.evaluate(owner.encrypt(x)))[0]
    assert np.abs(logits - compiled.predict(x[None])[0]).max() < 2.0**compiled.plan.error_bits


def test_every_corner_of_the_range_is_within_the_plans_bound() -> None:
    plan = compile_model(table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05).plan
    corners = np.array(np.meshgrid(*np.stack([LOW, HIGH], axis=1))).reshape(4, -1).T
    with torch.no_grad():
        assert table()(torch.from_numpy(corners)).abs().max() < 2.0**plan.logit_bits
        bound = logit_bound(
            table()[1:].float(), input_shape=4, input_range=([-2] * 4, [2, 3, 4, 1])
        )
        wide = logit_bound(table()[1:].float(), input_shape=4, input_range=(-4, 4))
        assert bound < wide


def test_a_channels_range_is_short_and_its_pictures_are_answered() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Square(), nn.Flatten(), nn.Linear(32, 2)).eval()
    low, high = np.array([0.0, -1.0, 2.0])[:, None, None], np.array([1.0, 1.0, 9.0])[:, None, None]
    compiled = compile_model(model, input_shape=(3, 6, 6), input_range=(low, high), tolerance=0.1)
    written = compiled.plan.input_range
    assert written == ((((0.0,),), ((-1.0,),), ((2.0,),)), (((1.0,),), ((1.0,),), ((9.0,),)))
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    x = np.random.default_rng(0).uniform(low, high, (3, 6, 6))
    error = owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] - compiled.predict(x[None])[0]
    assert np.abs(error).max() < 2.0**compiled.plan.error_bits
    x[2, 0, 5] = 9.5
    with pytest.raises(OutOfRangeError, match=r"has 9.5 at feature \(2, 0, 5\), .*\[2, 9\] there"):
        owner.encrypt(x)


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    alike=st.lists(st.booleans(), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_range_is_written_in_one_way(
    shape: tuple[int, ...], alike: list[bool], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    short = tuple(1 if same else size for same, size in zip(alike, shape, strict=False))
    low = np.broadcast_to(generator.uniform(-1, 0, short), shape)
    high = np.broadcast_to(generator.uniform(1, 2, short), shape)
    written = input_range("input_range", (low, high), shape)
    assert written == input_range("input_range", (low.tolist(), torch.tensor(high)), shape)
    assert written == input_range("input_range", written, shape)
    ends = bounds(written, shape)
    assert bool((ends[0] <= low).all() and (ends[1] >= high).all())
    for end, given_end in zip(ends, (low, high), strict=True):
        np.testing.assert_allclose(end, given_end, rtol=2.0**-23)


DECIMALS = st.one_of(
    st.decimals(-1000, 1000, places=3).map(float), st.floats(-1e300, 1e300), st.just(-0.0)
)


@given(DECIMALS, DECIMALS, st.booleans())
@example(0.0, 0.1, False)
@example(0.7, 99.9, True)
@example(-1e-50, 1e-50, True)
@example(-1e39, 1e39, False)
@settings(deadline=None)
def test_a_range_has_the_nearest_ends_in_single_precision_that_hold_it(
    one: float, other: float, several: bool
) -> None:
    assume(one != other)
    low, high = sorted((one, other))
    given_range = ([low, -1.0], [high, 2.0]) if several else (low, high)
    written = input_range("input_range", given_range, (2,))
    assert written == input_range("input_range", written, (2,))
    least, most = (float(end[0]) for end in bounds(written, (2,)))
    assert least <= low < high <= most
    with np.errstate(over="ignore"):
        single = [float(np.float32(x)) for x in (low, (low / 2 + high / 2), high)]
        finite = [x for x in single if np.isfinite(x)]
        assert all(least <= x <= most for x in finite)
        if np.isfinite(single[0]):
            assert least == np.float32(least)
            assert least == low or float(np.nextafter(np.float32(least), np.float32(np.inf))) > low
        if np.isfinite(single[2]):
            assert most == np.float32(most)
            assert most == high or float(np.nextafter(np.float32(most), np.float32(-np.inf))) < high


DECIMAL_RANGES = [
    (0.0, 0.1),
    (0.7, 0.9),
    (-99.9, 0.3),
    ([0.0, 0.7, -0.9, 5.1], [0.1, 0.9, 0.3, 59.9]),
]


@pytest.mark.parametrize("ends", DECIMAL_RANGES, ids=repr)
@pytest.mark.parametrize("compiler", [compile_model, shared.compile_model], ids=["ckks", "shared"])
def test_data_in_either_precision_may_be_at_the_ends_of_their_range(
    ends: Any, compiler: Any
) -> None:
    torch.manual_seed(0)
    low, high = (np.broadcast_to(np.asarray(end), 4) for end in ends)
    corners = np.stack([low, high, low / 2 + high / 2])
    corners = np.concatenate([corners, corners.astype(np.float32)])
    model = nn.Linear(4, 3)
    # A sample at the ends is inside, too.
    compiled = compiler(model, input_shape=4, input_range=ends, sample=corners.astype(np.float32))
    plan = compiled.plan
    if compiler is compile_model:
        assert accept_plan(plan.to_json(), InputContract((4,), ends, classes=3)) == plan
        owner = MeasurementOwner(plan)
        evaluator = Evaluator(compiled, owner.public_material())
        answers = [owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] for x in corners]
        error = 2.0**plan.worst_error_bits
    else:
        here = session(compiled, len(corners))
        answers = [here.logits(x)[0] for x in corners]
        error = plan.error
    assert np.abs(np.array(answers) - compiled.predict(corners)).max() <= error
    for beyond in (low - 1e-3, high + 1e-3):
        with pytest.raises(OutOfRangeError):
            owner.encrypt(beyond) if compiler is compile_model else here.logits(beyond)


def test_a_plan_whose_ends_are_in_double_precision_is_refused() -> None:
    plan = compile_model(table(), input_shape=4, input_range=(0.0, 0.1), tolerance=0.05).plan
    text = plan.to_json()
    assert "[0.0,0.10000000149011612]" in text
    with pytest.raises(
        PlanRefusedError, match=r"no number of single precision, as in 0\.2\.0; compile"
    ):
        accept_plan(
            text.replace("0.10000000149011612", "0.1"), InputContract((4,), (0.0, 0.1), classes=3)
        )


def test_arrays_that_are_all_alike_are_two_numbers() -> None:
    one = compile_model(table(), input_shape=4, input_range=([-1.0] * 4, np.ones(4))).plan
    other = compile_model(table(), input_shape=4, input_range=(-1.0, 1.0)).plan
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("given_range", "words"),
    [
        (([0, 1, 2], [3, 3, 3]), r"arrays of shape \(3,\) and \(3,\); give ones that broadcast"),
        (([0, 5, 0, 0], 4), r"input_range is \[5, 4\] at feature 1; give finite low < high"),
        (([0, 1, 0, 0], [2, 1, 2, 2]), r"\[1, 1\] at feature 1; .* always the same: leave it out"),
        (([0, np.nan, 0, 0], 4), "at feature 1"),
        ((0, [1, 1, np.inf, 1]), "at feature 2"),
        (([[0], 1], 2), "input_range is"),
        ((["a"] * 4, [1] * 4), "input_range is of <U1; give real numbers"),
    ],
)
def test_what_is_no_range_of_features_is_refused(given_range: object, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        compile_model(table(), input_shape=4, input_range=given_range)  # type: ignore[arg-type]


def test_the_owner_names_the_feature_that_is_outside() -> None:
    plan = compile_model(table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05).plan
    owner = DataOwner(plan)
    x = drawn(1)[0]
    x[1] = 17.0
    with pytest.raises(OutOfRangeError, match=r"has 17 at feature 1, .* \[18, 99\] there; clip"):
        owner.encrypt(x)
    x[3] = np.nan
    with pytest.raises(OutOfRangeError, match=r"feature 1, .*there \(2 features are outside"):
        owner.encrypt(x)


def test_a_sample_outside_its_features_range_is_refused() -> None:
    sample = drawn(5)
    sample[2, 0] = 1.5
    with pytest.raises(ValueError, match="sample has elements outside input_range"):
        compile_model(table(), input_shape=4, input_range=(LOW, HIGH), sample=sample)


def test_a_stranger_s_plan_is_held_to_the_range_of_each_feature() -> None:
    text = compile_model(
        table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05
    ).plan.to_json()
    assert accept_plan(text, InputContract((4,), (LOW, np.array(HIGH)), classes=3))
    other = [1.0, 99.0, 4e6, 0.5001]
    with pytest.raises(PlanRefusedError, match=r"\[-1e\+06, 3e\+06\] at feature 2, this node's"):
        accept_plan(text, InputContract((4,), (LOW, other), classes=3))
    with pytest.raises(PlanRefusedError, match=r"input_range \[0, 1\] at feature 0, .*\[-1, 1\]"):
        accept_plan(text, InputContract((4,), (-1.0, 1.0), classes=3))


@pytest.mark.parametrize(
    "written",
    [
        "[[0.0,18.0,-1e6,0.5],[1.0,17.0,3e6,0.6]]",
        "[[0.0,18.0,-1e6],[1.0,99.0,3e6]]",
        "[[0.0,0.0,0.0,0.0],[1.0,1.0,1.0,1.0]]",
        "[[],[]]",
        "[0.0,[1.0,1.0,1.0,2.0]]",
        '[["0",1.0,1.0,1.0],[2.0,2.0,2.0,3.0]]',
        "[[0,18,-1000000,0],[1,99,3000000,1]]",
    ],
)
def test_a_plan_with_another_range_of_features_is_none(written: str) -> None:
    plan = compile_model(table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05).plan
    text = plan.to_json()
    part = '"input_range":' + text.split('"input_range":')[1].split(',"input_scale_bits"')[0]
    with pytest.raises(ValueError, match="input_range"):
        Plan.from_json(text.replace(part, f'"input_range":{written}'))


def test_a_plan_shows_that_features_have_ranges(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    plan = compile_model(table(), input_shape=4, input_range=(LOW, HIGH), tolerance=0.05).plan
    assert "(4,) in a range for each feature, from -1e+06 to 3e+06" in str(plan)
