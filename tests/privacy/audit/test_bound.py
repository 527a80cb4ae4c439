"""The bound of Steinke, Nasr and Jagielski 2023, against published and exact values."""

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import Adjacency, Full, GaussianRelease, Ledger, read_ledger
from privacy.audit import (
    audit,
    epsilon_lower_bound,
    independent_cohorts_p_value,
    judge,
    p_value,
    poisson_cohort_p_value,
)
from privacy.audit.__main__ import main
from privacy.audit.experiment import count_correct
from privacy.mechanisms import SystemRandomness


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        (1000, 100, 75, 1e-4, 0.673),  # their Appendix D
        (100_000, 1510, 1439, 1e-5, 2.675),  # their Section 7; printed cut, not rounded
    ],
)
def test_published_bounds(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    computed = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert published - 5e-4 < computed < published + 1e-3


def test_a_hundred_perfect_guesses_show_three_and_a_half() -> None:
    computed = epsilon_lower_bound(canaries=100, guesses=100, correct=100, delta=0)
    rate = 0.05 ** (1 / 100)
    assert computed == pytest.approx(math.log(rate / (1 - rate)), abs=1e-9)


def exact(m: int, r: int, v: int, odds: int, delta: Fraction) -> Fraction:
    """Theorem 5.2 in whole numbers, for e^ε = ``odds``, term by term as it is written."""
    rate = Fraction(odds, odds + 1)

    def law(k: int) -> Fraction:
        return math.comb(r, k) * rate**k * (1 - rate) ** (r - k)

    tail = sum((law(k) for k in range(v, r + 1)), Fraction(0))
    steepest = max(
        sum((law(k) for k in range(max(0, v - i), v)), Fraction(0)) / i for i in range(1, m + 1)
    )
    return min(Fraction(1), tail + 2 * m * delta * steepest)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_p_value_is_that_of_the_theorem(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 40))
    r = data.draw(st.integers(1, m))
    v = data.draw(st.integers(0, r))
    odds = data.draw(st.integers(1, 9))
    delta = data.draw(st.sampled_from([Fraction(0), Fraction(1, 10**5), Fraction(1, 100)]))
    computed = p_value(canaries=m, guesses=r, correct=v, epsilon=math.log(odds), delta=float(delta))
    assert computed == pytest.approx(float(exact(m, r, v, odds, delta)), rel=1e-9, abs=1e-300)


def test_the_bound_grows_with_what_is_right_and_shrinks_with_delta_and_confidence() -> None:
    usual = {"canaries": 200, "guesses": 100, "correct": 90, "delta": 1e-4}
    base = epsilon_lower_bound(**usual)
    assert epsilon_lower_bound(**(usual | {"correct": 95})) > base
    assert epsilon_lower_bound(**(usual | {"delta": 1e-3})) < base
    assert epsilon_lower_bound(**usual, confidence=0.99) < base
    assert epsilon_lower_bound(**(usual | {"correct": 50})) == 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"canaries": 0}, "canaries"),
        ({"guesses": 11}, "guesses"),
        ({"correct": 6}, "correct"),
        ({"delta": 1.0}, "delta"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, float], named: str) -> None:
    usual = {"canaries": 10, "guesses": 5, "correct": 5, "delta": 0.0}
    with pytest.raises(ValueError, match=named):
        epsilon_lower_bound(**(usual | wrong))  # type: ignore[arg-type]


def test_randomised_response_is_bounded_as_often_as_the_confidence_says() -> None:
    """It is the hardest case: exactly ε. 400 audits; a false alarm in 10⁷ of this test."""
    truth, source = 1.0, SystemRandomness()
    honest = 1 / (1 + math.exp(-truth))

    def run(included: np.ndarray) -> dict[str, np.ndarray]:
        flipped = source.bernoulli(1 - honest, len(included))
        # Ties are broken by the coins' own order, which knows nothing.
        return {"response": (included ^ flipped).astype(float)}

    results = [
        audit(run, canaries=100, guesses=100, claimed_epsilon=truth, delta=0.0) for _ in range(400)
    ]
    wrong = sum(not result.passed for result in results)
    assert wrong <= stats.binom.isf(1e-7, 400, 0.05)
    lowest = np.median([result.epsilon_lower for result in results])
    assert 0.3 < lowest < truth  # it has teeth: the truth is 1


