"""The planning command: what a private run would take, before any training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import ArrayRecord

from flower_app import __main__ as command
from flower_app.measurements import MeasuredAccuracy, MeasuredRound, measured_accuracies
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from flower_app.planning import (
    Question,
    expected_accuracy,
    message_bytes,
    options,
)
from privacy.accounting import Budget, GaussianRelease, Ledger, Poisson, epsilon

ROW = MeasuredAccuracy("mnist", "cnn", 1000, 50, 3.0, 1e-5, 0.1, 75, 1.5, 0.9, 0.8, 1.0, 3)


def ask(**changed: float) -> Question:
    budget = Budget(changed.pop("epsilon", 3.0), changed.pop("delta", 1e-5))
    return Question(budget, int(changed.pop("population", 1000)), **changed, model="cnn")


def test_every_option_spends_the_budget_and_no_more() -> None:
    question = Question(Budget(3.0, 1e-5), 2000)
    found = list(options(question, rates=[0.3, 1.0], rounds=[5]))
    assert [(o.sampling_rate, o.rounds) for o in found] == [(0.3, 5), (1.0, 5)]
    for o in found:
        assert o.noise_multiplier is not None
        release = GaussianRelease(o.noise_multiplier, Poisson(o.sampling_rate))
        assert 2.99 < epsilon({release: o.rounds}, delta=1e-5) <= 3.0
        assert o.cohort == o.sampling_rate * 2000
        assert o.noise_share == pytest.approx(o.noise_multiplier / o.cohort)
        assert o.round_bytes == pytest.approx(2 * message_bytes("hog-linear") * o.cohort)


def test_options_in_turns_pay_for_turns_alone_and_compare_by_what_noise_leaves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = Question(Budget(3.0, 1e-5), 1000)
    (option,) = options(question, rates=[0.1], rounds=[100], mechanism="banded")
    assert option.noise_multiplier == pytest.approx(4.397, abs=1e-3)
    assert option.epsilon_without_amplification == pytest.approx(3.0, abs=1e-3)
    assert option.noise_share == pytest.approx(4.397 * 0.3388 / 100, rel=1e-3)
    arguments = "plan --population 1000 --mechanism banded --rounds 100 --sampling-rates"
    assert command.main([*arguments.split(), "0.1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "4.397" in printed
    assert "Take CyclicGroups(10) with BandedMF(10); in the app mechanism=banded" in printed
    assert "No cohort needs to be secret" in printed
    assert command.main([*arguments.replace("banded", "blt").split(), "0.1"]) == 0
    printed = capsys.readouterr().out
    assert f"{4.397 * 0.3602 / 100:.4f}" in printed
    assert "CyclicGroups(10) with BLT()" in printed
    assert "never asked" not in printed
    assert command.main([*arguments.split(), "0.005"]) == 0
    assert "some clients are never asked" in capsys.readouterr().out
    assert command.main([*arguments.split(), "0.3"]) != 0
    assert "1/2, 1/3" in capsys.readouterr().err


def test_the_mechanisms_stand_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "plan --population 1000 --mechanism all --rounds 100 --epsilon 2"
    assert command.main([*arguments.split(), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["options"]
    assert [(row["way"], row["secret"]) for row in rows] == [
        ("Poisson(0.1), LatticeGaussian()", True),
        ("CyclicGroups(4, 0.4), BandedMF(4)", True),
        ("CyclicGroups(10), BandedMF(10)", False),
        ("CyclicGroups(10), BLT()", False),
    ]
    question = Question(Budget(2.0, 1e-5), 1000)
    for row, mechanism in zip(rows, ("lattice", "amplified", "banded", "blt"), strict=True):
        (alone,) = options(question, rates=[0.1], rounds=[100], mechanism=mechanism)
        assert row["noise_share"] == alone.noise_share
        assert row["cohort"] == pytest.approx(100)
    z = rows[1]["noise_multiplier"]
    assert 1.99 < epsilon({GaussianRelease(z, Poisson(0.4)): 25}, delta=1e-5) <= 2.0
    assert command.main(arguments.split()) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Least noise, whoever learns who was asked: CyclicGroups(10), BandedMF(10)" in printed
    assert "Least noise, while nobody does: " in printed


@pytest.mark.parametrize("model", MODELS)
def test_bytes_are_those_that_flower_carries(model: str) -> None:
    record = ArrayRecord(build_model(model).state_dict())
    assert message_bytes(model) == sum(len(array.data) for array in record.values())


@pytest.mark.parametrize(
    ("population", "words"),
    [("1000", "Advice: q = 0.1 and 20 rounds"), ("5", "Advice: do not train like this")],
)
def test_it_advises_what_to_take_and_what_not_to_try(
    capsys: pytest.CaptureFixture[str], population: str, words: str
) -> None:
    asked = ["plan", "--population", population, "--rounds", "20"]
    rates = ["--sampling-rates", "0.01", "0.05", "0.1"]
    assert command.main([*asked, *rates]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert words in printed
    assert ("Expected test accuracy" in printed) == (population == "1000")
    assert ("holds only while nobody learns who was drawn" in printed) == (population == "1000")
    assert command.main([*asked, *rates, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"]["learns"] == (population == "1000")
    assert document["spent"] is None
    assert document["question"]["mechanism"] == "lattice"


def test_a_model_of_a_users_project_is_known_by_its_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asking = ["plan", "--population", "200", "--delta", "1e-3", "--rounds", "30"]
    asking += ["--sampling-rates", "0.1", "--json"]
    advised = {}
    for parameters in (650, 65_000):
        assert command.main([*asking, "--parameters", str(parameters)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["options"][0]["client_bytes"] > 0.1 * 2 * 4 * parameters
        assert not document["accuracy"]["known"]
        advised[parameters] = document["advice"]["signal_to_noise"]
    # The noise grows with the root of the parameters, clients' updates do not.
    assert advised[650] == pytest.approx(10 * advised[65_000])
    assert command.main([*asking[:-1], "--parameters", "650"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("a model of 650 parameters on data of yours, N = 200 clients")
    assert "S: a few times below the length of an update" in printed
    for more in (["--model", "mlp"], ["--task", "task.toml"]):
        assert command.main([*asking, "--parameters", "650", *more]) == 1
        assert "contradicts --task and --model" in capsys.readouterr().err


def test_a_ledger_is_planned_on_with_what_it_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, event = tmp_path / "ledger.jsonl", GaussianRelease(2.0, Poisson(0.1))
    with Ledger.open(path, population="population, 1000 clients") as ledger:
        for number in range(1, 11):
            ledger.append(event, run="before", round=number)
    asked = ["plan", "--ledger", str(path), "--rounds", "20", "--sampling-rates", "0.1"]
    assert command.main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["question"]["population"] == 1000
    assert document["spent"] == epsilon({event: 10}, delta=1e-5)
    z = document["options"][0]["noise_multiplier"]
    assert 2.99 < epsilon({event: 10, GaussianRelease(z, Poisson(0.1)): 20}, delta=1e-5) <= 3.0

    assert command.main(asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    said = re.search(r"rounds like its last \(z = 2\), (\d+) more", printed)
    assert said is not None
    more = int(said[1])
    assert epsilon({event: 10 + more}, delta=1e-5) <= 3.0 < epsilon({event: 11 + more}, delta=1e-5)

    assert command.main([*asked, "--epsilon", "0.1"]) == 0
    assert "Nothing more may be released" in " ".join(capsys.readouterr().out.split())
    assert command.main([*asked, "--population", "7"]) == 1
    assert "is of 1000 clients" in capsys.readouterr().err
    assert command.main(["plan", "--epsilon", "1"]) == 1
    assert "--population is missing" in capsys.readouterr().err


def test_a_budget_that_no_noise_reaches_is_refused_as_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = "plan --population 10 --epsilon 1e-12 --delta 1e-12 --sampling-rates 1"
    assert command.main(arguments.split()) == 0
    assert "no noise fits this budget" in capsys.readouterr().out


def test_accuracy_is_bounded_by_runs_that_were_easier_or_harder_in_everything() -> None:
    worse = replace(ROW, median=0.7, epsilon=1.0)
    table = [ROW, worse]
    same = expected_accuracy(ask(), table)
    assert (same.at_least, same.at_most) == (ROW, ROW)
    assert "about 90.0 %" in same.sentence
    between = expected_accuracy(ask(epsilon=2.0), table)
    assert (between.at_least, between.at_most) == (worse, ROW)
    beyond = expected_accuracy(ask(population=5000), table)
    assert (beyond.at_least, beyond.at_most) == (ROW, None)
    assert "how much more is not known" in beyond.sentence


@pytest.mark.parametrize(
    "question",
    [
        ask(population=500),  # fewer clients
        ask(records=10),  # who hold less
        ask(epsilon=0.5),
        ask(delta=1e-7),
    ],
)
def test_what_is_harder_than_all_that_was_measured_has_no_floor(question: Question) -> None:
    found = expected_accuracy(question, [ROW])
    assert found.at_least is None
    assert "how much less is not known" in found.sentence


def test_another_data_set_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "plan --population 1000 --dataset ours --sampling-rates 1 --json"
    assert command.main(arguments.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"]["known"] is False
    assert told["accuracy"]["sentence"].startswith("not known")
    # Incomparable in some respect both ways: more clients, fewer records.
    incomparable = expected_accuracy(ask(population=5000, records=1), [ROW])
    assert incomparable.sentence.startswith("not known")


def test_the_command_answers_from_the_packaged_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", "--population", "1000", "--sampling-rates", "1"]) == 0
    shown = capsys.readouterr().out
    row = next(
        m
        for m in measured_accuracies()
        if (m.model, m.clients, m.epsilon) == ("hog-linear", 1000, 3.0)
    )
    assert f"about {100 * row.median:.1f} %" in shown
    assert "know one or two labels" in shown


def test_time_is_scaled_from_the_nearest_measured_round_and_never_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (
        MeasuredRound("hog-linear", 100.0, 0.5, "2 cores"),
        MeasuredRound("hog-linear", 10.0, 0.2, "2 cores"),
    )
    for module in ("planning", "commands.plan"):
        monkeypatch.setattr(f"flower_app.{module}.measured_rounds", lambda: table)
    question = Question(Budget(3.0, 1e-5), 1000)
    seconds = {
        rate: next(options(question, rates=[rate], rounds=[1])).round_seconds
        for rate in (0.001, 0.2, 1.0)
    }
    assert seconds == {0.001: 0.2, 0.2: 1.0, 1.0: 5.0}
    assert (
        next(options(replace(question, model="cnn"), rates=[1.0], rounds=[1])).round_seconds is None
    )
    command.main(["plan", "--population", "1000", "--sampling-rates", "1"])
    assert "scaled from a simulation on 2 cores" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--population 0", "--population 0"),
        ("--population 9 --rounds 0", "--rounds 0"),
        ("--population 9 --sampling-rates 1.5", "--sampling-rates 1.5"),
        ("--population 9 --epsilon -1", "epsilon is -1"),
    ],
)
def test_wrong_numbers_are_named(
    arguments: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["plan", *arguments.split()]) == 1
    assert named in capsys.readouterr().err
