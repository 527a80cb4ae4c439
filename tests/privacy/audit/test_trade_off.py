"""Guesses under a whole privacy curve, against a linear program, the simplest cases and runs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog

from privacy.accounting import Full, GaussianRelease, epsilon
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.audit import (
    PrivacyCurve,
    audit,
    curve_p_value,
    epsilon_lower_bound,
    judge,
    mu_lower_bound,
)
from privacy.mechanisms import SystemRandomness, add_gaussian


def likeliest(curve: PrivacyCurve, m: int, r: int, v: int) -> float:
    """The largest P[C ≥ v] of all laws of C that the claim allows, by a linear program."""
    counts = np.arange(r + 1)
    rows, limits = [], []
    for i in range(r):
        right = np.where(counts >= i + 1, counts, 0) / m
        wrong = np.where(counts >= i, r - counts, 0) / m
        for eps, delta in curve.points:
            rows += [right - math.exp(eps) * wrong, right - math.exp(-eps) * wrong]
            limits += [delta, 1 - math.exp(-eps) * (1 - delta)]
    answer = linprog(
        -(counts >= v).astype(float),
        A_ub=np.array(rows), b_ub=limits, A_eq=np.ones((1, r + 1)), b_eq=[1.0],
    )  # fmt: skip
    assert answer.status == 0
    return -float(answer.fun)


@given(st.data())
def test_no_law_that_the_claim_allows_is_likelier(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 12))
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(1, r))
    point = st.tuples(st.floats(0, 3), st.sampled_from([0.0, 1e-3, 0.1, 0.4]))
    curve = PrivacyCurve(tuple(data.draw(st.lists(point, min_size=1, max_size=3))))
    computed = curve_p_value(curve, canaries=m, guesses=r, correct=v)
    exact = likeliest(curve, m, r, v)
    assert exact - 1e-7 <= computed <= exact * (1 + 1e-4) + 1e-7


@pytest.mark.parametrize(
    ("true_positive_rate", "eps", "delta", "least"),
    [
        (0.5, 0.0, 0.0, 0.5),
        (0.5, math.log(2), 0.0, 0.25),
        (0.9, math.log(2), 0.0, 0.8),  # the other way round: a tenth is missed, at most a fifth
        (0.3, math.log(2), 0.1, 0.1),
        (0.05, 1.0, 0.1, 0.0),
        (0.9, math.inf, 0.0, 0.0),
    ],
)
def test_the_least_false_alarm_rate(
    true_positive_rate: float, eps: float, delta: float, least: float
) -> None:
    curve = PrivacyCurve(((eps, delta),))
    assert curve.least_false_alarm_rate(np.array(true_positive_rate)) == pytest.approx(least)
    both = PrivacyCurve(((eps, delta), (math.inf, 0.0)))
    assert both.least_false_alarm_rate(np.array([true_positive_rate])) == pytest.approx([least])


def test_a_curve_says_more_than_one_of_its_points() -> None:
    """Of 200 guesses about 400 canaries: what the Gaussian's own curve refutes, ε at δ does not."""
    counts = {"canaries": 400, "guesses": 200, "correct": 195}
    curve = PrivacyCurve.of_events([GaussianRelease(1.0, Full())], delta=1e-5)
    point = PrivacyCurve((curve.points[0],))
    assert curve_p_value(curve, **counts) < 0.02
    assert curve_p_value(point, **counts) > 0.5
    shown = gaussian_epsilon(1 / mu_lower_bound(**counts), 1e-5)
    assert shown > 1.5 * epsilon_lower_bound(**counts, delta=1e-5)


def test_the_bound_on_mu_is_where_the_gaussian_curve_begins_to_be_refuted() -> None:
    counts = {"canaries": 120, "guesses": 60, "correct": 52}
    mu = mu_lower_bound(**counts)
    for factor, refuted in ((0.97, True), (1.03, False)):
        curve = PrivacyCurve.of_events([GaussianRelease(1 / (mu * factor), Full())], delta=1e-9)
        assert (curve_p_value(curve, **counts) < 0.05) == refuted


