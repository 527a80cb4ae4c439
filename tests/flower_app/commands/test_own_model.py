"""A model of a user's own, from the page's code to answers: compiled, saved, served, asked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris

from flower_app.__main__ import main
from privacy.inference import PackedModel, ThreeParties, compile_model
from tests.privacy.inference.inference_models import linear
from tests.privacy.inference_service.serving import serve_command

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "how-to" / "own-model.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the files that the page's code writes."""
    folder = tmp_path_factory.mktemp("iris")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) <= 15
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code[1], {})  # noqa: S102 - our own page
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[list[str]]:
    """The arguments of ``ask`` that a running ``serve`` prints, in front of the questions."""
    with serve_command(folder / "iris.model") as (_, printed):
        printed.remove("QUESTIONS")
        yield [*printed, "--one-time-keys"]


def test_rows_of_a_file_are_answered_as_the_estimator_does(
    ask: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iris = load_iris()
    np.save(folder / "flowers.npy", iris.data[::30])
    right = [str(iris.target_names[label]) for label in iris.target[::30]]
    assert main([*ask, str(folder / "flowers.csv"), "--json"]) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["names"] for answer in answers] == [[name] for name in right]
    assert "note" not in printed.err
    plain = (folder / "flowers.csv").read_text().splitlines()
    turned = [",".join(["id", *line.split(",")[::-1]]) for line in plain]
    (folder / "turned.csv").write_text("\n".join(turned) + "\n")
    (folder / "nameless.csv").write_text("\n".join(plain[1:]) + "\n")
    names = ["turned.csv", "nameless.csv"]
    assert main([*ask, *(str(folder / name) for name in names)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [*right, *right]
    assert "turned.csv: left out, since the model takes none: id" in printed.err
    assert "nameless.csv: has no names; its columns are taken as sepal length (cm)" in printed.err
    assert main([*ask, str(folder / "flowers.npy"), "5.1,3.5,1.4,0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [*right, "setosa"]


def test_what_cannot_be_asked_is_told(
    ask: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = folder / "wide.csv"
    wide.write_text("a,b,c,d,e\n1,2,3,4,5\n")
    with (folder / "two.npy").open("wb") as several:
        np.savez(several, one=np.zeros(4), other=np.zeros(4))
    for question, words in (
        (",".join(["0.25"] * 100), "has 100 numbers; the plan's inputs have 4"),
        (str(folder / "two.npy"), "holds several arrays"),
        ("5.1,3.5,1.4", "has 3 numbers; the plan's inputs have 4"),
        ("51,3.5,1.4,0.2", "sepal length (cm) is 51, and the model answers for [4, 8]"),
        (str(wide), "has no column 'sepal length (cm)'; the plan takes sepal length (cm), "),
        ("nothing.csv", "is not there; give a CSV file, a .npy file"),
    ):
        assert main([*ask, question]) == 1
        assert words in capsys.readouterr().err
    alike = wide.with_name("alike.csv")
    alike.write_text("5.1,3.5,1.4,1.4\n5.1,3.5,1.4,0.2\n")
    assert main([*ask, str(alike)]) == 0
    assert capsys.readouterr().out.count("setosa") == 2
    text = wide.with_name("words.csv")
    header = (folder / "flowers.csv").read_text().splitlines()[0]
    text.write_text(header + "\n5,3,1,small\n5,3,1,nan\n5.1,3.5,1.4,0.2\n")
    assert main([*ask, str(text)]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("words.csv[2]: setosa\n")
    assert "words.csv[0]: petal width (cm) is 'small', which is no number" in printed.err
    assert "words.csv[1]: petal width (cm) is nan, and the model answers for [0, 3]" in printed.err


def test_another_models_plan_is_refused(
    ask: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.loads((folder / "iris-plan.json").read_text())
    other = folder / "other.json"
    place = ask.index("--plan") + 1
    for change, words in (
        ({"model_version": "0" * 32}, "the service has another model, or the same compiled anew"),
        ({"class_names": []}, "the service has another model"),
        ({"batch_size": 0}, "is none: batch_size is 0"),
    ):
        other.write_text(json.dumps(plan | change))
        assert main([*ask[:place], str(other), *ask[place + 1 :], "5,3,1,0"]) == 1
        assert words in capsys.readouterr().err
    assert main([*ask, "--task", str(other), "5,3,1,0"]) == 1
    assert "--task contradicts --plan" in capsys.readouterr().err


def test_files_that_cannot_be_served_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder / "iris-plan.json")]) == 1
    assert "iris-plan.json cannot be read" in capsys.readouterr().err
    file = folder / "three.model"
    parties = ThreeParties("a hospital", "a patient", "a cloud")
    compile_model(linear(6), input_shape=6, input_range=(0.0, 1.0), parties=parties).save(file)
    assert PackedModel.load(file).plan.parties
    assert main(["serve", str(file)]) == 1
    assert "is a model for a third party, a cloud" in capsys.readouterr().err
