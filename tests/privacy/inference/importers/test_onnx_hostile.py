"""A stranger's ONNX file is read within limits, and refused in a sentence."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from privacy.inference import from_onnx
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers import onnx_file, onnx_models
from tests.privacy.inference.importers.onnx_graphs import answers, node, reference, save

ROOT = Path(__file__).parents[4]
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def linear(path: Path, **options: Any) -> Path:
    return save(path / "model.onnx", [node("Gemm", "x w")], [4], {"w": WEIGHT}, **options)


def changed(path: Path, change: Any) -> Path:
    """A file after a change of its parsed form."""
    file = linear(path)
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def external(path: Path, content: bytes = WEIGHT.tobytes(), **entries: Any) -> Path:
    """A file whose weight lies in another one."""

    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in ({"location": "weights.bin"} | entries).items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)

    (path / "weights.bin").write_bytes(content)
    return changed(path, change)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    inputs = np.ones((2, 4), dtype=np.float32)
    expected = inputs @ WEIGHT
    for content, entries in (
        (WEIGHT.tobytes(), {}),
        (b"12345678" + WEIGHT.tobytes(), {"offset": 8, "length": WEIGHT.nbytes}),
        (WEIGHT.tobytes() + b"more", {"length": WEIGHT.nbytes, "checksum": "not looked at"}),
    ):
        path = external(tmp_path, content, **entries)
        assert np.allclose(answers(from_onnx(path), inputs), expected)


def test_weights_are_found_beside_the_file_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(from_onnx(path.name)) == 1


@pytest.mark.parametrize(
    ("content", "entries", "words"),
    [
        (WEIGHT.tobytes(), {"location": "../weights.bin"}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": "/etc/passwd"}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": "a/weights.bin"}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": "a\\weights.bin"}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": ".."}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": ""}, "outside the model's own folder"),
        (WEIGHT.tobytes(), {"location": "other.bin"}, "no file beside the model"),
        (WEIGHT.tobytes()[:-1], {}, "not in 'weights.bin'"),
        (WEIGHT.tobytes(), {"offset": 4}, "not in 'weights.bin'"),
        (WEIGHT.tobytes(), {"offset": -4}, "not in 'weights.bin'"),
        (WEIGHT.tobytes(), {"length": 4}, "not in 'weights.bin'"),
        (WEIGHT.tobytes(), {"length": 10**30}, "not in 'weights.bin'"),
        (WEIGHT.tobytes(), {"offset": "here"}, "no place in its file"),
    ],
)
def test_weights_elsewhere_are_refused(
    content: bytes, entries: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        from_onnx(external(tmp_path, content, **entries))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = external(tmp_path / "model")
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "model" / "weights.bin").unlink()
    (tmp_path / "model" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedModelError, match="no file beside the model"):
        from_onnx(path)


def test_files_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    size = path.stat().st_size
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", size + WEIGHT.nbytes)
    assert len(from_onnx(path)) == 1
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", size + WEIGHT.nbytes - 1)
    with pytest.raises(UnsupportedModelError, match="files hold more than"):
        from_onnx(path)
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", size - 1)
    with pytest.raises(UnsupportedModelError, match="files hold more than"):
        from_onnx(path)


def set_dims(*dims: int) -> Any:
    def change(model: Any) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def set_field(name: str, value: Any) -> Any:
    return lambda model: setattr(model.graph.initializer[0], name, value)


def input_dims(*dims: int) -> Any:
    def change(model: Any) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for size in dims:
            entry = shape.dim.add()
            if size is not None:
                entry.dim_value = size

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_dims(4, 4), "does not hold the numbers of its shape"),
        (set_dims(10**9, 10**9), "does not hold the numbers of its shape"),
        (set_dims(-1, 3), r"has shape \(-1, 3\)"),
        (set_field("data_type", TensorProto.STRING), "is of STRING"),
        (set_field("data_type", TensorProto.INT8), "is of INT8.*without quantisation"),
        (set_field("data_type", 99), "unknown kind 99"),
        (lambda model: model.graph.sparse_initializer.add(), "sparse weights"),
        (lambda model: setattr(model.opset_import[0], "version", 6), "opset 6"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "opset 99"),
        (lambda model: setattr(model.graph.node[0], "domain", "evil"), "Gemm .* none of"),
        (lambda model: setattr(model.graph.node[0], "op_type", "X\n" * 99), r"X\\nX"),
        (lambda model: model.functions.add(), "functions of its own"),
        (lambda model: model.graph.ClearField("node"), "holds no model"),
        (lambda model: model.graph.ClearField("output"), "holds no model"),
        (lambda model: model.graph.ClearField("input"), "depend on any input"),
        (lambda model: model.graph.input[0].ClearField("type"), "another kind"),
        (input_dims(None, None), "shape \\(open\\) behind"),
        (input_dims(1, -4), "behind the batch's axis"),
        (input_dims(), "behind the batch's axis"),
        (input_dims(1, 5), "rows of weights"),
        (input_dims(None, 10**12), "rows of weights"),
    ],
)
def test_malformed_files_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        from_onnx(changed(tmp_path, change))


def test_growing_constants_are_refused(tmp_path: Path) -> None:
    """Thirty doublings of a constant; and a shape that nobody could fill."""
    nodes, name = [], "c"
    for index in range(30):
        nodes.append(node("Concat", f"{name} {name}", f"c{index}", axis=0))
        name = f"c{index}"
    nodes += [node("Reshape", f"{name} t", "w"), node("Gemm", "x w")]
    weights = {"c": np.ones(1000, np.float32), "t": np.array([4, -1])}
    with pytest.raises(UnsupportedModelError, match="constant"):
        from_onnx(save(tmp_path / "m.onnx", nodes, [4], weights))
    for shape in ([10**6, 10**6], [-5]):
        filled = [node("ConstantOfShape", "s", "c"), node("Mul", "x c")]
        path = save(tmp_path / "m.onnx", filled, [4], {"s": np.array(shape)})
        with pytest.raises(UnsupportedModelError, match="makes a constant"):
            from_onnx(path)
    outer = [node("Mul", "a b", "c"), node("Mul", "x c")]
    sides = {"a": np.ones((10**5, 1), np.float32), "b": np.ones((1, 10**5), np.float32)}
    with pytest.raises(UnsupportedModelError, match="too large"):
        from_onnx(save(tmp_path / "m.onnx", outer, [4], sides))
    padded = [node("Pad", "x p")]
    path = save(tmp_path / "m.onnx", padded, [4], {"p": np.array([0, 0, 0, 10**12])})
    with pytest.raises(UnsupportedModelError, match="which is not taken"):
        from_onnx(path)


def test_constants_are_limited_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Neg", f"c{i}" if i else "c", f"c{i + 1}") for i in range(8)]
    path = save(tmp_path / "m.onnx", [*nodes, node("Mul", "x c8")], [4], {"c": WEIGHT[:, 0]})
    monkeypatch.setattr(onnx_models, "MAX_ELEMENTS", 16)  # twice as many in all
    assert len(from_onnx(path)) == 1
    monkeypatch.setattr(onnx_models, "MAX_ELEMENTS", 15)
    with pytest.raises(UnsupportedModelError, match="more constants than are taken"):
        from_onnx(path)


def test_many_operators_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Identity", f"v{i}" if i else "x", f"v{i + 1}") for i in range(30)]
    path = save(tmp_path / "m.onnx", [*nodes, node("Relu", "v30")], [4])
    assert len(from_onnx(path)) == 1
    monkeypatch.setattr(onnx_file, "_MAX_NODES", 30)
    with pytest.raises(UnsupportedModelError, match="31 operators"):
        from_onnx(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_are_refused_or_answer(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes changed, cut or added: a module or a refusal, and never another exception."""
    folder = tmp_path_factory.mktemp("mutated")
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1]),
        node("AveragePool", "a", "b", kernel_shape=[2], strides=[2]),
        node("Reshape", "b t", "c"),
        node("Gemm", "c m"),
    ]
    weights = {
        "w": np.ones((2, 1, 3), np.float32),
        "t": np.array([0, -1]),
        "m": np.ones((4, 3), np.float32),
    }
    path = save(folder / "m.onnx", nodes, [1, 4], weights)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "add"]))
        if kind == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(1, 8))]
        else:
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        if not content:
            break
    path.write_bytes(bytes(content))
    with contextlib.suppress(UnsupportedModelError):
        from_onnx(path)


