"""A task from ``new`` to an encrypted answer: every command that a user types, on one project."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flower_app.__main__ import main
from flower_app.errors import SettingError
from flower_app.report.results_folder import ResultsFolder
from flower_app.settings import Settings
from flower_app.tasks import read_holdings, read_task
from flower_app.training.assembly import check_run
from tests.flower_app.app_runs import Run, run_app

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "project"
    assert main(["new", str(folder)]) == 0
    return folder / "task.toml"


@pytest.fixture(scope="module")
def run(task: Path) -> Run:
    return run_app(
        task.parent / "results",
        nodes=320,
        task=str(task),
        rounds=4,
        sampling_rate=0.3,
        server_learning_rate=20.0,
        encrypted_test_images=10,
    )


def test_the_project_is_good_and_planned(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(task)]) == 0
    assert "320 clients with" in capsys.readouterr().out
    assert main(["plan", "--task", str(task), "--rounds", "6", "--sampling-rates", "0.3"]) == 0
    assert "logistic on visits, N = 320 clients, ε = 3 at δ = 1e-05" in capsys.readouterr().out


def test_the_run_learns_and_its_report_says_who_and_why(run: Run, task: Path) -> None:
    assert run.metrics["accuracy"]["test"] > 0.7
    assert run.metrics["encrypted"]["agreement"] == 1.0
    assert run.metrics["privacy"]["client_level"]["epsilon"] <= 3.0
    page = (run.folder / "report.html").read_text()
    for words in (
        "To try a private run: who will see a doctor",
        "Nobody: these data are made up",
        "no visit, a visit",
        "ms to evaluate one row",
        "those kept for testing in this simulation",
    ):
        assert words in " ".join(page.split())
    assert (run.folder / "task.toml").read_text() == task.read_text()


def test_a_run_goes_on_with_the_task_that_it_began_with(run: Run, task: Path) -> None:
    changed = task.parent / "changed.toml"
    changed.write_text(task.read_text().replace("[0, 10]", "[0, 20]"))
    (run.folder / "metrics.json").rename(run.folder / "aside.json")
    try:
        assert not ResultsFolder(run.folder).finished
        config = json.loads((run.folder / "config.json").read_text())
        config.pop("software")
        config |= {"resume": str(run.folder)}
        check_run(Settings.from_config(config), nodes=320)
        with pytest.raises(SettingError, match="it has changed since the run"):
            check_run(Settings.from_config(config | {"task": str(changed)}), nodes=320)
    finally:
        (run.folder / "aside.json").rename(run.folder / "metrics.json")


def test_its_answers_are_certified(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run.folder), "--images", "5"]) == 0
    assert "100.00 % the same class" in capsys.readouterr().out


@pytest.fixture(scope="module")
def ask(run: Run) -> Iterator[list[str]]:
    """The arguments of ``ask`` that a running ``serve`` prints."""
    serve = [sys.executable, "-m", "flower_app", "serve", str(run.folder), "--port", "0"]
    process = subprocess.Popen(
        [*serve, "--workers", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    command = shlex.split(next(line for line in lines if "flower_app ask" in line))
    yield [*command[command.index("ask") :], "--one-time-keys"]
    process.kill()
    process.wait()
    process.stdout.close()


def test_rows_are_asked_about_as_values_and_as_a_file(
    ask: list[str], task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asking(*questions: str) -> list[str]:
        place = ask.index("QUESTIONS")
        return [*ask[:place], *questions, *ask[place + 1 :]]

    old = "age=90,sex=female,smoker=yes,diseases=8"
    assert main(asking(old, "age=5,sex=male,smoker=no,diseases=0")) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[1/2] {old}: a visit",
        "[2/2] age=5,sex=male,smoker=no,diseases=0: no visit",
    ]
    assert main(asking(str(task.parent / "questions.csv"), "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [f"questions.csv[{n}]" for n in range(5)]
    assert all(line["names"] == [("no visit", "a visit")[line["classes"][0]]] for line in lines)
    other = task.with_name("other.toml")
    other.write_text(task.read_text().replace('"a visit"]', '"a stay"]'))
    of_another = asking(old)
    of_another[of_another.index("--task") + 1] = str(other)
    assert main(of_another) == 1
    assert "the plan's classes are no visit, a visit, and visits has no visit, a stay" in (
        capsys.readouterr().err
    )
    assert main(asking("agee=5")) == 1
    assert "did you mean age?" in capsys.readouterr().err


def test_a_guessed_task_runs_when_its_ranges_are_confirmed(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "guessed"
    table = task.parent / "visits.csv"
    assert main(["new", str(folder), "--from-table", str(table)]) == 0
    words = capsys.readouterr().out
    assert "household: says which client holds a row" in words
    assert "diseases: a number from 0 to" in words
    guessed = folder / "task.toml"
    assert [column.name for column in read_task(guessed).columns] == [
        *("age", "sex", "smoker", "diseases")
    ]
    assert main(["run", f"task={guessed}"]) == 1
    assert "ranges-are-public = false" in capsys.readouterr().err
    guessed.write_text(guessed.read_text().replace("public = false", "public = true"))
    settings = Settings.from_config({"task": str(guessed), "results-dir": str(tmp_path)})
    check_run(settings, nodes=len(read_holdings(read_task(guessed)).names))
    with pytest.raises(SettingError, match="run with --nodes 320"):
        check_run(settings, nodes=40)


def test_a_guess_says_what_it_made_of_a_messy_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "messy.csv"
    days = [f"{day % 28 + 1:02d}.03.2024" for day in range(60)]
    table.write_bytes(
        "\n".join(
            ["Klinik;Fall;Größe;Tag;HbA1c;Diagnose;y"]
            + [
                f"K{n % 3};{n // 2};1,{n};{days[n]};{'<4' if n % 9 == 0 else f'{n},5'};"
                f"{'Q87' if n == 7 else 'I10'};{n % 2}"
                for n in range(60)
            ]
        ).encode("latin-1")
    )

    def new(*options: str) -> tuple[int, str]:
        status = main(["new", str(tmp_path / "project"), "--from-table", str(table), *options])
        written = capsys.readouterr()
        return status, written.out + written.err

    for role in ("--target", "--person-column"):
        status, words = new("--client-column", "Klinik", role, "Klinik")
        assert status == 1
        assert f"--client-column and {role} are both 'Klinik'" in words
    status, words = new("--client-column", "Klinik")
    assert status == 0
    for line in (
        "1 line with bytes that are no UTF-8",
        "e: a number from 1 to 1.9",
        "Fall: a number from 0 to 29; 30 different whole numbers in 60 rows: if they number cases",
        "Tag: left out, it holds dates",
        "HbA1c: left out, 7 of 60 values are no numbers (such as '<4')",
        "Diagnose: one of I10, Q87; Q87 in fewer than 10 rows",
        "mode: silos, for there are 3 clients: ROWS are hidden",
    ):
        assert line in words
    (tmp_path / "project" / "task.toml").unlink()
    status, words = new("--client-column", "Klinik", "--person-column", "Fall", "--mode", "clients")
    assert "mode: clients, as --mode says" in words
    assert 'mode = "clients"' in (tmp_path / "project" / "task.toml").read_text()


def test_check_data_holds_the_numbers_of_a_silos_task_against_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clinics"
    assert main(["new", str(folder), "--mode", "silos"]) == 0
    task = folder / "task.toml"
    good = task.read_text()
    capsys.readouterr()
    task.write_text(f"\ufeff{good}", encoding="utf-8")  # as an editor of Windows does
    assert main(["check-data", str(task)]) == 0
    assert "6 silos with 632 to 650 rows each, of 1,921 persons" in capsys.readouterr().out
    for old, new, status, words in (
        ("silos = 6", "silos = 7", 1, "silos = 7, and there are data of 6: clinic-1, clinic-2"),
        ("persons = 1900", "persons = 90000", 0, "persons = 90,000, and there are 1,921 persons"),
        ("delta = 1e-5", "delta = 0.5", 0, "δ = 0.5 is no less than one over"),
    ):
        task.write_text(good.replace(old, new))
        assert main(["check-data", str(task)]) == status
        assert words in capsys.readouterr().err


def test_a_made_up_table_takes_no_columns_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", str(tmp_path / "project"), "--target", "y"]) == 1
    assert "--target goes with --from-table" in capsys.readouterr().err
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("taken", ["a file", "a folder with something in it"])
def test_a_project_is_written_over_nothing(
    taken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if taken == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    assert main(["new", str(place)]) == 1
    assert str(place) in capsys.readouterr().err
