"""Names of classes and features travel with the plan, and answers bear them; sets of labels."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from torch import nn

from privacy.inference import (
    CompiledModel,
    DataOwner,
    EachLabel,
    Evaluator,
    InputContract,
    Plan,
    ReleasePolicy,
    TopClasses,
    accept_plan,
    compile_model,
    from_sklearn,
)
from privacy.inference.errors import PlanRefusedError, ReleaseError

X = np.random.default_rng(0).uniform(-1, 1, (60, 6))
SCORES = X @ np.random.default_rng(1).normal(size=(6, 3))
NAMES = np.array(["ash", "birch", "cedar"])[SCORES.argmax(axis=1)]


def compiled(model: nn.Module, **options: Any) -> CompiledModel:
    return compile_model(model, input_shape=6, input_range=(-1.0, 1.0), **options)


def answers(ready: CompiledModel, inputs: np.ndarray, policy: ReleasePolicy | None = None) -> Any:
    """As a data owner elsewhere gets them, who has the plan's text alone."""
    owner = DataOwner(Plan.from_json(ready.plan.to_json()), release=policy)
    evaluator = Evaluator(ready, owner.public_material())
    return [owner.decrypt(evaluator.evaluate(owner.encrypt(row))) for row in inputs]


@pytest.mark.parametrize("classes", [2, 3])
def test_an_answer_bears_the_estimators_own_label(classes: int) -> None:
    chosen = np.isin(NAMES, np.unique(NAMES)[:classes])
    estimator = LogisticRegression(C=100).fit(X[chosen], NAMES[chosen])
    model = from_sklearn(estimator)
    ready = compiled(model, class_names=model.classes)
    assert ready.plan.class_names == tuple(np.unique(NAMES)[:classes])
    margins = np.sort(estimator.predict_proba(X), axis=1)
    rows = X[margins[:, -1] - margins[:, -2] > 0.5][:6]
    assert [a.name for a in answers(ready, rows)] == estimator.predict(rows).tolist()
    (answer,) = answers(ready, rows[:1], TopClasses(2))
    assert answer.names == (ready.plan.class_names[answer.label],)


def test_a_batch_of_answers_has_a_name_each() -> None:
    ready = compiled(nn.Linear(6, 3).double(), class_names=(7, 8, 9), batch_size=4)
    owner = DataOwner(ready.plan)
    evaluator = Evaluator(ready, owner.public_material())
    answer = owner.decrypt(evaluator.evaluate(owner.encrypt(X[:4])))
    assert answer.names == tuple(str(7 + label) for label in answer.labels)
    with pytest.raises(ValueError, match="4 images"):
        _ = answer.name


def test_without_names_there_are_none() -> None:
    ready = compiled(nn.Linear(6, 3))
    (answer,) = answers(ready, X[:1])
    assert answer.names is None
    with pytest.raises(ValueError, match=r"names no classes.*class_names"):
        _ = answer.name