def test_guesses_take_the_ends() -> None:
    scores = np.array([5.0, 4.0, 0.0, 0.1, -3.0, -2.0])
    included = np.array([True, True, False, True, False, True])
    assert count_correct(scores, included, guesses=2) == 2
    assert count_correct(scores, included, guesses=4) == 3
    assert count_correct(scores, included, guesses=6) == 5
    with pytest.raises(ValueError, match="not a number"):
        count_correct(np.full(6, np.nan), included, guesses=2)


def test_the_error_is_shared_by_all_that_is_tested() -> None:
    """Of several attacks the best counts, but each must convince on its own."""
    included = np.arange(100) % 2 == 0
    perfect, useless = included.astype(float), np.zeros(100)
    alone = judge({"a": perfect}, included, claimed_epsilon=9.0, delta=0.0, guesses=100)
    among = judge(
        {"a": perfect, "b": useless, "c": useless},
        included,
        claimed_epsilon=9.0,
        delta=0.0,
        guesses=100,
    )
    rate = (0.05 / 3) ** (1 / 100)
    assert alone.epsilon_lower == pytest.approx(3.493, abs=1e-3)
    assert among.epsilon_lower == pytest.approx(math.log(rate / (1 - rate)), abs=1e-6)


def test_cohorts_of_fixed_size_are_not_poisson() -> None:
    """A p-value under Poisson sampling is below 10⁻⁷ about once in 10⁷."""
    source = SystemRandomness()
    drawn = [int(source.bernoulli(0.25, 80).sum()) for _ in range(60)]
    assert poisson_cohort_p_value(drawn, population=80, rate=0.25) > 1e-7
    assert poisson_cohort_p_value([20] * 60, population=80, rate=0.25) == pytest.approx(0.0004)
    assert poisson_cohort_p_value(drawn, population=80, rate=0.5) < 1e-12


def test_sizes_that_are_just_as_large_as_expected_are_nothing_unusual() -> None:
    """In few rounds all may be so: here with probability 0.17 in one, 0.03 in two.

    Simulations put a tail of 0.0125 between 0.008 and 0.018, but for once in 10⁵ runs.
    """
    usual: dict[str, Any] = {"population": 120, "rate": 0.05}
    assert poisson_cohort_p_value([6], **usual) > 0.3
    weights = stats.binom.pmf(np.arange(25), 120, 0.05)
    alarms = sum(
        weights[first] * weights[second]
        for first in range(25)
        for second in range(25)
        if poisson_cohort_p_value([first, second], **usual) <= 0.0125
    )
    assert alarms < 0.018


def test_cohorts_that_rounds_share_or_take_turns_in_are_not_drawn_anew() -> None:
    source = SystemRandomness()

    def drawn(count: int) -> list[set[int]]:
        return [set(np.flatnonzero(source.bernoulli(0.25, 80)).tolist()) for _ in range(count)]

    usual: dict[str, Any] = {"population": 80, "rate": 0.25}
    honest = [independent_cohorts_p_value(drawn(10), **usual) for _ in range(12)]
    assert max(honest) > 0.05  # all twelve below it: once in 10¹⁵
    assert independent_cohorts_p_value(drawn(1) * 10, **usual) == pytest.approx(0.0002)
    turns = [set(range(first, 80, 4)) for first in range(4)] * 2
    assert independent_cohorts_p_value(turns, **usual) == pytest.approx(0.0002)
    assert independent_cohorts_p_value(drawn(1), **usual) == 1.0
    with pytest.raises(ValueError, match="cohorts holds"):
        independent_cohorts_p_value(drawn(9), population=3, rate=0.25)


