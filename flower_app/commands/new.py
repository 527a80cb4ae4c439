"""``python -m flower_app new``: a project for data of one's own."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.errors import CommandFailedError
from flower_app.tasks import Category, Number, read_task
from flower_app.tasks.guess import Guess, guess_task, task_text
from flower_app.tasks.guess_pictures import guess_pictures

_HOUSEHOLDS, _SITES = 400, 6
_COLUMNS = (
    Number("age", 0, 110),
    Category("sex", ("female", "male")),
    Category("smoker", ("no", "yes")),
    Number("diseases", 0, 10),
)


def add_command(commands: Any) -> None:
    """Add ``new`` to the app's command line."""
    parser = commands.add_parser(
        "new",
        description="Writes a project that runs at once: a task.toml and a made-up table, for you "
        "to put your own in their places; or with --from-table or --from-pictures a first "
        "task.toml for data of yours, and what was guessed.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")
    parser.add_argument(
        "--mode",
        choices=("clients", "silos"),
        help=f"clients, each hidden with all it holds, or silos, whose persons are; the made-up "
        f"table has {_HOUSEHOLDS} households (the default) or {_SITES} clinics, and for a table "
        "of yours the number of its clients decides",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-table", type=Path, metavar="FILE", help="a CSV file of yours")
    source.add_argument(
        "--from-pictures",
        type=Path,
        metavar="FOLDER",
        help="pictures of yours: in it a folder for each client, in that one for each class",
    )
    for name, text in (
        ("target", "what to predict"),
        ("client-column", "which client holds a row"),
        ("person-column", "whose a row is, where a person may have several"),
    ):
        parser.add_argument(
            f"--{name}", metavar="COLUMN", default="", help=f"of --from-table: {text}"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the project.

    Raises
    ------
    CommandFailedError
        If the folder holds something, or nothing can be written there.
    DataError
        If nothing can be guessed from the data.
    """
    folder: Path = options.folder
    if options.from_table is None:
        for name in ("target", "client-column", "person-column"):
            if getattr(options, name.replace("-", "_")):
                raise CommandFailedError(f"--{name} goes with --from-table; name your CSV file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CommandFailedError(f"{folder} holds files already; name a new folder")
        if options.from_table is not None:
            _write_guess(folder, options.from_table, _of_table(folder, options))
        elif options.from_pictures is not None:
            place = _as_written(options.from_pictures, folder)
            guess = guess_pictures(options.from_pictures, written_as=place, mode=options.mode)
            _write_guess(folder, options.from_pictures, guess)
        else:
            _write_made_up(folder, silos=options.mode == "silos")
    except OSError as error:
        raise CommandFailedError(f"{folder} cannot be written: {error.strerror}") from error
    task = folder / "task.toml"
    read_task(task)
    where = shlex.quote(str(task))
    print(f"wrote {task}. Next:")
    print(f"  python -m flower_app check-data {where}")
    print(f"  python -m flower_app run task={where}")
    return 0


def _of_table(folder: Path, options: argparse.Namespace) -> Guess:
    return guess_task(
        options.from_table,
        written_as=_as_written(options.from_table, folder),
        target=options.target,
        client=options.client_column,
        person=options.person_column,
        mode=options.mode,
    )


def _as_written(data: Path, folder: Path) -> str:
    """A path as ``task.toml`` names it: relative where the data lie in its folder."""
    inside = os.path.relpath(data.absolute(), folder.absolute())
    return str(data.absolute()) if inside.startswith("..") else inside


def _write_guess(folder: Path, data: Path, guess: Guess) -> None:
    (folder / "task.toml").write_text(guess.text, encoding="utf-8")
    print(f"Guessed from {data}, for you to check:")
    for line in guess.lines:
        print(f"  {line}")
    print(guess.confirm)


def _write_made_up(folder: Path, *, silos: bool) -> None:
    holder, persons = ("clinic", True) if silos else ("household", False)
    rows = _rows(silos=silos)
    names = [holder, *(["person"] if persons else []), *(each.name for each in _COLUMNS), "visit"]
    asked = [names.index(column.name) for column in _COLUMNS]
    _write_table(folder / "visits.csv", names, rows)
    _write_table(
        folder / "questions.csv",
        [names[place] for place in asked],
        [[row[place] for place in asked] for row in rows[:5]],
    )
    data = 'table = "visits.csv"  # made up by a rule and a fixed seed: nobody\'s data\n'
    data += f'client-column = "{holder}"\n' + 'person-column = "person"\n' * persons
    data += "test-share = 0.2\nranges-are-public = true  # known without looking at the data\n"
    privacy = 'mode = "clients"\nclients = 320  # without those kept for testing\n'
    if silos:
        privacy = f'mode = "silos"\nsilos = {_SITES}\npersons = 1900  # a round number, no count\n'
    text = task_text(
        name="visits",
        controller="Nobody: these data are made up",
        purpose="To try a private run: who will see a doctor this year",
        data=data,
        columns=_COLUMNS,
        target="visit",
        classes=("no", "yes"),
        names=("no visit", "a visit"),
        privacy=privacy,
    )
    (folder / "task.toml").write_text(text, encoding="utf-8")
    print("A made-up table, of a rule and a fixed seed: visits to a doctor. It is nobody's data.")


def _rows(*, silos: bool) -> list[list[str]]:
    """Made-up years of persons: age, disease, smoking and sex decide on visits, and chance."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(2400 if silos else _HOUSEHOLDS):
        holder = f"clinic-{number % _SITES + 1}" if silos else f"h{number:03}"
        for _ in range(draw.integers(1, 4) if silos else draw.integers(6, 15)):
            age, diseases = int(draw.integers(0, 96)), int(min(10, draw.poisson(1.5)))
            sex, smoker = draw.choice(["female", "male"]), draw.choice(["no", "no", "yes"])
            leaning = 0.05 * (age - 45) + 0.6 * (diseases - 1.5)
            leaning += (sex == "female") - 0.5 + (smoker == "yes") - 0.3
            visit = "yes" if draw.random() < 1 / (1 + np.exp(-1.5 * leaning)) else "no"
            person = [f"p{number:04}"] if silos else []
            rows.append([holder, *person, str(age), sex, smoker, str(diseases), visit])
    return rows


def _write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [",".join(row) for row in (names, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