def test_names_are_shown_and_change_the_plans_digest() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    bare, named = compiled(model).plan, compiled(model, class_names=("a", "b", "c")).plan
    assert "a, b, c" in str(named)
    assert "class names" not in str(bare)
    assert bare.digest != named.digest


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        ("abc", TypeError, "a sequence of names"),
        (3, TypeError, "a sequence of names"),
        ((1.5, 2, 3), TypeError, "class_names holds 1.5"),
        (("a", "b"), ValueError, "2 names; the model has 3 classes"),
        (("a", "b", "a"), ValueError, "different names"),
        (("a", "b", ""), ValueError, "different names"),
        (("a", "b", "c\n"), ValueError, "printable"),
        (("a", "b", "c" * 101), ValueError, "at most 100 characters"),
    ],
)
def test_other_names_are_refused(names: Any, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        compiled(nn.Linear(6, 3), class_names=names)


@pytest.mark.parametrize(
    "names", [["a"], ["a", "b", "\x1b[2J"], ["a", "b", 3], "abc", ["a", "a", "b"], ["a"] * 10**5]
)
def test_a_strangers_names_are_checked(names: Any) -> None:
    contract = InputContract((6,), (-1.0, 1.0), classes=3)
    ready = compiled(nn.Linear(6, 3), class_names=("a", "b", "c"))
    content = json.loads(ready.plan.to_json())
    assert accept_plan(json.dumps(content), contract).class_names == ("a", "b", "c")
    with pytest.raises(PlanRefusedError, match="class_names"):
        accept_plan(json.dumps(content | {"class_names": names}), contract)


FEATURES = ("age", "sex = female", "weight", "\u00e9t\u00e9", "a", "b")


def test_features_have_names_and_a_plan_without_them_reads_as_before() -> None:
    """Its text has no such field, as of earlier releases: the digest stays as it was."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    bare, named = compiled(model).plan, compiled(model, feature_names=FEATURES).plan
    assert "feature_names" not in bare.to_json()
    assert Plan.from_json(bare.to_json()) == bare
    assert Plan.from_json(named.to_json()).feature_names == FEATURES
    assert "age, sex = female" in str(named)
    assert bare.digest != named.digest
    with pytest.raises(ValueError, match="feature_names is empty; leave it out"):
        Plan.from_json(json.dumps(json.loads(bare.to_json()) | {"feature_names": []}))


@pytest.mark.parametrize("changed", [FEATURES[::-1], ("Age", *FEATURES[1:])], ids=["order", "name"])
def test_a_plan_for_features_in_another_order_is_refused(changed: tuple[str, ...]) -> None:
    """Of plan and owner's contract, either may have none."""
    bare = compiled(nn.Linear(6, 3)).plan.to_json()
    named = compiled(nn.Linear(6, 3), feature_names=FEATURES).plan.to_json()
    own, other, none = (
        InputContract((6,), (-1.0, 1.0), 3, feature_names=names)
        for names in (FEATURES, changed, ())
    )
    for text, contract in ((named, own), (named, none), (bare, own)):
        accept_plan(text, contract)
    with pytest.raises(PlanRefusedError, match="takes 'age' where this node's data have"):
        accept_plan(named, other)


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        (("a", "b"), ValueError, "feature_names has 2 names; an input has 6 elements"),
        (("a",) * 6, ValueError, "different names"),
        ("abcdef", TypeError, "a sequence of names"),
    ],
)
def test_other_names_of_features_are_refused(names: Any, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        compiled(nn.Linear(6, 3), feature_names=names)


def test_a_multi_label_answer_is_the_estimators_set_of_labels() -> None:
    several = (SCORES > 0.2).astype(int)
    model = from_sklearn(RidgeClassifier().fit(X, several))
    with torch.no_grad():
        logits = model(torch.from_numpy(X)).numpy()
    rows = X[abs(logits).min(axis=1) > 0.1 * abs(logits).max()][:8]
    with torch.no_grad():
        logits = model(torch.from_numpy(rows)).numpy()
    ready = compiled(model, class_names=("high", "wide", "old"), multi_label=True)
    positive = np.sort(logits[logits > 0])
    widest = np.diff(positive).argmax()  # no logit is near the second threshold
    between = float(positive[widest : widest + 2].mean())
    assert 0 < between < 2.0**ready.plan.logit_bits
    for threshold in (0.0, between):
        sets = [
            answer.label_sets[0] for answer in answers(ready, rows, EachLabel(threshold=threshold))
        ]
        assert sets == [tuple(np.flatnonzero(row > threshold).tolist()) for row in logits]
    assert len({len(each) for each in sets}) > 1
    (answer,) = answers(ready, rows[:1], EachLabel())
    assert (answer.labels, answer.top, answer.logits, answer.names) == ((), None, None, None)
    names = ("high", "wide", "old")
    assert answer.name_sets == (tuple(names[k] for k in answer.label_sets[0]),)
    with pytest.raises(ValueError, match="read label_sets"):
        _ = answer.label


def test_a_batch_of_sets() -> None:
    ready = compiled(nn.Linear(6, 3).double(), batch_size=4, multi_label=True)
    owner = DataOwner(ready.plan)
    evaluator = Evaluator(ready, owner.public_material())
    answer = owner.decrypt(evaluator.evaluate(owner.encrypt(X[:4])))
    assert len(answer.label_sets) == 4


def test_a_threshold_beyond_every_logit_is_refused() -> None:
    plan = compiled(nn.Linear(6, 3), multi_label=True).plan
    with pytest.raises(ReleaseError, match="threshold is"):
        DataOwner(plan, release=EachLabel(threshold=2.0**plan.logit_bits))