def test_what_refutes_nothing() -> None:
    assert mu_lower_bound(canaries=10, guesses=0, correct=0) == 0.0
    assert mu_lower_bound(canaries=100, guesses=50, correct=25) == 0.0
    nothing = PrivacyCurve(((math.inf, 1e-5),))
    everything = {"canaries": 400, "guesses": 400, "correct": 400}
    assert curve_p_value(nothing, **everything) == 1.0
    assert curve_p_value(PrivacyCurve(((0.0, 0.0),)), **everything) == pytest.approx(2.0**-400)


def test_gaussian_noise_is_bounded_as_often_as_the_confidence_says() -> None:
    """Its own curve, exactly. 400 audits; a false alarm in 10⁷ of this test."""
    z, source = 1.2, SystemRandomness()
    event = GaussianRelease(z, Full())
    curve = PrivacyCurve.of_events([event], delta=1e-5)
    claimed = epsilon([event], delta=1e-5)

    def run(included: np.ndarray) -> dict[str, np.ndarray]:
        sums = included.astype(np.float64)
        add_gaussian(sums, sigma=z, randomness=source)
        return {"sums": sums}

    results = [
        audit(run, canaries=60, claimed_epsilon=claimed, delta=1e-5, curve=lambda: curve)
        for _ in range(400)
    ]
    often = stats.binom.isf(1e-7, 400, 0.05)
    assert sum(not result.passed for result in results) <= often
    assert sum(result.gaussian_epsilon_lower > claimed for result in results) <= often
    assert np.median([result.gaussian_epsilon_lower for result in results]) > claimed / 10


def test_findings_are_of_the_curve_where_there_is_one() -> None:
    included = np.arange(100) % 2 == 0
    scores = {"a": included.astype(float)}
    usual: dict[str, Any] = {"claimed_epsilon": 9.0, "delta": 1e-5, "guesses": 100}
    assert judge(scores, included, **usual).passed
    curve = PrivacyCurve.of_events([GaussianRelease(2.0, Full())], delta=1e-5)
    result = judge(scores, included, **usual, curve=curve)
    (finding,) = result.findings
    assert finding.startswith("a: 100 of 100 guesses are right, which has a probability of ")
    assert finding.endswith("at most under the claimed ε = 9.000")
    assert result.as_dict()["attacks"][0]["curve_p_value"] < 2e-5  # δ: all may be lost
    assert result.gaussian_epsilon_lower > result.epsilon_lower > 3
    exact = judge(scores, included, **(usual | {"delta": 0.0}))
    assert exact.gaussian_epsilon_lower == math.inf
    assert exact.as_dict()["gaussian_epsilon_lower"] is None


def test_an_audit_that_could_contradict_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it could is a matter of the claim and the numbers, not of the guesses."""
    event = GaussianRelease(0.5, Full())
    curve = PrivacyCurve.of_events([event], delta=1e-5)
    claimed = epsilon([event], delta=1e-5)
    for canaries, blind in ((100, True), (2000, False)):
        included = np.arange(canaries) % 2 == 0
        for scores in (included.astype(float), np.zeros(canaries)):
            usual: dict[str, Any] = {"claimed_epsilon": claimed, "delta": 1e-5, "curve": curve}
            result = judge({"a": scores}, included, **usual)
            assert result.blind == blind
            assert ("Give more canaries or more guesses" in caplog.text) == blind
            caplog.clear()
    infinite: dict[str, Any] = {"claimed_epsilon": math.inf, "delta": 0.0}
    assert judge({"a": scores}, included, **infinite).blind
    assert "more canaries" not in caplog.text
    assert not judge({"a": scores}, included, curve=curve, **infinite).blind


@pytest.mark.parametrize("points", [(), ((-1.0, 0.1),), ((1.0, 1.1),), ((math.nan, 0.0),)])
def test_a_claim_that_is_none_is_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="points"):
        PrivacyCurve(points)
