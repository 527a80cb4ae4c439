"""One logit decides between two classes, at a threshold, wherever an answer is decided."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import (
    ClassOnly,
    CompiledModel,
    DataOwner,
    Evaluator,
    FloodedLogits,
    InputContract,
    Plan,
    ReleasePolicy,
    RoundedLogits,
    Square,
    TopClasses,
    accept_plan,
    certify,
    compile_model,
    decide,
)
from privacy.inference.errors import OutOfRangeError, ReleaseError
from strategies.encrypted_round.errors import RoundError
from strategies.encrypted_round.node import count_right_answers, make_questions, private_folder

INPUTS = 30
X = np.random.default_rng(0).uniform(-1, 1, (24, INPUTS))


def binary(*, batch_size: int = 1) -> tuple[nn.Sequential, CompiledModel]:
    """Logistic regression as people write it: one logit, trained with BCEWithLogitsLoss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 1))
    model[0].weight.data *= 3
    return model, compile_model(
        model, input_shape=(INPUTS,), input_range=(-1.0, 1.0), batch_size=batch_size
    )


def torch_logits(model: nn.Sequential) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(X).float()).double().numpy()[:, 0]


def labels_of(compiled: CompiledModel, policy: ReleasePolicy | None) -> list[int]:
    owner = DataOwner(compiled.plan, release=policy)
    evaluator = Evaluator(compiled, owner.public_material())
    size = compiled.plan.batch_size
    parts = X if size == 1 else [X[start : start + size] for start in range(0, len(X), size)]
    return [
        label
        for part in parts
        for label in owner.decrypt(evaluator.evaluate(owner.encrypt(part))).labels
    ]


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("threshold", [0.0, 0.25, -0.25])
def test_the_encrypted_class_is_the_side_of_the_threshold(
    batch_size: int, threshold: float
) -> None:
    model, compiled = binary(batch_size=batch_size)
    right = (torch_logits(model) > threshold).astype(int).tolist()
    assert 0 < sum(right) < len(right)
    assert labels_of(compiled, ClassOnly(threshold)) == right
    if threshold == 0.0:
        assert labels_of(compiled, None) == right


def test_a_deeper_model_with_one_logit_is_decided_alike() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(INPUTS, 8), Square(), nn.Linear(8, 1))
    model[2].bias.data -= float(np.median(torch_logits(model)))
    compiled = compile_model(model, input_shape=(INPUTS,), input_range=(-1.0, 1.0))
    right = (torch_logits(model) > 0).astype(int).tolist()
    assert 0 < sum(right) < len(right)
    assert labels_of(compiled, None) == right


def test_every_policy_decides_alike() -> None:
    model, compiled = binary()
    logits = torch_logits(model)
    owner, value = DataOwner(compiled.plan), float(logits[3])
    assert owner.plan.classes == 2
    for threshold in (0.0, value - 0.1, value + 0.1):
        right = int(value > threshold)
        for policy in (
            ClassOnly(threshold),
            TopClasses(2, threshold=threshold),
            RoundedLogits(1, threshold=threshold),
            FloodedLogits(statistical_bits=1, queries=1, threshold=threshold),
        ):
            owner = DataOwner(compiled.plan, release=policy)
            evaluator = Evaluator(compiled, owner.public_material())
            answer = owner.decrypt(evaluator.evaluate(owner.encrypt(X[3])))
            if isinstance(policy, FloodedLogits):  # the class is of the noised logit
                assert answer.logits is not None
                right = int(answer.logits[0, 0] > threshold)
            assert answer.label == right, policy
            if isinstance(policy, TopClasses):
                assert answer.top == ((right, 1 - right),)
            # No policy that hides the logits lets one out with the class.
            assert (answer.logits is None) == isinstance(policy, ClassOnly | TopClasses)


def test_a_threshold_that_decides_nothing_is_refused() -> None:
    _, one = binary()
    ten = compile_model(
        nn.Sequential(nn.Linear(INPUTS, 10)), input_shape=(INPUTS,), input_range=(-1.0, 1.0)
    )
    beyond = 2.0**one.plan.logit_bits
    kinds = (
        ClassOnly,
        partial(TopClasses, 2),
        partial(RoundedLogits, 1),
        partial(FloodedLogits, 1, 1),
    )
    for kind in kinds:
        with pytest.raises(ReleaseError, match="the largest decides"):
            DataOwner(ten.plan, release=kind(threshold=0.5))
        with pytest.raises(ReleaseError, match="never be answered"):
            DataOwner(one.plan, release=kind(threshold=beyond))
        for wrong in (math.nan, math.inf, None, "0.4", True, [0.4], 10**400):
            with pytest.raises((TypeError, ValueError), match="threshold is"):
                kind(threshold=wrong)
    with pytest.raises(ValueError, match="leave it out"):
        compile_model(
            nn.Sequential(nn.Linear(INPUTS, 1), nn.Sigmoid()),
            input_shape=(INPUTS,),
            input_range=(-1.0, 1.0),
        )
    with pytest.raises(ReleaseError, match="2 classes"):
        DataOwner(one.plan, release=TopClasses(3))


