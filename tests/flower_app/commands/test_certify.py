"""The fidelity certificate by one command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flower_app.__main__ import main
from flower_app.data import encode, load_dataset
from flower_app.encrypted.model import compile_named
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from privacy.inference import certify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    # Models start from zero, which encodes to nothing.
    weights = {
        key: torch.randn_like(w) for key, w in build_model("hog-linear").state_dict().items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model": "hog-linear", "dataset": "mnist", "data-dir": ""}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_certificate_is_written_as_json_and_picture(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(folder), "--images", "5"]) == 0
    made = json.loads((folder / "certificate.json").read_text())
    assert made["images"] == 5
    assert made["agreement"] == 1.0
    assert 0 < made["worst_error"] < 2 * made["predicted_error"]
    assert made["plain_accuracy"] == made["encrypted_accuracy"]
    assert (folder / "certificate.png").read_bytes().startswith(b"\x89PNG")
    assert "100.00 % the same class" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_what_the_plan_predicts_holds_for_real_images(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name)
    torch.nn.init.normal_(model[-1].weight)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = load_dataset("mnist", data_dir=None).test.images[:12]
    compiled = compile_named(name, tmp_path / "model.safetensors")
    made = certify(compiled, encode(images, MODELS[name].kind), np.zeros(12, dtype=int))
    assert made.beyond_prediction == 0
    assert made.worst_error < made.predicted_error


@pytest.mark.parametrize(
    ("missing", "images", "words"),
    [
        ("config.json", 5, "not the folder of a run"),
        ("model.safetensors", 5, "holds no model"),
        (None, 0, "--images is 0"),
    ],
)
def test_a_model_that_cannot_be_certified_is_refused_with_the_reason(
    folder: Path, missing: str | None, images: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing:
        (folder / missing).unlink()
    assert main(["certify", str(folder), "--images", str(images)]) == 1
    assert words in capsys.readouterr().err
