"""Pictures of one's own: a folder for each client, in it one for each class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flower_app.__main__ import main
from flower_app.commands.own_questions import find_questions, own_questions
from flower_app.tasks import build_for, node_examples, read_holdings, read_task, task_spec

TASK = """\
name = "stripes"
model = "cnn"
[data]
clients = "clients"
test-share = 0.25
[pictures]
side = 12
[target]
classes = ["across", "down"]
"""


def picture(path: Path, *, down: bool, size: int, seed: int) -> None:
    """Bright stripes on noise."""
    values = np.random.default_rng(seed).integers(0, 60, (size, size), dtype=np.uint8)
    (values.T if down else values)[:: size // 4] += 190
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    for client in range(8):
        for number in range(4):
            name = ("across", "down")[number % 2]
            picture(
                tmp_path / "clients" / f"c{client}" / name / f"{number}.png",
                down=bool(number % 2),
                size=12 if number < 3 else 24,
                seed=4 * client + number,
            )
    (tmp_path / "task.toml").write_text(TASK)
    return tmp_path / "task.toml"


def test_pictures_are_read_scaled_and_told(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (task.parent / "clients" / "c1" / "across" / "broken.png").write_bytes(b"no picture")
    (task.parent / "clients" / "c2" / "other").mkdir()
    assert main(["check-data", str(task)]) == 1
    output = capsys.readouterr()
    assert "pictures of other sizes (such as 24 by 24) scaled to 12 by 12" in output.err
    assert "1 picture left out" in output.err
    assert "broken.png cannot be read as a picture" in output.err
    assert "other: left out, it is none of the classes across, down" in output.err
    assert "24 pictures to train on" in output.out
    held = read_holdings(read_task(task))
    assert held.dataset.train.images.shape == (24, 1, 12, 12)
    assert 0 <= held.dataset.train.images.min() < held.dataset.train.images.max() <= 1


def test_a_node_and_whoever_asks_see_a_picture_alike(task: Path) -> None:
    own = read_task(task)
    place = task.parent / "clients" / "c3"
    examples = node_examples(own, place)
    assert sorted(examples.labels) == [0, 0, 1, 1]
    files = find_questions(place / "down", own)
    asked = [inputs for _, _, inputs in own_questions(files, own, notify=print)]
    for inputs in asked:
        assert isinstance(inputs, np.ndarray)
        same = (examples.inputs == inputs).all(axis=(1, 2, 3))
        assert examples.labels[same].tolist() == [1]


@pytest.mark.parametrize("model", ["cnn", "mlp", "logistic"])
def test_each_model_takes_pictures(task: Path, model: str) -> None:
    task.write_text(TASK.replace('"cnn"', f'"{model}"'))
    own = read_task(task)
    assert task_spec(own).shape == (1, 12, 12)
    assert sum(parameter.numel() for parameter in build_for(own).parameters()) > 0
