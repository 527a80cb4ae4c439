"""``python -m privacy.accounting``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.accounting import GaussianRelease, Ledger, Poisson, epsilon
from privacy.accounting.__main__ import main

ROUND = "--noise-multiplier 1.2 --sampling-rate 0.0354715 --rounds 100 --delta 1e-5"


def ask(capsys, line):
    assert main(line.split()) == 0
    return json.loads(capsys.readouterr().out)


def test_epsilon_as_the_readme_has_it():
    done = subprocess.run(
        [sys.executable, "-m", "privacy.accounting", "epsilon", *ROUND.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    answer = json.loads(done.stdout)
    assert answer["pld"] == pytest.approx(1.707, abs=5e-4)
    assert answer["rdp"] == pytest.approx(1.986, abs=5e-4)
    assert done.stderr == ""


def test_epsilon_of_the_rest(capsys):
    line = "epsilon --noise-multiplier 1.2 --rounds 100 --delta 1e-5"
    fixed = ask(capsys, f"{line} --cohort 100 --population 1000")
    assert fixed["rdp"] == pytest.approx(38.0, abs=0.05)
    assert "pld" not in fixed
    assert fixed["without_amplification"] > 100
    assert ask(capsys, f"epsilon {ROUND} --noise-multiplier 0") == {
        "pld": "inf",
        "rdp": "inf",
        "without_amplification": "inf",
        "gaussian_dp_mu": "inf",
        "attack_success": {"0.01": 1.0, "0.1": 1.0},
    }
    full = ask(capsys, f"{line} --sampling-rate 1")
    assert full["pld"] <= full["rdp"]
    assert full["without_amplification"] == full["pld"]
    assert full["gaussian_dp_mu"] == pytest.approx(10 / 1.2, rel=0.02)


def test_calibrate_answers_for_what_is_left_out(capsys):
    target = "calibrate --epsilon 2 --delta 1e-5"
    noise = ask(capsys, f"{target} --sampling-rate 0.05 --rounds 100")
    rounds = ask(
        capsys, f"{target} --sampling-rate 0.05 --noise-multiplier {noise['noise_multiplier']}"
    )
    rate = ask(capsys, f"{target} --rounds 100 --noise-multiplier {noise['noise_multiplier']}")
    assert rounds["rounds"] == 100
    assert rate["sampling_rate"] == pytest.approx(0.05, rel=1e-4)
    assert all(answer["epsilon"] <= 2 for answer in (noise, rounds, rate))


def test_ledger_from_the_file_alone(capsys, tmp_path):
    event = GaussianRelease(1.2, Poisson(0.03))
    with Ledger.open(tmp_path / "ledger", population="p") as ledger:
        for number in range(4):
            ledger.append(event, run="a", round=number)
    answer = ask(capsys, f"ledger {tmp_path / 'ledger'} --delta 1e-5")
    assert answer["events"] == 4
    assert answer["epsilon"]["pld"] == epsilon({event: 4}, delta=1e-5)


@pytest.mark.parametrize("seeded", ["", " (seeded: not private)"])
@pytest.mark.parametrize(
    ("population", "delta", "warned"),
    [
        ("population, 20 clients", 0.1, True),
        ("population, 20 clients", 0.05, True),
        ("a1b2, listed, 20 clients", 0.1, True),
        ("population, 20 clients", 0.04, False),
        ("population, 2000 clients", 1e-5, False),
        ("a population of another program", 0.1, False),  # of how many, nobody can tell
    ],
)
def test_a_ledger_at_a_large_delta_is_warned_of(
    capsys, tmp_path, population, delta, warned, seeded
):
    event = GaussianRelease(1.2, Poisson(0.03))
    with Ledger.open(tmp_path / "ledger", population=population + seeded) as ledger:
        ledger.append(event, run="a", round=1)
    assert main(f"ledger {tmp_path / 'ledger'} --delta {delta}".split()) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["delta"] == delta
    assert output.err.count("warning: δ = ") == warned == output.err.count("\n")
    assert ("one over the population of 20" in output.err) == warned


def test_a_large_delta_of_a_population_that_is_given_is_warned_of(capsys):
    for sampling in ("--cohort 10", "--sampling-rate 0.1"):
        plan = f"--noise-multiplier 4 {sampling} --population 100"
        for line in ("epsilon --rounds 2", "calibrate --epsilon 5"):
            for delta, warned in ((0.01, True), (1e-5, False)):
                assert main(f"{line} {plan} --delta {delta}".split()) == 0
                assert ("one over the population of 100" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"epsilon {ROUND} --delta 2", "delta is 2.0"),
        (f"epsilon {ROUND} --rounds 0", "rounds is 0"),
        (f"epsilon {ROUND} --sampling-rate 1.5", "rate is 1.5"),
        (f"epsilon {ROUND} --cohort 3", "--cohort needs --population"),
        ("epsilon --noise-multiplier 1 --rounds 1 --delta 1e-5", "give --sampling-rate"),
        (f"calibrate --epsilon 1 {ROUND}", "left out are 0"),
        ("calibrate --epsilon 1 --delta 1e-5 --rounds 3", "left out are 2"),
        ("calibrate --epsilon 1e-9 --delta 1e-15 --sampling-rate 1 --rounds 9", "no noise"),
        ("ledger nowhere --delta 1e-5", "cannot be read"),
    ],
)
def test_errors_are_one_sentence_and_a_status(capsys, line, says):
    assert main(line.split()) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert says in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("line", [[], ["epsilon"], ["ledger"], ["unknown"]])
def test_unreadable_command_lines_exit_with_two(capsys, line):
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_describing_events_loads_nothing_heavy():
    code = (
        "import sys, privacy.accounting\n"
        "print([m for m in ('torch', 'tenseal', 'flwr', 'dp_accounting', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"
