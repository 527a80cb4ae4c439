"""Pictures of one's own: a folder for each client, in it one for each class."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flower_app.__main__ import main
from flower_app.commands.own_questions import find_questions, own_questions
from flower_app.errors import DataError
from flower_app.tasks import (
    build_for,
    node_examples,
    read_holdings,
    read_picture,
    read_task,
    task_spec,
)
from flower_app.tasks.pictures import Pictures

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
    (task.parent / "clients" / "c3" / "down" / "scan.dcm").write_bytes(b"of another kind")
    (task.parent / "clients" / "c4" / "loose.png").write_bytes(b"in no class")
    (task.parent / "clients" / "stray.png").write_bytes(b"nobody's")
    (task.parent / "clients" / "c4" / "down" / "Thumbs.db").write_bytes(b"a system's")
    assert main(["check-data", str(task)]) == 1
    output = capsys.readouterr()
    assert "c0 and 7 others, each: 1 picture (such as down/3.png)" in output.err
    assert output.err.count("scaled to") == 1
    assert "1 picture (such as down/3.png): of another size, scaled to 12 by 12" in output.err
    assert "1 file left out that end in none of .png, .jpg" in output.err
    assert "(such as scan.dcm)" in output.err
    assert "1 file left out that lie in no class's folder (such as loose.png)" in output.err
    assert "1 file left out that lie in no client's folder (such as stray.png)" in output.err
    assert "Thumbs" not in output.err
    assert "1 picture left out" in output.err
    assert "broken.png is no picture" in output.err
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


RAMP = np.tile(np.linspace(0, 1, 12), (12, 1))
INK = np.stack([np.zeros((12, 12)), RAMP], axis=2)  # black, and how opaque it is
# How a ramp is written, whether a model sees it as it is, and a word of the note or the refusal.
KINDS = {
    "16.png": (Image.fromarray((65535 * RAMP).astype(np.uint16)), True, "16 bits"),
    "12-of-16.png": (Image.fromarray((4095 * RAMP).astype(np.uint16)), False, "if they have 12"),
    "32.tif": (Image.fromarray(RAMP.astype(np.float32)), False, "32 bits"),
    "transparent.png": (Image.fromarray((255 * INK[:, ::-1]).astype(np.uint8)), True, "on white"),
    "turned.jpg": (Image.fromarray((255 * RAMP.T[::-1]).astype(np.uint8)), True, "turned"),
    "two.gif": (Image.fromarray((255 * RAMP).astype(np.uint8)), False, "2 pictures"),
    "two-levels.png": (Image.fromarray(RAMP > 0.5), True, ""),
    "palette.png": (Image.fromarray((255 * RAMP).astype(np.uint8)).convert("P"), True, ""),
}


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_another_kind_is_the_same_or_refused(
    tmp_path: Path, name: str, *, colours: bool
) -> None:
    picture, is_taken, word = KINDS[name]
    path, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    others = {"save_all": True, "append_images": [Image.new("L", (12, 12))]}
    picture.save(path, exif=exif, **(others if name == "two.gif" else {}))
    form = Pictures(12, colours)
    if not is_taken:
        with pytest.raises(DataError, match=word):
            read_picture(path, form)
        return
    seen = read_picture(path, form)
    assert any(word in note for note in seen.notes) if word else not seen.notes
    wanted = np.round(RAMP) if name == "two-levels.png" else RAMP
    np.testing.assert_allclose(seen.values, np.broadcast_to(wanted, form.shape), atol=0.02)


@pytest.mark.parametrize("model", ["cnn", "mlp", "logistic"])
def test_each_model_takes_pictures(task: Path, model: str) -> None:
    task.write_text(TASK.replace('"cnn"', f'"{model}"'))
    own = read_task(task)
    assert task_spec(own).shape == (1, 12, 12)
    assert sum(parameter.numel() for parameter in build_for(own).parameters()) > 0


def test_a_task_is_guessed_from_a_folder_of_pictures(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = task.parent / "clients"
    values = np.zeros((30, 20, 3), dtype=np.uint8)
    values[..., 0] = 200
    Image.fromarray(values).save(place / "c4" / "down" / "red.png")
    project = tmp_path / "guessed"
    assert main(["new", str(project), "--from-pictures", str(place)]) == 0
    words = capsys.readouterr().out
    for line in (
        "clients: 8 folders, such as c0",
        "classes: across (16 pictures), down (17 pictures)",
        "pictures: in colours, the shorter side 12 to 24 pixels, in 33 pictures looked at; each is "
        "scaled to 12 by 12",
        "mode: silos, for there are 8 clients: each picture is hidden by itself",
        "write ranges-are-public = true",
    ):
        assert line in words
    guessed = project / "task.toml"
    assert main(["run", f"task={guessed}"]) == 1
    assert "ranges-are-public = false" in capsys.readouterr().err
    own = read_task(guessed)
    assert own.classes == ("across", "down")
    assert task_spec(own).shape == (3, 12, 12)
    assert main(["check-data", str(guessed)]) == 0
    assert "8 silos" in capsys.readouterr().out


def test_pictures_in_another_order_are_refused(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = task.parent / "clients" / "c0"
    for place, words in (
        (client, "pictures lie in .*across itself; order them so"),
        (client / "down", "pictures lie in .*down itself"),
        (tmp_path / "nowhere", "is not a folder; give one with a folder for each client"),
    ):
        assert main(["new", str(tmp_path / "p"), "--from-pictures", str(place)]) == 1
        assert re.search(words, capsys.readouterr().err)
