"""Planning distributed DP-SGD: the budget is spent, and the noise is what the silos would add."""

import json
import math

import pytest

from flower_app import __main__ as command
from flower_app.models.specs import MODELS
from flower_app.silo_planning import SiloQuestion, silo_options
from privacy.accounting import Budget, Poisson, epsilon
from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import FewSilos

TEN = ["plan", "--silos", "10", "--records", "20000", "--epsilon", "3"]


def test_every_option_spends_the_budget_and_no_more() -> None:
    question = SiloQuestion(Budget(3.0, 1e-5), FewSilos(10), 20_000)
    (option,) = silo_options(question, rates=[0.02], steps=[50])
    assert option.noise_multiplier is not None
    parameters = MODELS["hog-linear"].parameters
    event = SiloGaussian(8, 1).account(
        parameters=parameters,
        noise_multiplier=option.noise_multiplier,
        sampling=Poisson(0.02),
    )
    assert 2.99 < epsilon({event: 50}, delta=1e-5) <= 3.0
    assert option.batch == 400
    curator, ours, own = option.curator_share, option.noise_share, option.own_noise_share
    assert curator == pytest.approx(option.noise_multiplier / 400)
    # Ten shares, each sized for seven honest ones; and ten times all of the noise.
    assert ours == pytest.approx(option.noise_multiplier / 400 * math.sqrt(10 / 7))
    assert own == pytest.approx(option.noise_multiplier / 400 * math.sqrt(10))


def test_the_table_names_who_may_collude_and_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*TEN, "--sampling-rates", "0.02", "0.05", "--rounds", "20"]) == 0
    output = capsys.readouterr().out
    assert "10 silos with N = 20,000 persons together" in output
    assert "2 of the 10 may be absent" in output
    assert [line.split()[:2] for line in output.splitlines() if line.lstrip()[:2] == "0."] == [
        ["0.02", "20"],
        ["0.05", "20"],
    ]


def test_with_too_few_persons_no_accuracy_is_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    few = [*TEN[:4], "20", "--epsilon", "3", "--sampling-rates", "0.1", "--rounds", "20"]
    assert command.main(few) == 0
    printed = capsys.readouterr()
    assert "Advice: do not train like this" in printed.out
    assert "Expected test accuracy" not in printed.out
    assert command.main([*few, "--delta", "0.1"]) == 0
    assert "gives away one person at random" in capsys.readouterr().err


def test_one_json_object_has_the_question_and_the_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rest = ["--sampling-rates", "0.02", "--rounds", "20", "--colluders", "3", "--json"]
    assert command.main([*TEN, *rest]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["question"]["silos"]["colluders"] == 3
    assert document["options"][0]["steps"] == 20
    # Measured were 50,000 records, and no fewer of its silos could be absent or collude.
    assert document["accuracy"]["at_least"] is None
    assert document["accuracy"]["at_most"]["records"] == 50_000


def test_a_budget_that_no_noise_reaches_is_answered_as_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = "plan --silos 3 --records 100 --epsilon 1e-12 --delta 1e-12 --sampling-rates 0.5"
    assert command.main(given.split()) == 0
    assert "no noise fits this budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--silos 2 --records 100", "--silos 2 is wrong"),
        ("--silos 10", "--records is missing"),
        ("--silos 10 --records 0", "--records 0 is wrong"),
        ("--silos 10 --records 100 --colluders 5", "colluders is 5"),
        ("--silos 10 --records 100 --absent 9", "absent is 9"),
        ("--silos 10 --records 100 --sampling-rates 1", "--sampling-rates 1.0 is wrong"),
        ("--silos 10 --records 100 --mechanism banded", "banded is wrong; it goes with --pop"),
        ("--population 100 --colluders 1", "--colluders 1 is wrong; it goes with --silos"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(
    given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["plan", *given.split()]) == 1
    assert words in capsys.readouterr().err
