"""``task.toml``: each fault is named with its value and the remedy."""

from pathlib import Path

import pytest

from flower_app.__main__ import main
from flower_app.errors import DataError, SettingError
from flower_app.settings import Settings
from flower_app.tasks import Number, build_for, read_holdings, read_task, server_test_data
from tests.flower_app.tasks.projects import TASK, project

FAULTS = {
    "not TOML": ("[columns]", "[columns", "is no TOML"),
    "brackets": ("[columns]", "a = " + "[" * 9999 + "\n[columns]", "nested too deeply"),
    "no name": ('name = "visits"\n', "", "name is missing"),
    "an unknown key": ("model =", "modell =", "modell = 'logistic' is not known; did you mean mod"),
    "an unknown key below": ("test-share", "test-shar", "did you mean test-share?"),
    "an unknown section": ("[privacy]", "[privat]", "privat = "),
    "a model of neither kind": ('"logistic"', '"forest"', "logistic, mlp, cnn, or 'module:func"),
    "a model for pictures": ('"logistic"', '"cnn"', "it is for pictures: choose logistic"),
    "a range turned round": ("[0, 110]", "[110, 0]", "age = [110, 0] is wrong; it must be the ra"),
    "a range of three": ("[0, 110]", "[0, 50, 110]", "[lowest, highest]"),
    "an infinite range": ("[0, 110]", "[0, inf]", "[lowest, highest]"),
    "a range beyond single precision": ("[0, 110]", "[0, 1e39]", "single precision tells apart"),
    "a range far from zero": ("[0, 110]", "[1600000000000, 1600000000001]", "a nearer origin"),
    "a range as narrow as nothing": ("[0, 110]", "[0, 1e-320]", "single precision tells apart"),
    "one category": ('["female", "male"]', '["female"]', "sex = ['female'] is wrong"),
    "equal categories": ('["female", "male"]', '["1", "1.0"]', "sex = ['1', '1.0'] is wrong"),
    "one class": ('["0", "1"]', '["1"]', "two or more different texts"),
    "classes without names": (', "a visit"]', "]", "as many as the classes, 2"),
    "the target as an input": ("age = [", "visit = [0, 1]\nage = [", "a model must not see it"),
    "the holder as an input": ("age = [", 'household = ["a", "b"]\nage = [', "client-column = 'ho"),
    "no column of clients": ('client-column = "household"\n', "", "client-column is missing"),
    "two places": ('table = "', 'clients = "x"\ntable = "', "names both clients (a folder) and"),
    "no place": ('table = "visits.csv"\n', "", "names neither clients (a folder) nor table"),
    "no test data": ("test-share = 0.2\n", "", "neither test nor test-share"),
    "two kinds of test data": ("test-share", 'test = "t.csv"\ntest-share', "both test and test-s"),
    "a share of all": ("test-share = 0.2", "test-share = 1", "test-share = 1 is wrong"),
    "no budget": ("epsilon = 2.0", "epsilon = 0", "epsilon = 0 is wrong; it must be a positive"),
    "a budget in quotes": ("epsilon = 2.0", 'epsilon = "2"', "epsilon = '2' is wrong"),
    "silos that nobody counted": ("epsilon = 2.0", 'mode = "silos"', "silos is missing"),
    "a setting of the other mode": ("epsilon = 2.0", "silos = 6", "silos = 6 is not known"),
    "an unknown mode": ("epsilon = 2.0", 'mode = "local"', "'clients' or 'silos'"),
    "training that is no number": ("[privacy]", '[training]\nrounds = "9"\n[privacy]', "rounds = "),
    "no columns": ('age = [0, 110]\nsex = ["female", "male"]\n', "", "the columns that the model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_remedy(fault: str, tmp_path: Path) -> None:
    old, new, words = FAULTS[fault]
    assert old in TASK
    path = project(tmp_path, task=TASK.replace(old, new, 1))
    with pytest.raises(SettingError) as refused:
        read_task(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nothing.toml.*cannot be read"):
        read_task(tmp_path / "nothing.toml")


def test_a_task_is_read(tmp_path: Path) -> None:
    task = read_task(project(tmp_path))
    assert task.columns[0] == Number("age", 0.0, 110.0)
    assert task.features == ("age", "sex = female", "sex = male")
    assert task.table == tmp_path / "visits.csv"
    assert task.settings == {
        "dataset": "visits",
        "model": "logistic",
        "mode": "clients",
        "epsilon": 2.0,
        "delta": 1e-3,
        "controller": "A clinic",
        "purpose": "who will need a doctor",
    }


def test_a_deployments_task_names_test_rows_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = 'table = "visits.csv"\nclient-column = "household"\ntest-share = 0.2\n'
    assert data in TASK
    task = TASK.replace(data, 'test = "visits.csv"\nranges-are-public = true\n')
    path = project(tmp_path, task=task)
    dataset = server_test_data(read_task(path))
    assert len(dataset.validation) + len(dataset.test) == 400
    assert main(["check-data", str(path)]) == 0
    said = capsys.readouterr().out
    assert "task.toml is good: 400 rows to test on." in said
    assert "those of a deployment lie on its nodes" in said
    with pytest.raises(DataError, match="names no data to train on"):
        read_holdings(read_task(path))
    with pytest.raises(SettingError, match="client-column = 'household' is for a table"):
        read_task(
            project(tmp_path, task=task.replace("test =", 'client-column = "household"\ntest ='))
        )


def test_what_all_parties_must_mean_alike_is_in_the_digest(tmp_path: Path) -> None:
    changes = {
        "a range": ("[0, 110]", "[0, 120]"),
        "the order of categories": ('"female", "male"', '"male", "female"'),
        "a class": ('classes = ["0", "1"]', 'classes = ["1", "0"]'),
        "the model": ('"logistic"', '"mlp"'),
        "whom it protects": ("[privacy]", '[privacy]\nmode = "silos"\nsilos = 5\npersons = 100'),
    }
    own = read_task(project(tmp_path / "own")).digest
    assert read_task(project(tmp_path / "copy")).digest == own
    for name, (old, new) in changes.items():
        other = read_task(project(tmp_path / name, task=TASK.replace(old, new, 1))).digest
        assert other != own, name


def test_settings_come_from_the_task_and_contradict_it_never(tmp_path: Path) -> None:
    path = str(project(tmp_path, task=TASK + "[training]\nrounds = 7\n"))
    settings = Settings.from_given({"task": path})
    assert (settings.epsilon, settings.delta, settings.rounds) == (2.0, 1e-3, 7)
    assert Settings.from_given({"task": path, "rounds": 9}).rounds == 9
    assert Settings.from_config(settings.as_config()) == settings
    for name, value in {
        "epsilon": 3.0,  # the app's default, but typed
        "delta": 1e-4,
        "mode": "silos",
        "model": "mlp",
        "dataset": "fashion-mnist",
        "partition": "iid",
    }.items():
        with pytest.raises(SettingError, match=rf"^{name} = .* is refused; "):
            Settings.from_given({"task": path, name: value})


OWN_MODELS = {
    "def build(inputs, classes): return nn.Sequential(nn.Linear(inputs, classes))": "",
    "def build(inputs, classes): return nn.Linear(inputs, classes + 1)": "end it with 2 outputs",
    "def build(inputs, classes): return nn.Linear(inputs + 1, classes)": "takes no inputs of shape",
    "def build(inputs, classes): return 3": "build gave int; return an nn.Module",
    "import sys\nsys.exit(2)": "cannot be imported (SystemExit: 2)",
    "def build(inputs, classes): raise SystemExit(2)": "failed (SystemExit: 2)",
    "def build(inputs, classes): raise KeyError('x')": "build(inputs, classes) failed (KeyError",
    "def other(inputs, classes): return 3": "has no function build",
    "import nothing_of_the_kind": "cannot be imported (ModuleNotFoundError",
}


@pytest.mark.parametrize("code", OWN_MODELS)
def test_a_model_by_a_users_function(code: str, tmp_path: Path) -> None:
    path = project(tmp_path, task=TASK.replace('"logistic"', '"mine:build"'))
    (tmp_path / "mine.py").write_text(f"from torch import nn\n{code}\n")
    words = OWN_MODELS[code]
    if not words:
        assert sum(p.numel() for p in build_for(read_task(path)).parameters()) == 8
        return
    with pytest.raises(SettingError) as refused:
        build_for(read_task(path))
    assert words in str(refused.value)
    assert str(refused.value).startswith("model = 'mine:build' is wrong")


def test_a_model_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    path = project(tmp_path, task=TASK.replace('"logistic"', '"mine:build"'))
    with pytest.raises(SettingError, match=r"put mine\.py beside task\.toml"):
        build_for(read_task(path))
