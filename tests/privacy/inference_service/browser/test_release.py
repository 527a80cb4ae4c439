"""The browser's release policies let out what Python's let out, and refuse what those refuse."""

from typing import Any

import numpy as np
import pytest

from privacy.inference import ClassOnly, EachLabel, RoundedLogits, TopClasses
from privacy.inference.errors import ReleaseError
from tools import wire_vectors

LOGITS = np.concatenate(
    [np.random.default_rng(0).normal(0, 20, (40, 3)), [[0.5, 1.5, 2.5], [1.0, 1.0, 1.0]]]
)
PLAN = wire_vectors.plans()["coefficients"]
LABELS = dict(PLAN.__dict__, multi_label=True, class_names=())
ONE = dict(PLAN.__dict__, logits=1, answers=((7,),), class_names=())


def plan_of(fields: dict[str, Any]) -> Any:
    return type(PLAN)(**fields)


CASES = [
    ("class", ClassOnly(), {"kind": "class"}, PLAN),
    ("top", TopClasses(2), {"kind": "top", "count": 2}, PLAN),
    ("whole numbers", RoundedLogits(0), {"kind": "rounded", "decimals": 0}, PLAN),
    ("tens", RoundedLogits(-1), {"kind": "rounded", "decimals": -1}, PLAN),
    ("labels", EachLabel(1.25), {"kind": "labels", "threshold": 1.25}, plan_of(LABELS)),
    ("rounded labels", RoundedLogits(-1), {"kind": "rounded", "decimals": -1}, plan_of(LABELS)),
    ("one logit", ClassOnly(0.5), {"kind": "class", "threshold": 0.5}, plan_of(ONE)),
    (
        "one logit, top",
        TopClasses(2, 0.5),
        {"kind": "top", "count": 2, "threshold": 0.5},
        plan_of(ONE),
    ),
]


def released(modules: Any, policy: dict[str, Any], plan: Any, logits: np.ndarray) -> Any:
    return modules.evaluate(
        """async ([policy, logits, text, classes]) => {
            const { checkPolicy, release } = await import("/browser/owner/release.js");
            const plan = { ...JSON.parse(text), classes };
            try {
                checkPolicy(policy, plan);
            } catch (error) {
                return error.name;
            }
            return release(policy, logits, plan);
        }""",
        [policy, logits.tolist(), plan.to_json(), plan.classes],
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "plan"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_answers_are_pythons(modules: Any, ours: Any, theirs: dict[str, Any], plan: Any) -> None:
    logits = LOGITS[:, : plan.logits]
    ours.check(plan)
    expected = ours.release(logits, plan, 0)
    answer = released(modules, theirs, plan, logits)
    assert tuple(answer["labels"]) == expected.labels
    top, sets = answer["top"], answer["labelSets"]
    assert (top and tuple(map(tuple, top))) == expected.top
    assert (sets and tuple(map(tuple, sets))) == expected.label_sets
    if expected.logits is None:
        assert answer["logits"] is None
    else:
        assert np.array_equal(answer["logits"], expected.logits)
    if plan.class_names and answer["names"]:
        assert answer["names"] == [plan.class_names[label] for label in expected.labels]


@pytest.mark.parametrize(
    ("ours", "theirs", "plan"),
    [
        (TopClasses(4), {"kind": "top", "count": 4}, PLAN),
        (RoundedLogits(1), {"kind": "rounded", "decimals": 1}, PLAN),
        (ClassOnly(0.5), {"kind": "class", "threshold": 0.5}, PLAN),
        (EachLabel(), {"kind": "labels"}, PLAN),
        (ClassOnly(), {"kind": "class"}, plan_of(LABELS)),
        (EachLabel(32.0), {"kind": "labels", "threshold": 32}, plan_of(LABELS)),
        (None, {"kind": "everything"}, PLAN),
    ],
)
def test_what_python_refuses_is_refused(
    modules: Any, ours: Any, theirs: dict[str, Any], plan: Any
) -> None:
    if ours is not None:
        with pytest.raises(ReleaseError):
            ours.check(plan)
    assert released(modules, theirs, plan, LOGITS[:, : plan.logits]) == "ReleaseError"