def test_the_output_and_the_shape_can_be_given(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w", "logits"), node("Softmax", "logits", "y")]
    path = save(tmp_path / "m.onnx", nodes, ["features"], {"w": WEIGHT})
    with pytest.raises(UnsupportedModelError, match="give input_shape="):
        from_onnx(path, output="logits")
    with pytest.raises(UnsupportedModelError, match="output='logits'"):
        from_onnx(path, input_shape=4)
    model = from_onnx(path, output="logits", input_shape=4)
    assert model.input_shape == (4,)
    with pytest.raises(ValueError, match="no such value"):
        from_onnx(path, output="other", input_shape=4)
    fixed = linear(tmp_path)
    with pytest.raises(ValueError, match=r"input_shape is \(5,\); the file has \(4\)"):
        from_onnx(fixed, input_shape=5)
    with pytest.raises(TypeError, match="input_shape"):
        from_onnx(fixed, input_shape="4")


def test_several_outputs_and_inputs_are_named(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Tanh", "x", "b")]
    path = save(tmp_path / "m.onnx", nodes, [4], outputs=("a", "b"))
    with pytest.raises(UnsupportedModelError, match="2 outputs, 'a', 'b'"):
        from_onnx(path)
    assert type(from_onnx(path, output="b")[0]).__name__ == "Tanh"

    def second(model: Any) -> None:
        model.graph.input.append(helper.make_tensor_value_info("w2", 1, [4, 3]))
        model.graph.node[0].input[1] = "w2"

    with pytest.raises(UnsupportedModelError, match="2 inputs, 'x', 'w2'; one is taken"):
        from_onnx(changed(tmp_path, second))


def test_old_files_list_their_weights_as_inputs(tmp_path: Path) -> None:
    def list_weight(model: Any) -> None:
        model.graph.input.append(helper.make_tensor_value_info("w", 1, [4, 3]))

    path = changed(tmp_path, list_weight)
    inputs = np.ones((2, 4), dtype=np.float32)
    assert np.allclose(answers(from_onnx(path), inputs), reference(path, inputs))


def test_onnx_own_domain_has_two_spellings(tmp_path: Path) -> None:
    def spell(model: Any) -> None:
        model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"

    assert len(from_onnx(changed(tmp_path, spell))) == 1


def test_no_file_and_no_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_onnx(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(UnsupportedModelError, match="holds no model"):
        from_onnx(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(UnsupportedModelError, match=r"text\.onnx is no ONNX file"):
        from_onnx(tmp_path / "text.onnx")


def test_without_the_package_the_way_to_install_it_is_told(tmp_path: Path) -> None:
    path = linear(tmp_path)
    program = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "from privacy.inference import from_onnx\n"
        f"from_onnx({str(path)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    words = "from_onnx needs onnx, which is not installed: pip install 'bloomseal[onnx]'"
    assert last == f"privacy.errors.MissingExtraError: {words}"


def test_float16_weights_are_taken_in_the_precision_of_the_input(tmp_path: Path) -> None:
    def halve(model: Any) -> None:
        half = numpy_helper.from_array(WEIGHT.astype(np.float16), "w")
        model.graph.initializer[0].CopyFrom(half)

    model = from_onnx(changed(tmp_path, halve))
    assert np.allclose(model[0].weight.detach().numpy().T, WEIGHT, atol=1e-2)