def test_the_command_line_bounds_and_judges(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "privacy.audit"]
    answer = subprocess.run(
        [*command, "bound", "--canaries", "1000", "--guesses", "100", "--correct", "75",
         "--delta", "1e-4"],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert json.loads(answer.stdout)["epsilon_lower"] == pytest.approx(0.673, abs=1e-3)


def test_a_ledger_of_replaced_clients_claims_no_curve_about_one_who_is_there_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"included": [True, False], "scores": [1.0, 0.0]}))
    for adjacency in Adjacency:
        path = tmp_path / f"{adjacency.value}.jsonl"
        with Ledger.open(path, population="p", adjacency=adjacency) as ledger:
            ledger.append(GaussianRelease(3.0, Full()), run="r", round=1)
        assert main(["scores", str(scores), "--delta", "1e-5", "--ledger", str(path)]) == 0
        (attack,) = json.loads(capsys.readouterr().out)["attacks"]
        assert (attack["curve_p_value"] is None) == (adjacency is Adjacency.REPLACE_ONE)


def test_a_claim_from_a_ledger_is_contradicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with Ledger.open(ledger, population="p", adjacency=Adjacency.ADD_OR_REMOVE_ONE) as open_ledger:
        open_ledger.append(GaussianRelease(3.0, Full()), run="r", round=1)
    coins = np.arange(100) % 2 == 0
    scores = tmp_path / "scores.json"
    document = {"included": coins.tolist(), "scores": coins.astype(float).tolist()}
    scores.write_text(json.dumps(document))
    options = [str(scores), "--delta", "1e-5", "--guesses", "100"]
    assert main(["scores", *options, "--ledger", str(ledger)]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["claimed_epsilon"] == read_ledger(ledger).epsilon(1e-5)
    assert answer["epsilon_lower"] > 3.4
    assert "100 of 100 guesses are right" in answer["findings"][0]
    assert main(["scores", *options, "--claimed-epsilon", "4"]) == 0
    scores.write_text('{"included": [1, 0]}')
    assert main(["scores", *options, "--claimed-epsilon", "4"]) == 2
    assert '"scores"' in capsys.readouterr().err


def test_an_infinite_claim_makes_an_audit_blind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    scores, ledger = tmp_path / "scores.json", tmp_path / "ledger.jsonl"
    scores.write_text('{"included": [true, false], "scores": [1, 0]}')
    with Ledger.open(ledger, population="p", adjacency=Adjacency.ADD_OR_REMOVE_ONE) as open_ledger:
        open_ledger.append(GaussianRelease(0.0, Full()), run="r", round=1)
    for claim in (["--claimed-epsilon", "inf"], ["--ledger", str(ledger)]):
        caplog.clear()
        assert main(["scores", str(scores), "--delta", "1e-5", *claim]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["claimed_epsilon"], answer["blind"]) == (None, True)
        assert "nothing can contradict" in caplog.text
    assert main(["scores", str(scores), "--delta", "1e-5", "--claimed-epsilon", "-1"]) == 2
    assert "a number of at least 0, or infinity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"[]", "an object"),
        (b'{"included": [true, false]}', "an object"),
        (b'{"included": [], "scores": []}', '"included" must be'),
        (b'{"included": [true, 2], "scores": [1, 2]}', '"included" must be'),
        (b'{"included": [true, false], "scores": [1]}', "as many numbers"),
        (b'{"included": [true, false], "scores": {}}', "as many numbers"),
        (b'{"included": [true, false], "scores": [{}, 1]}', "a list of numbers"),
        (b'{"included": [true, false], "scores": ["1", "2"]}', "a list of numbers"),
        (b'{"included": [true, false], "scores": [true, 2]}', "a list of numbers"),
        (b'{"included": [true, false], "scores": [1, 1' + 400 * b"0" + b"]}", "too large"),
        (b'{"included": [true, false], "scores": [1, NaN]}', "a list of numbers"),
    ],
)
def test_a_damaged_file_of_scores_is_refused_by_name(
    content: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    file.write_bytes(content)
    assert main(["scores", str(file), "--claimed-epsilon", "1", "--delta", "1e-5"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert why in error
