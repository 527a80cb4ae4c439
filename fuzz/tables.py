"""The app's inputs: tasks, tables, settings of a run, pictures, MNIST's files, ONNX models."""

import io
import tempfile
import tomllib
import warnings
import zipfile
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from flower_app.commands.plan_questions import plan_questions
from flower_app.data.clients import _faults, _from_npz
from flower_app.data.idx import from_idx, to_idx
from flower_app.errors import DataError, DeclinedError, SettingError
from flower_app.pictures.files import read_images
from flower_app.settings import Settings
from flower_app.tasks import tables
from flower_app.tasks.task import _read as read_task
from flower_app.training.node_policy import NodePolicy, check_keys
from flower_app.training.secure_aggregation import _own, _read_keys
from flower_app.training.silo_node import check_mode
from fuzz.edits import EDITS, edited
from fuzz.target import Target, read_all
from privacy.inference import compile_model, from_onnx
from privacy.inference.errors import UnsupportedModelError

_TASK = b"""\
name = "visits"
model = "logistic"
[data]
table = "visits.csv"
client-column = "household"
test-share = 0.2
[columns]
age = [0, 110]
sex = ["female", "male"]
[target]
column = "visit"
classes = ["0", "1"]
names = ["no visit", "a visit"]
[privacy]
epsilon = 2.0
delta = 1e-3
"""
_PICTURES = b"""\
name = "scans"
model = "cnn"
[data]
clients = "scans"
test-share = 0.2
[pictures]
side = 28
[target]
classes = ["ill", "well"]
[privacy]
mode = "silos"
silos = 5
persons = 100
"""
_TABLE = b"household,age,sex,visit\na,30,female,0\nb,40,male,1\nb,,male,1\nc,x,female,0\n"


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def task() -> Target:
    """``task.toml``."""

    def read(content: bytes) -> None:
        given = read_task.__wrapped__(content.decode(errors="replace"), "task.toml", Path("/home"))
        _ = given.settings, given.digest, given.features, given.form

    return Target(read, (SettingError,), (_TASK, _PICTURES, b"name = 5\n", b"[data]\n"))


def table() -> Target:
    """A table of a task, with labels and as questions."""
    path = _folder() / "visits.csv"
    form = read_task.__wrapped__(_TASK.decode(), "task.toml", Path("/home")).form

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_all(
            (
                lambda: tables.read_examples.__wrapped__(path, form),
                lambda: tables.read_questions(path, form.columns),
                lambda: tables.read_cells(path),
            ),
            DataError,
        )

    utf_16 = _TABLE.decode().encode("utf-16")
    return Target(read, (DataError,), (_TABLE, _TABLE.replace(b",", b";"), utf_16, b"", b'"\n'))


def question_file() -> Target:
    """Questions to a plan: where the first byte is odd an array, else a table."""
    folder = _folder()
    plan = compile_model(
        nn.Sequential(nn.Linear(2, 2)),
        input_shape=(2,),
        input_range=(0.0, 110.0),
        tolerance=1.0,
        feature_names=["age", "weight"],
    ).plan

    def read(content: bytes) -> None:
        path = folder / ("rows.npy" if content[:1] and content[0] & 1 else "rows.csv")
        path.write_bytes(content[1:])
        refusals = []
        for _, _, question in plan_questions([path], plan, lambda line: None):
            if isinstance(question, DataError):
                refusals.append(question)
            else:
                assert question.shape == (2,) and ((question >= 0) & (question <= 110)).all()
        if refusals:
            raise refusals[0]

    seeds = [b"\0age,weight\n30,70\n", b"\0weight;height;age\n70,5;180;30\n", b"\x0030,70\n"]
    for array in (np.array([30.0, 70.0]), np.array([[1, 2], [3, 4]], np.int8), np.array([np.nan])):
        buffer = io.BytesIO()
        np.save(buffer, array)
        seeds.append(b"\1" + buffer.getvalue())
    return Target(read, (DataError,), tuple(seeds))


def run_config() -> Target:
    """A run's settings, as a node gets them from a server; written as TOML."""

    def read(content: bytes) -> None:
        try:
            given = tomllib.loads(content.decode(errors="replace"))
        except (tomllib.TOMLDecodeError, RecursionError):
            return
        plain = {
            name: value for name, value in given.items() if isinstance(value, str | int | float)
        }
        Settings.of_client(plain, deployed=True)

    seeds = (
        b'dataset = "mnist"\nmodel = "cnn"\nepsilon = 3.0\nrounds = 5\npopulation = 100\n',
        b'mode = "silos"\nsilos = 5\nrecords = 1000\nlocal-learning-rate = 1e-3\n',
        b'secure-aggregation = "malicious"\nmin-clients = 40\nepochs = 3\nnoise = "x"\n',
    )
    return Target(read, (SettingError,), seeds)