def test_a_plan_bounds_thresholds_in_whole_bits_and_a_certificate_shows_the_rest() -> None:
    positive = nn.Sequential(nn.Linear(4, 1))
    with torch.no_grad():
        positive[0].weight[:], positive[0].bias[:] = 0.1, 5.0
    compiled = compile_model(positive, input_shape=(4,), input_range=(0.0, 1.0))
    limit = 2.0**compiled.plan.logit_bits
    for beyond in (limit, -limit, 10 * limit):
        with pytest.raises(ReleaseError, match="never be answered"):
            ClassOnly(beyond).check(compiled.plan)
    images, labels = np.array([[0.0] * 4, [1.0] * 4]), [0, 1]
    for never in (-limit / 2, limit - 0.1):  # within the bound, and beyond every logit
        ClassOnly(never).check(compiled.plan)
        assert certify(compiled, images, labels, threshold=never).encrypted_accuracy == 0.5
    assert certify(compiled, images, labels, threshold=5.2).encrypted_accuracy == 1.0


def test_a_certificate_decides_as_the_owner_does() -> None:
    model, compiled = binary()
    for threshold in (0.0, 0.25):
        right = (torch_logits(model) > threshold).astype(int)
        made = certify(compiled, X, right, threshold=threshold)
        assert (made.plain_accuracy, made.encrypted_accuracy, made.agreement) == (1.0, 1.0, 1.0)
        flipped = certify(compiled, X, 1 - right, threshold=threshold)
        assert (flipped.plain_accuracy, flipped.encrypted_accuracy) == (0.0, 0.0)
    with pytest.raises(ValueError, match="between 2 classes"):
        certify(compiled, X, 2 * right - 1)  # -1 and 1
    # Both sides would say the same class, whatever the encryption does.
    with pytest.raises(ValueError, match=r"threshold is 99; .* never be answered"):
        certify(compiled, X, right, threshold=99.0)
    for wrong in (None, "0.4", math.nan):
        with pytest.raises((TypeError, ValueError), match="threshold is"):
            certify(compiled, X, right, threshold=wrong)
        with pytest.raises((TypeError, ValueError), match="threshold is"):
            decide(X[:, :1], threshold=wrong)


def test_a_plan_says_that_one_logit_decides_and_travels() -> None:
    _, compiled = binary()
    plan = Plan.from_json(compiled.plan.to_json())
    assert plan == compiled.plan
    assert (plan.logits, plan.classes) == (1, 2)
    assert "decided by one logit" in str(plan)
    # Without being asked to, the planner is as precise as for the same model with two logits.
    assert 2.0**plan.error_bits < 0.05
    assert accept_plan(plan.to_json(), InputContract((INPUTS,), (-1.0, 1.0), classes=2)) == plan
    with pytest.raises(ValueError, match="a single logit decides between 2"):
        InputContract((INPUTS,), (-1.0, 1.0), classes=1)


def test_a_node_counts_what_is_right_at_its_threshold(tmp_path: Path) -> None:
    model, compiled = binary()
    folder = private_folder(tmp_path / "node")
    for threshold in (0.0, 0.25):
        labels = (torch_logits(model) > threshold).astype(int)
        labels[:5] = 1 - labels[:5]
        asked = make_questions(compiled.plan, X, labels, images=len(X), folder=folder)
        evaluator = Evaluator(compiled, asked.material)
        answers = [evaluator.evaluate(query) for query in asked.queries]
        found = count_right_answers(answers, folder=folder, threshold=threshold)
        assert found == (len(X) - 5, len(X))
    for wrong in (labels[:, None], 2 * labels - 1, labels.astype(str)):
        with pytest.raises(RoundError, match="not one class an image"):
            make_questions(compiled.plan, X, wrong, images=3, folder=folder)


@settings(deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-1e6, 1e6), min_size=width, max_size=width), min_size=1, max_size=8
        )
    ),
    st.floats(-1e6, 1e6),
)
def test_decide_is_a_side_for_one_logit_and_the_largest_for_several(
    rows: list[list[float]], threshold: float
) -> None:
    logits = np.array(rows)
    if logits.shape[1] == 1:
        right = [int(value > threshold) for (value,) in rows]
        assert decide(logits, threshold=threshold).tolist() == right
    else:
        assert decide(logits).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (2, 3, 4)])
def test_decide_names_a_shape_that_holds_no_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="logits has shape"):
        decide(np.zeros(shape))


def test_a_step_that_is_too_small_has_figures_that_suffice() -> None:
    model, compiled = binary()
    with pytest.raises(ReleaseError) as refusal:
        DataOwner(compiled.plan, release=RoundedLogits(6))
    words = str(refusal.value)
    decimals = int(re.findall(r"decimals=(-?\d+)", words)[0])
    DataOwner(compiled.plan, release=RoundedLogits(decimals))
    with pytest.raises(ReleaseError):
        DataOwner(compiled.plan, release=RoundedLogits(decimals + 1))
    with pytest.raises(ReleaseError) as refusal:
        DataOwner(compiled.plan, release=RoundedLogits(decimals + 2))
    tolerance = float(re.findall(r"a tolerance of about (\S+),", str(refusal.value))[0])
    plan = compile_model(
        model, input_shape=INPUTS, input_range=(-1.0, 1.0), tolerance=tolerance
    ).plan
    DataOwner(plan, release=RoundedLogits(decimals + 2))


def test_an_input_of_another_shape_or_without_numbers_has_a_remedy() -> None:
    owner = DataOwner(binary(batch_size=3)[1].plan)
    with pytest.raises(ValueError, match=r"shape \(30,\); give \(images, 30\), 1 to 3 images"):
        owner.encrypt(X[0])
    broken = X[:2].copy()
    broken[1, 4] = np.nan
    with pytest.raises(OutOfRangeError, match="NaN at feature 4, the plan was proved for numbers"):
        owner.encrypt(broken)
