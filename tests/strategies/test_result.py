"""The privacy of a run, in words."""

from dataclasses import replace
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from strategies import SecureAggregationReport
from tests.strategies.reports import a_report

REPORT = a_report(
    epsilon=2.99951,
    noise_multiplier=1.23456,
    rounds=75,
    mechanism="lattice",
    epsilon_without_amplification=40.0,
)


def test_a_report_is_a_paragraph() -> None:
    assert str(REPORT) == (
        "ε = 3.000 at δ = 1e-05 for one client of 1,000 (add-or-remove-one), all that was paid for "
        "them before included. ε against whoever learns who was drawn: 40.0. 75 rounds, poisson "
        "sampling at q = 0.1, clipping norm 0.02, noise multiplier 1.235 (lattice; pld accountant)."
    )


def test_a_run_that_is_not_private_says_so_first() -> None:
    stopped = replace(REPORT, private=False, epsilon=inf, stopped="the budget is spent.")
    assert str(stopped).startswith("NOT PRIVATE: ")
    assert str(stopped).endswith("It ended early: the budget is spent.")
    assert "ε" not in str(stopped)


def test_everybody_who_sees_more_is_named() -> None:
    sums = SecureAggregationReport("malicious", 0.1, 40, 0.2, "central", inf, 0.02, 0.0, ())
    assert "ε against the server: ∞, whoever" in str(replace(REPORT, secure_aggregation=sums))
    silos = replace(REPORT, epsilon_by_observer={"outside": 1.0, "silo": 1.5}, unit="person")
    assert "for one person of" in str(silos)
    assert "ε against outside: 1.0, silo: 1.5. 75 rounds" in str(silos)


@given(st.floats(1e-6, 1e6))
def test_no_epsilon_is_understated(epsilon: float) -> None:
    words = str(replace(REPORT, epsilon=epsilon)).split()
    assert epsilon <= float(words[2]) <= epsilon * 1.001
