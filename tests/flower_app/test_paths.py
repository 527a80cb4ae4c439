"""Folders that are locked, as their owners meet them: one sentence, and no traceback."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from flower_app.__main__ import main
from flower_app.commands.own_questions import find_questions
from flower_app.commands.plan_questions import find_plan_questions
from flower_app.data.clients import check_node_folder
from flower_app.errors import DataError
from flower_app.paths import is_file, is_folder, listed
from flower_app.tasks import read_holdings, read_task
from flower_app.tasks.guess_pictures import guess_pictures
from privacy.inference import compile_model
from tests.flower_app.tasks.projects import TASK, project

ROOT = Path(__file__).parents[2]
NOBODY = 65534

PICTURES = """\
name = "x-rays"
model = "logistic"

[data]
clients = "clinics"
test-share = 0.2

[pictures]
side = 8
colours = false

[target]
classes = ["ill", "well"]

[privacy]
epsilon = 2.0
delta = 1e-3
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every user reaches, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextlib.contextmanager
def locked(place: Path, mode: int = 0) -> Iterator[None]:
    """The folder has a mode, for an ordinary user: root may read everything."""
    user = os.geteuid()
    place.chmod(mode)
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)
        place.chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o333, 0o444])
def test_what_a_locked_folder_holds_is_not_there(home: Path, mode: int) -> None:
    place = home / "place"
    (place / "inside").mkdir(parents=True)
    (place / "rows.csv").write_text("age\n3\n")
    with locked(place, mode):
        assert is_folder(place)
        found = is_folder(place / "inside"), is_file(place / "rows.csv")
        if mode == 0o444:
            names = [path.name for path in listed(place)]
        else:
            names = []
            with pytest.raises(DataError, match="place cannot be read: Permission denied"):
                listed(place)
    assert found == ((mode == 0o333,) * 2)
    assert names == (["inside", "rows.csv"] if mode == 0o444 else [])


def test_questions_in_a_locked_folder_are_refused_in_a_sentence(home: Path) -> None:
    task = read_task(project(home))
    plan = compile_model(nn.Linear(1, 2), input_shape=1, input_range=(0.0, 110.0)).plan
    finds = (lambda: find_questions(home, task), lambda: find_plan_questions(home, plan))
    for find in finds:
        assert find() == [home / "visits.csv"]
        with locked(home), pytest.raises(DataError, match="cannot be read: Permission denied"):
            find()


@pytest.mark.parametrize("where", ["clinics", "clinics/c1", "clinics/c1/ill"])
def test_pictures_in_a_locked_folder_are_refused_in_a_sentence(
    home: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "task.toml").write_text(PICTURES)
    for number in range(10):
        for shade, name in ((50, "ill"), (200, "well")):
            place = home / "clinics" / f"c{number}" / name
            place.mkdir(parents=True)
            Image.new("L", (8, 8), shade + number).save(place / "one.png")
    check = ["check-data", str(home / "task.toml")]
    assert main(check) == 0
    assert guess_pictures(home / "clinics", written_as="clinics")
    read_holdings.cache_clear()
    capsys.readouterr()
    refused = f"{home / where} cannot be read: Permission denied"
    with locked(home / where):
        assert main(check) == 1
        with pytest.raises(DataError, match=re.escape(refused)):
            guess_pictures(home / "clinics", written_as="clinics")
    assert capsys.readouterr().err == f"error: {refused}\n"


def test_tables_in_a_locked_folder_are_refused_in_a_sentence(home: Path) -> None:
    table = 'table = "visits.csv"\nclient-column = "household"'
    project(home, task=TASK.replace(table, 'clients = "clients"'))
    places = [home / "clients" / f"c{number}" for number in range(10)]
    for place in places:
        place.mkdir(parents=True)
        shutil.copy(home / "visits.csv", place / "rows.csv")
    task = read_task(home / "task.toml")
    assert len(read_holdings(task).names) == 8
    read_holdings.cache_clear()
    for place in (home / "clients", places[3]):
        with locked(place), pytest.raises(DataError, match="cannot be read: Permission denied"):
            read_holdings(task)
    with locked(places[0]):
        faults = check_node_folder(places[0])
    assert faults == [f"{places[0]} cannot be read: Permission denied"]


def test_no_passphrase_is_an_error_of_one_line(tmp_path: Path) -> None:
    """As Ctrl-D on a terminal gives it."""
    program = (
        "from pathlib import Path; from flower_app.commands.ask import AskError, _passphrase\n"
        "try: _passphrase(new=True)\nexcept AskError as error: print(f'error: {error}')"
    )
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if "PASSPHRASE" not in name}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        while b"New passphrase" not in seen:
            seen += os.read(ours, 1000)
        os.write(ours, b"\x04")
        assert process.communicate(timeout=60)[0] == (
            "error: no passphrase was given; nothing was asked\n"
        )
    os.close(ours)