def node_config() -> Target:
    """A node's configuration, as its owner writes it; in TOML."""
    settings, silos = (
        Settings.of_client({"deployed": True, **each}, deployed=True)
        for each in ({"model": "cnn"}, {"mode": "silos", "silos": 5, "records": 1000})
    )

    def read(content: bytes) -> None:
        try:
            given = tomllib.loads(content.decode(errors="replace"))
        except (tomllib.TOMLDecodeError, RecursionError):
            return
        node = {
            name: value for name, value in given.items() if isinstance(value, str | int | float)
        }
        check_keys(node)
        check_mode(node, silos if "policy" in node else settings)
        if "policy" not in node:
            NodePolicy.of(node)
            _own(settings, Context(1, 1, node, RecordDict(), {}))

    seeds = (
        b'data-dir = "/data"\nstate-dir = "/state"\nmax-record-epsilon = 3.0\n',
        b'data-dir = "~/data"\nstate-dir = "/state"\nmin-clients = 40\nclipping-norm = 1\n',
        b'data-dir = "/data"\nstate-dir = "/state"\nmin-clients = 4\nsigning-key = "/key"\n',
        b'policy = "/policy.toml"\nx-other = 1\n',
        b"minimum-cohort = 5\n",
    )
    return Target(read, (SettingError, DeclinedError), seeds)


def key_list() -> Target:
    """A file of clients' public keys."""
    path = _folder() / "keys"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        assert all(len(key) == 32 for key in _read_keys("client-public-keys", str(path)))

    return Target(read, (SettingError,), (b"ab" * 32 + b"\n" + b"cd" * 32, b"", b"xy", b"\xff"))


def pictures() -> Target:
    """A picture, an array or a table of one, of which a question is made."""
    folder = _folder()
    path = folder / "image"
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    contents = [b"1,2,3\n4,5,6\n", b'{"a": 1}', b""]
    for kind in ("png", "gif", "bmp", "tiff", "jpeg", "webp"):
        Image.fromarray(image).save(folder / "one", format=kind)
        contents.append((folder / "one").read_bytes())
    np.save(folder / "one.npy", image)
    np.savez(folder / "one.npz", a=image[None], b=image)
    contents += [(folder / name).read_bytes() for name in ("one.npy", "one.npz")]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _, made in read_images(path):
                assert isinstance(made, DataError) or made.shape == (28, 28)

    return Target(read, (DataError,), tuple(contents))


def client_images() -> Target:
    """A node's ``.npz`` file of images and labels."""
    path = _folder() / "data.npz"
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([3, 7])
    contents = []
    for given in ({"images": images, "labels": labels}, {"images": images[0], "labels": labels}):
        np.savez_compressed(path, **given)
        contents.append(path.read_bytes())
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images", "labels"):
            archive.writestr(name, b"no array")
    contents.append(path.read_bytes())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found, classes, where = _from_npz(path)
        assert _faults(found, classes, where) or len(found) == len(classes)

    return Target(read, (DataError,), (*contents, *(edited(contents[0], e) for e in EDITS[1:])))


def idx() -> Target:
    """A file of MNIST."""
    good = to_idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))

    def read(content: bytes) -> None:
        from_idx(content, "a file")

    return Target(read, (DataError,), (good, to_idx(np.zeros(3, np.uint8)), b"\0\0\x08\x03"))


def onnx() -> Target:
    """An ONNX file."""
    path = _folder() / "model.onnx"
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    bias = numpy_helper.from_array(np.ones(3, np.float32), "b")
    nodes = [
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=2.0)],
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Mul", ["h", "h"], ["s"]),
            helper.make_node("Add", ["s", "b"], ["y"]),
        ],
        [
            helper.make_node("Reshape", ["x", "shape"], ["h"]),
            helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Flatten", ["t"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"]),
        ],
    ]
    shape = numpy_helper.from_array(np.array([-1, 2, 2]), "shape")
    models = []
    for listed in nodes:
        graph = helper.make_graph(
            listed,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [weight, bias, shape],
        )
        models.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    good = [model.SerializeToString() for model in models]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        from_onnx(path)

    refusals = (UnsupportedModelError,)
    return Target(read, refusals, (*good, *(edited(good[0], edits) for edits in EDITS[1:])))
