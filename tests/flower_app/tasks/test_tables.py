"""CSV files: what is not as described is told, and the order of rows changes nothing."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from flower_app.__main__ import main
from flower_app.commands.own_questions import find_questions, own_questions
from flower_app.errors import DataError
from flower_app.settings import Settings
from flower_app.tasks import (
    Examples,
    encoded,
    node_examples,
    read_holdings,
    read_questions,
    read_task,
)
from flower_app.tasks.columns import Category, Number, can_be_told_apart, canonical
from flower_app.tasks.tables import read_examples
from flower_app.training.work import own_examples, tell_of_servers_data
from privacy.inference import InputContract
from privacy.inference.input_range import bounds
from tests.flower_app.tasks.projects import HEADER, TASK, project, rows

GOOD = [f"h{n},p{n},{10 * n},female,{n % 2}" for n in range(8)]

# What is added to a good file, words that tell of it, and the rows that remain.
ADDED: dict[str, tuple[str, str, int]] = {
    "missing numbers": ("h9,p9,,male,1", "age: 1 value is missing", 9),
    "missing categories": ("h9,p9,3,NA,1", "sex: 1 value is missing", 9),
    "numbers beyond the range": ("h9,p9,999,male,1", "(such as '999' in line 10)", 9),
    "text for a number": ("h9,p9,old,male,1", "age: 1 value is no number", 9),
    "a number for Python alone": ("h9,p9,1_0,male,1", "'1_0' in line 10", 9),
    "another category": ("h9,p9,3,other,1", "none of its categories", 9),
    "another class": ("h9,p9,3,male,2", "1 row left out whose visit is none of 0, 1", 8),
    "no class": ("h9,p9,3,male,", "1 row left out whose visit", 8),
    "nobody's row": (",p9,3,male,1", "1 row without household", 8),
    "ragged rows": ("h9,p9,3,male", "(such as line 10)", 8),
    "an open quote": ('h9,p9,"3,male,1\nh9,p9,3,male,1', "a quotation mark too few", 9),
    "bytes of another encoding": ("h9,p9,3,m\udce4nnlich,1", "no UTF-8; save it in UTF-8", 9),
    "ends of lines in a cell": ('h9,"p9\n\nx",3,male,1', "", 9),
    "a row in a cell": ('h9,"p9\nh8,p10,3,male,0\n",3,male,1', "", 9),
    "a cell that ends nowhere": ('h9,"p9\nh8,p9,3,male,0', "(such as line 10)", 9),
    "Unicode's ends of lines": ("h9,p9\x0b\x85\u2028,3,male,1", "", 9),
    "clients with zeros before": ("09,p9,3,male,1\n9.0,p9,3,male,1", "such as '09' and '9.0'", 10),
    "classes as floats": ("h9,p9,3,male,1.0", "", 9),
    "empty lines": ("\n,,,,\n", "", 8),
}
FILES: dict[str, tuple[str, str, int]] = {
    "a byte-order mark": ("\ufeff" + "\n".join([HEADER, *GOOD]), "", 8),
    "Windows' ends of lines": ("\r\n".join([HEADER, *GOOD]), "", 8),
    "semicolons and decimal commas": (
        "\n".join([HEADER, *GOOD, "h9,p9,3#5,male,1"]).replace(",", ";").replace("#", ","),
        "decimal comma",
        9,
    ),
    "no column": ("\n".join([HEADER.replace("age", "Age"), *GOOD]), "no column 'age' (it has", 0),
    "a name twice": ("\n".join([HEADER.replace("sex", "age"), *GOOD]), "columns named 'age'", 0),
    "names alone": (HEADER, "no row can be used", 0),
    "nothing": ("", "is empty", 0),
    "no text": ("\0\1\2", "is no CSV file", 0),
}
TABLES = {
    name: ("\n".join([HEADER, *GOOD, line]), words, remaining)
    for name, (line, words, remaining) in ADDED.items()
} | FILES


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_not_as_described(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words, remaining = TABLES[name]
    path = project(tmp_path)
    (tmp_path / "visits.csv").write_bytes(content.encode(errors="surrogateescape"))
    status = main(["check-data", str(path)])
    output = capsys.readouterr()
    assert words in output.err
    if not remaining:
        assert status == 1
        return
    task = read_task(path)
    assert len(read_examples(tmp_path / "visits.csv", task.form)) == remaining
    left_out = name in ("an open quote", "bytes of another encoding", "a cell that ends nowhere")
    left_out = left_out or (remaining == 8 and bool(words))
    assert status == int(left_out)


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("1", "01", True),
        ("1.50", "+1.5", True),
        ("-0.0", "0", True),
        ("1e+05", "100000", True),
        (".5", "0.50", True),
        ("110105194912310021", "110105194912310022", False),
        ("0e001", "0e002", False),
        ("12e5", "1200000", False),
        ("inf", "Infinity", False),
        ("p1", "P1", False),
    ],
)
def test_which_texts_are_one(one: str, other: str, *, are_one: bool) -> None:
    assert (canonical(one) == canonical(other)) is are_one


def test_long_numbers_of_persons_stay_apart(tmp_path: Path) -> None:
    lines = [f"h1,1101051949123100{n:02},{n},male,{n % 2}" for n in range(50)]
    task = TASK.replace("test-share = 0.2", 'test-share = 0.2\nperson-column = "person"')
    own = read_task(project(tmp_path, task=task, lines=lines))
    assert len(set(read_examples(tmp_path / "visits.csv", own.form).keys)) == 50


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    shuffled = rows()
    np.random.default_rng(1).shuffle(shuffled)
    one = read_holdings(read_task(project(tmp_path / "one")))
    other = read_holdings(read_task(project(tmp_path / "other", lines=shuffled)))
    assert one.names == other.names
    for part in ("train", "validation", "test"):
        for field in ("images", "labels"):
            values = (getattr(getattr(each.dataset, part), field) for each in (one, other))
            np.testing.assert_array_equal(*values)


def test_files_that_are_no_tables_are_named(tmp_path: Path) -> None:
    task = TASK.replace('table = "visits.csv"\nclient-column = "household"', 'clients = "clients"')
    own = project(tmp_path, task=task)
    table = "\n".join([HEADER, *GOOD])
    for name in ("a.csv", "B.CSV", "c/visits.CSV", "c/notes.xlsx", "d.xlsx", "e.tsv", ".hidden"):
        (tmp_path / "clients" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clients" / name).write_text(table)
    held, folder = read_holdings(read_task(own)), tmp_path / "clients"
    assert held.names == ("B.CSV", "a.csv")  # the third is for testing
    assert held.faults == (
        f"{folder}: 2 files left out that do not end in .csv (such as d.xlsx)",
        f"{folder / 'c'}: 1 file left out that do not end in .csv (such as notes.xlsx)",
    )


def test_what_is_left_out_stands_in_the_logs_of_servers_and_nodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = project(tmp_path, lines=[*GOOD, "h9,p9,999,male,7", "h9,p9,999,male,1"])
    settings = Settings.from_given({"task": str(path)})
    for tell in (
        lambda: tell_of_servers_data(settings),
        lambda: own_examples(settings, tmp_path / "visits.csv"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            tell()
        assert "1 row left out whose visit is none of 0, 1 (such as '7' in line 10)" in caplog.text
        assert "age: 1 value is beyond its range" in caplog.text


def test_a_row_of_values_may_be_longer_than_a_files_name(tmp_path: Path) -> None:
    columns = "".join(f"measurement_{i} = [0, 1]\n" for i in range(40))
    own = read_task(project(tmp_path, task=TASK.replace("age = [0, 110]\n", columns)))
    row = Path(",".join(f"measurement_{i}=0.25" for i in range(40)))
    ((_, name, inputs),) = own_questions(find_questions(row, own), own, notify=print)
    assert name == str(row)
    assert isinstance(inputs, np.ndarray)
    assert inputs[:40].tolist() == [0.25] * 40


def test_notes_of_a_typed_row_name_no_line(tmp_path: Path) -> None:
    own, notes = read_task(project(tmp_path)), list[str]()
    list(own_questions([Path("sex=other,age=200")], own, notify=notes.append))
    assert notes == [
        "age: 1 value is beyond its range [0, 110], brought to its nearer end (such as '200')",
        "sex: 1 value is none of its categories (female, male), taken as missing (such as 'other')",
    ]
    del notes[:]
    list(own_questions([Path("sex=male")], own, notify=notes.append))
    assert notes == ["age: 1 value is missing, taken as the middle of its range, 55"]


def test_a_row_becomes_what_its_columns_say(tmp_path: Path) -> None:
    task = read_task(project(tmp_path))
    (tmp_path / "q.csv").write_text("sex,age\nmale,33\n,\n FEMALE,200\nfemale,0\n")
    inputs, notes = read_questions(tmp_path / "q.csv", task.columns)
    assert inputs.tolist() == [[33, 0, 1], [55, 0, 0], [110, 0, 0], [0, 1, 0]]
    assert len(notes) == 4


def test_whole_clients_are_kept_for_testing(tmp_path: Path) -> None:
    held = read_holdings(read_task(project(tmp_path)))
    assert len(held.names) == 40
    assert held.shares.sizes.tolist() == [8] * 40
    assert len(held.dataset.validation) + len(held.dataset.test) == 80
    trained = {tuple(row) for row in held.dataset.train.images.tolist()}
    assert trained  # the labels of those for testing are nobody's who is protected
    assert len(held.dataset.train) == 320


SILOS = TASK.replace("[privacy]", '[privacy]\nmode = "silos"\nsilos = 5\npersons = 100').replace(
    "[data]", '[data]\nperson-column = "person"'
)


def test_persons_are_kept_for_testing_each_by_itself(tmp_path: Path) -> None:
    lines = rows(5, 80)
    task = read_task(project(tmp_path / "all", task=SILOS, lines=lines))
    held = read_holdings(task)
    fewer = [line for line in lines if not line.startswith("h00,h00-7,")]
    without = read_holdings(read_task(project(tmp_path / "less", task=SILOS, lines=fewer)))
    for silo in range(5):
        trained, tested = held.training[silo], held.testing[silo]
        assert not set(trained.keys) & set(tested.keys)
        assert len(trained) + len(tested) == 80
        gone = set(without.training[silo].keys + without.testing[silo].keys)
        for before, after in ((trained, without.training[silo]), (tested, without.testing[silo])):
            assert set(after.keys) == set(before.keys) & gone
    assert 0 < sum(map(len, held.testing)) < 160


def test_a_node_reads_its_own_file_and_divides_it_as_a_simulation_does(tmp_path: Path) -> None:
    lines = rows(5, 40)
    task = read_task(project(tmp_path, task=SILOS, lines=lines))
    own = tmp_path / "node"
    own.mkdir()
    (own / "mine.csv").write_text(
        "\n".join([HEADER, *(line for line in lines if line.startswith("h02,"))])
    )
    simulated = read_holdings(task)

    def content(examples: Examples) -> list[list[float]]:
        return [[*row, label] for row, label in zip(examples.inputs, examples.labels, strict=True)]

    for test, part in ((False, simulated.training[2]), (True, simulated.testing[2])):
        mine = node_examples(task, own, test=test, apart=True)
        assert sorted(map(str, content(mine))) == sorted(map(str, content(part)))
    (own / "more.csv").write_text(HEADER)
    with pytest.raises(DataError, match=r"holds mine\.csv, more\.csv; leave one"):
        node_examples(task, own)


ENDS = st.decimals(-1000, 1000, places=3).map(float)


@given(ENDS, ENDS, st.one_of(ENDS.map(str), st.sampled_from(["", "-1e9", "1e9", "nan", "inf"])))
@example(0.0, 0.1, "0.1")
@example(0.7, 99.9, "-7")
@settings(deadline=None)
def test_whatever_a_cell_holds_its_value_is_in_the_range_that_a_plan_is_proved_for(
    one: float, other: float, cell: str
) -> None:
    low, high = sorted((one, other))
    assume(can_be_told_apart(low, high))
    columns = (Number("a", low, high), Category("b", ("x", "y")))
    inputs, _ = encoded(columns, [[cell, "x"]], [1], {"a": 0, "b": 1}, commas=False)
    contract = InputContract((3,), ([low, 0, 0], [high, 1, 1]), classes=2)
    least, most = bounds(contract.input_range, (3,))
    assert bool((least <= inputs).all() and (inputs <= most).all())
