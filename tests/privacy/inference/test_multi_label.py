"""Several labels may hold: each logit decides by itself, and no class is taken from the largest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    Answer,
    ClassOnly,
    CompiledModel,
    DataOwner,
    EachLabel,
    Evaluator,
    FloodedLogits,
    InputContract,
    Plan,
    RoundedLogits,
    Square,
    TopClasses,
    accept_plan,
    certify,
    compile_model,
    decide_each,
)
from privacy.inference.errors import PlanRefusedError, ReleaseError
from strategies import answer_encrypted_round

RANGE = (-1.0, 1.0)


def labels_model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), Square(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compile_model(labels_model(), input_shape=5, input_range=RANGE, multi_label=True)


def asked(compiled: CompiledModel, x: np.ndarray, release: Any = None) -> list[Answer]:
    owner = DataOwner(Plan.from_json(compiled.plan.to_json()), release=release)
    evaluator = Evaluator(compiled, owner.public_material())
    return [owner.decrypt(evaluator.evaluate(owner.encrypt(one))) for one in x]


def sets(holding: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in holding)


def decided_inputs(compiled: CompiledModel, threshold: float) -> np.ndarray:
    """Inputs of which no logit is within the predicted error of the threshold."""
    x = np.random.default_rng(0).uniform(*RANGE, (40, 5))
    near = np.abs(compiled.predict(x) - threshold).min(axis=1)
    return x[near > 2.0**compiled.plan.error_bits][:6]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_each_label_is_pytorchs(compiled: CompiledModel, threshold: float) -> None:
    x = decided_inputs(compiled, threshold)
    release = EachLabel(threshold) if threshold else None
    expected = (compiled.predict(x) > threshold).tolist()
    assert {sum(row) for row in expected} - {1}  # several hold, or none
    for answer, row in zip(asked(compiled, x, release), expected, strict=True):
        assert answer.label_sets == (tuple(np.flatnonzero(row).tolist()),)
        assert answer.labels == ()
        assert answer.name_sets is None  # the plan has no names
        assert answer.top is answer.logits is None
        with pytest.raises(ValueError, match="read label_sets"):
            _ = answer.label


def test_a_batch_answers_for_every_image() -> None:
    compiled = compile_model(
        labels_model(), input_shape=5, input_range=RANGE, multi_label=True, batch_size=4
    )
    x = decided_inputs(compiled, 0.0)[:4]
    (answer,) = asked(compiled, x[None])
    assert answer.label_sets == sets(compiled.predict(x) > 0)


def test_logits_are_released_with_their_labels(compiled: CompiledModel) -> None:
    x = decided_inputs(compiled, 0.0)[:1]
    plan = compiled.plan
    decimals = -int(np.ceil((plan.worst_error_bits + 8) * np.log10(2)))
    (rounded,) = asked(compiled, x, RoundedLogits(decimals))
    assert rounded.logits is not None
    assert rounded.label_sets == sets(compiled.predict(x) > 0)
    step = 10.0**-decimals
    assert np.abs(rounded.logits - compiled.predict(x)).max() < step / 2 + 2.0**plan.error_bits
    precise = compile_model(
        nn.Linear(5, 3), input_shape=5, input_range=RANGE, multi_label=True, tolerance=1e-6
    )
    (flooded,) = asked(precise, x, FloodedLogits(statistical_bits=8, queries=1))
    assert flooded.logits is not None
    assert flooded.label_sets == sets(decide_each(flooded.logits))


@pytest.mark.parametrize("policy", [ClassOnly(), TopClasses(1)])
def test_a_class_of_several_labels_is_refused(compiled: CompiledModel, policy: Any) -> None:
    with pytest.raises(ReleaseError, match=r"labels are independent .* use EachLabel\(\)"):
        DataOwner(compiled.plan, release=policy)


def test_labels_of_classes_are_refused() -> None:
    plan = compile_model(labels_model(), input_shape=5, input_range=RANGE).plan
    with pytest.raises(ReleaseError, match=r"of this one's classes one holds: use ClassOnly\(\)"):
        DataOwner(plan, release=EachLabel())


def test_a_threshold_beyond_every_logit_is_refused(compiled: CompiledModel) -> None:
    threshold = 2.0**compiled.plan.logit_bits
    for policy in (EachLabel(threshold), RoundedLogits(0, threshold=-threshold)):
        with pytest.raises(ReleaseError, match="every logit of this model lies between"):
            DataOwner(compiled.plan, release=policy)


def test_one_logit_is_no_multi_label_model() -> None:
    with pytest.raises(ValueError, match="one logit, which decides between two classes: leave"):
        compile_model(nn.Linear(5, 1), input_shape=5, input_range=RANGE, multi_label=True)
    with pytest.raises(TypeError, match="multi_label"):
        compile_model(
            labels_model(),
            input_shape=5,
            input_range=RANGE,
            multi_label=1,  # type: ignore[arg-type]
        )


def test_a_certificate_counts_labels(compiled: CompiledModel) -> None:
    x = decided_inputs(compiled, 0.0)
    right = compiled.predict(x) > 0
    wrong = right.copy()
    wrong[:, 1] = ~wrong[:, 1]
    certificate = certify(compiled, x, wrong)
    assert certificate.plain_accuracy == certificate.encrypted_accuracy == pytest.approx(2 / 3)
    assert certificate.agreement == 1.0
    assert certificate.beyond_worst_prediction == 0
    with pytest.raises(ValueError, match=r"labels of shape \(images, labels\)"):
        certify(compiled, x, right[:, 0])
    with pytest.raises(ValueError, match="other numbers than 0 and 1"):
        certify(compiled, x, right * 2)


def test_the_weakest_label_decides_the_tolerance() -> None:
    """A label whose logits are small is decided as surely as the others."""
    model = labels_model()
    with torch.no_grad():
        model[2].weight[1] *= 0.01
        model[2].bias[1] *= 0.01
    plans = [
        compile_model(model, input_shape=5, input_range=RANGE, multi_label=several).plan
        for several in (True, False)
    ]
    assert plans[0].error_bits < plans[1].error_bits - 2


def test_a_contract_says_whether_several_may_hold(compiled: CompiledModel) -> None:
    text = compiled.plan.to_json()
    accept_plan(text, InputContract((5,), RANGE, classes=3, multi_label=True))
    with pytest.raises(PlanRefusedError, match="multi_label True, this node's data False"):
        accept_plan(text, InputContract((5,), RANGE, classes=3))
    for written in ("1", "null", '"yes"'):
        with pytest.raises(ValueError, match="multi_label"):
            Plan.from_json(text.replace('"multi_label":true', f'"multi_label":{written}'))
    assert "3, each by itself: it holds above the threshold" in str(compiled.plan)


def test_a_round_that_counts_classes_takes_no_labels(tmp_path: Path) -> None:
    contract = InputContract((5,), RANGE, classes=3, multi_label=True)
    with pytest.raises(ValueError, match="an encrypted round counts right classes"):
        answer_encrypted_round(
            None,  # type: ignore[arg-type]
            data=lambda: ([], []),
            contract=contract,
            folder=tmp_path,
        )
