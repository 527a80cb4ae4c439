"""The browser's release policies let out what Python's let out, and refuse what those refuse."""

import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.inference import ClassOnly, EachLabel, FloodedLogits, RoundedLogits, TopClasses
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
                return `${error.name}: ${error.message}`;
            }
            return release(policy, logits, plan, 0);
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


REFUSED: list[tuple[Any, dict[str, Any], Any]] = [
    (TopClasses(4), {"kind": "top", "count": 4}, PLAN),
    (RoundedLogits(1), {"kind": "rounded", "decimals": 1}, PLAN),
    (ClassOnly(0.5), {"kind": "class", "threshold": 0.5}, PLAN),
    (EachLabel(), {"kind": "labels"}, PLAN),
    (ClassOnly(), {"kind": "class"}, plan_of(LABELS)),
    (EachLabel(32.0), {"kind": "labels", "threshold": 32}, plan_of(LABELS)),
    (FloodedLogits(20, 10), {"kind": "flooded", "statisticalBits": 20, "queries": 10}, PLAN),
]
SHAPES: list[dict[str, Any]] = [{"kind": "everything"}, {"kind": "rounded", "decimals": 0.5}] + [
    {"kind": "flooded", "statisticalBits": bits, "queries": queries}
    for bits, queries in ((0, 1), (1, 0), (1.5, 1), (1001, 1))
]


def test_what_python_refuses_is_refused_in_its_words(modules: Any) -> None:
    for ours, theirs, plan in REFUSED:
        with pytest.raises(ReleaseError) as refused:
            ours.check(plan)
        message = released(modules, theirs, plan, LOGITS[:, : plan.logits])
        assert message.startswith("ReleaseError: ")
        if theirs["kind"] in ("rounded", "flooded"):
            # Up to a figure, which the two languages write otherwise.
            words = re.split("tolerance of about |takes noise of ", str(refused.value))[0]
            assert message.removeprefix("ReleaseError: ").startswith(words)
    for theirs in SHAPES:
        assert released(modules, theirs, PLAN, LOGITS).startswith("ReleaseError: ")


def test_flooded_logits_have_pythons_noise_and_end_with_the_queries(modules: Any) -> None:
    ours, theirs = FloodedLogits(4, 3), {"kind": "flooded", "statisticalBits": 4, "queries": 3}
    ours.check(PLAN)
    count = 4_000
    exact = np.tile(LOGITS[:1], (count, 1))
    answer = released(modules, theirs, PLAN, exact)
    noise = (np.array(answer["logits"]) - exact) / ours.noise(PLAN)
    # False alarms: 1e-6 each.
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-6
    assert stats.kstest(np.square(noise).ravel(), "chi2", args=(1,)).pvalue > 1e-6
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(count)
    assert answer["labels"] == np.argmax(answer["logits"], axis=1).tolist()
    last = modules.evaluate(
        """async ([policy, logits, text]) => {
            const { release } = await import("/browser/owner/release.js");
            try {
                return release(policy, logits, JSON.parse(text), 3);
            } catch (error) {
                return error.message;
            }
        }""",
        [theirs, LOGITS.tolist(), PLAN.to_json()],
    )
    with pytest.raises(ReleaseError) as refused:
        ours.release(LOGITS, PLAN, 3)
    assert last == str(refused.value)
