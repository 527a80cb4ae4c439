"""A compiled model as a file: the same answers, and refusals of what is no such file."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.array_files import ArrayFile
from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    Evaluator,
    EvaluatorPool,
    EvaluatorProcess,
    MeasurementOwner,
    PackedModel,
    Polynomial,
    Square,
    ThreeParties,
    certify,
    compile_model,
)
from privacy.inference.errors import ModelFileError
from privacy.inference.stored import written_program
from tests.privacy.inference.compiler.test_graphs import UNREAD, Paths, Selected
from tests.privacy.inference.inference_models import linear, tutorial_cnn

ROOT = Path(__file__).parents[3]
PARTIES = ThreeParties("a hospital", "a patient", "a cloud")
RANGES = (np.zeros(6), np.arange(1.0, 7.0))


def small(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), *middle, nn.Linear(4, 3))


CASES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "cnn": (tutorial_cnn(), {"input_shape": (1, 28, 28)}),
    "linear": (linear(), {"input_shape": 784}),
    "batch": (small(Square()), {"input_shape": 6, "batch_size": 3}),
    "linear batch": (linear(6), {"input_shape": 6, "batch_size": 2}),
    "ranges by feature": (small(Square()), {"input_shape": 6, "input_range": RANGES}),
    "degree 7": (
        small(Polynomial([0.5, 1.0, 0.3, 0.2, 0.1, 0.1, 0.05, 0.02])),
        {"input_shape": 6, "class_names": ["a", "b", "c"]},
    ),
    "paths": (Paths(), {"input_shape": 8}),
    "paths in a batch": (Paths(), {"input_shape": 8, "batch_size": 2}),
    "elements as they are": (Selected(UNREAD["squares of squares"]), {"input_shape": 7}),
    "three parties": (small(Square()), {"input_shape": 6, "parties": PARTIES}),
    "one map, three parties": (linear(6), {"input_shape": 6, "parties": PARTIES}),
}


def compiled_case(name: str) -> CompiledModel:
    torch.manual_seed(0)
    model, arguments = CASES[name]
    return compile_model(model, **{"input_range": (0.0, 1.0)} | arguments)


def logits(model: PackedModel, x: np.ndarray) -> np.ndarray:
    plan = model.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    if plan.parties:
        weights = model.encrypt_weights(material)
        evaluator: Evaluator = BlindEvaluator(plan, material, weights, name=plan.parties[2])
    else:
        evaluator = Evaluator(model, material)
    return owner.logits(evaluator.evaluate(owner.encrypt(x if plan.batch_size > 1 else x[0])))


@pytest.mark.parametrize("name", CASES)
def test_a_model_from_a_file_is_the_same(name: str, tmp_path: Path) -> None:
    compiled, path = compiled_case(name), tmp_path / "a.model"
    compiled.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = PackedModel.load(path)
    assert type(loaded) is PackedModel
    assert loaded.plan == compiled.plan
    assert loaded.evaluator_bytes == compiled.evaluator_bytes
    (outline, arrays), (expected, others) = map(written_program, (loaded.program, compiled.program))
    assert outline == expected
    assert arrays.keys() == others.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, others[key])
    x = np.random.default_rng(0).uniform(
        0, 1, (compiled.plan.batch_size, *compiled.plan.input_shape)
    )
    error = np.abs(logits(loaded, x) - compiled.predict(x)).max()
    assert error <= 2.0**compiled.plan.worst_error_bits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "a.model"
    compiled_case("ranges by feature").save(path)
    return path


def test_it_is_evaluated_by_a_program_that_loads_no_pytorch(file: Path) -> None:
    program = (
        "import sys, runpy\n"
        "sys.modules['torch'] = None\n"
        "sys.argv[1:] = sys.argv[2:]\n"
        "runpy.run_module('privacy.inference.evaluator', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "", str(file)]
    with EvaluatorPool(lambda: EvaluatorProcess(command, folder=ROOT), processes=1) as pool:
        assert pool.plan == PackedModel.load(file).plan


def test_it_cannot_be_compared_with_a_model_that_it_does_not_hold(file: Path) -> None:
    with pytest.raises(TypeError, match="has no PyTorch model to compare with"):
        certify(PackedModel.load(file), np.zeros((1, 6)), [0])  # type: ignore[arg-type]


def changed(path: Path, tmp_path: Path, change: Any) -> Path:
    """The file with its format, content or arrays changed, and signed anew."""
    given = ArrayFile.load(path)
    parts = {
        "format": given.format,
        "content": json.loads(given.text),
        "arrays": dict(given.arrays),
    }
    parts["content"]["plan"] = json.loads(parts["content"]["plan"])
    change(parts)
    parts["content"]["plan"] = json.dumps(parts["content"]["plan"])
    other = tmp_path / "other.model"
    ArrayFile(parts["format"], json.dumps(parts["content"]), parts["arrays"]).save(other)
    return other


def test_other_and_damaged_files_are_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(ModelFileError, match=r"other cannot be read: No such file"):
        PackedModel.load(other)
    for content in (b"", b"\x00" * 100, file.read_bytes()[:-1], b"\xff" * 8 + file.read_bytes()):
        other.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"cannot be read \(.*CompiledModel.save wrote"):
            PackedModel.load(other)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    other.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged or altered after it was written"):
        PackedModel.load(other)
    for written, words in (("bloomseal-model-9", "by another version"), ("", "is no model")):
        path = changed(file, tmp_path, lambda parts, written=written: parts.update(format=written))
        with pytest.raises(ModelFileError, match=words):
            PackedModel.load(path)
    with other.open("wb") as sparse:
        sparse.truncate(1 << 35)
    with pytest.raises(ModelFileError, match="more than any model here"):
        PackedModel.load(other)


def test_arrays_that_do_not_fit_are_refused_by_name(file: Path, tmp_path: Path) -> None:
    def put(name: str, value: Any) -> Any:
        return lambda parts: parts["arrays"].update({name: value})

    nan = np.full(3, np.nan)
    for change, words in (
        (put("last.0.bias", np.zeros(4)), r"last.0.bias is float64 of shape \(4,\)"),
        (put("last.0.bias", nan[:3]), "last.0.bias holds numbers that are not finite"),
        (put("more", np.zeros(4)), "more is unknown"),
        (lambda parts: parts["arrays"].pop("last.0.bias"), "last.0.bias is missing"),
        (lambda parts: parts["content"]["plan"].update(logits=4), "answers read 3 coefficients"),
        (lambda parts: parts["content"].pop("program"), "program"),
    ):
        with pytest.raises(ModelFileError, match=words):
            PackedModel.load(changed(file, tmp_path, change))


STRANGE = [None, True, -1, 0, 1, 2, 3, 1 << 40, 0.5, -1e300, 1e300, "", [], [0], [[5]], {}]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    below = [places(v, (*path, k)) for k, v in inner if isinstance(v, dict | list) and v]
    keys = value if isinstance(value, dict) else range(len(value))
    return [(*path, key) for key in keys] + [place for each in below for place in each]


@pytest.mark.parametrize("name", ["degree 7", "paths", "batch", "three parties"])
@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_that_a_stranger_made_is_refused_or_answers(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.model"
    if not path.exists():
        compiled_case(name).save(path)

    def change(parts: dict[str, Any]) -> None:
        program = parts["content"]["program"]
        *way, last = data.draw(st.sampled_from(places(program)))
        for key in way:
            program = program[key]
        program[last] = data.draw(st.sampled_from(STRANGE))

    try:
        loaded = PackedModel.load(changed(path, tmp_path, change))
    except ModelFileError:
        return
    shape = loaded.plan.input_shape
    try:
        logits(loaded, np.full((loaded.plan.batch_size, *shape), 0.5))
    except ValueError:  # its weights round to zero, or are too large
        return


def test_matrices_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    compiled_case("batch").save(path)
    for part in ("columns", "structure.columns"):

        def change(parts: dict[str, Any], part: str = part) -> None:
            array = parts["arrays"][f"layers.0.maps.0.{part}"].copy()
            array[0] = 1 << 30
            parts["arrays"][f"layers.0.maps.0.{part}"] = array

        with pytest.raises(ModelFileError, match=r"no matrix of shape \(4, 6\)"):
            PackedModel.load(changed(path, tmp_path, change))
