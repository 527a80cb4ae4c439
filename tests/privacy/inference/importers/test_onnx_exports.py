"""What PyTorch's and scikit-learn's exporters write, and an encrypted answer of it."""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skl2onnx import to_onnx
from sklearn import decomposition, linear_model, neural_network, preprocessing, svm
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from privacy.inference import (
    DataOwner,
    Evaluator,
    Polynomial,
    PublicData,
    Square,
    certify,
    compile_model,
    from_onnx,
    replace_activations,
)
from privacy.inference.errors import UnsupportedLayerError, UnsupportedModelError
from tests.privacy.inference.importers.onnx_graphs import answers

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]


class Residual(nn.Module):
    """Two paths, functional forms, and a normalisation of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.data.normal_()
        self.norm.running_var.data.uniform_(0.5, 2)
        self.second, self.beside = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first((x - 0.5) / 0.25)) ** 2
        x = self.second(x * x) + self.beside(x)
        return self.last(nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


class Choices(nn.Module):
    """Slices, parts, the values next to an edge, and larger pictures of smaller ones."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.back = nn.Upsample(scale_factor=2), nn.ConvTranspose2d(2, 4, 3, stride=2)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[:, :, ::2, 1:5].chunk(2, dim=1)
        x = self.up(nn.functional.pad(one * other, (1, 1, 0, 1), mode="reflect"))
        x = self.shuffle(self.back(x).index_select(1, torch.tensor([0, 2, 3, 1])))
        return self.last(x.sum(dim=(1, 3))[:, :10])


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "mlp": (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 5), Square(), nn.Linear(5, 3)),
            (3, 2, 2),
        ),
        "convolutions": (
            nn.Sequential(
                nn.Conv2d(1, 4, 5, stride=2),
                nn.ReLU(),
                nn.AvgPool2d(2, padding=1),
                nn.Flatten(),
                nn.Linear(64, 3),
            ),
            (1, 16, 16),
        ),
        "one axis": (
            nn.Sequential(
                nn.Conv1d(2, 4, 3, padding=1),
                nn.GELU(),
                nn.AvgPool1d(2),
                nn.Conv1d(4, 4, 3, groups=2),
                nn.SiLU(),
                nn.AdaptiveAvgPool1d(1),
                nn.Flatten(),
                nn.Dropout(),
                nn.Linear(4, 3),
            ),
            (2, 16),
        ),
        "activations": (
            nn.Sequential(
                *(nn.Linear(4, 4), nn.Hardswish(), nn.LeakyReLU(), nn.ReLU6(), nn.ELU()),
                *(nn.Tanh(), nn.Sigmoid(), nn.Hardtanh()),
            ),
            (4,),
        ),
        "residual": (Residual(), (3, 8, 8)),
        "normalised": (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False)),
            (4,),
        ),
        "rows": (nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 2)), (3, 4)),
        "choices": (Choices(), (4, 6, 6)),
        "overhanging windows": (
            nn.Sequential(
                nn.Conv2d(1, 2, 4, padding="same"),
                nn.AvgPool2d(3, 2, ceil_mode=True),
                nn.Flatten(),
                nn.Unflatten(1, (2, 16)),
                nn.Flatten(),
                nn.Linear(32, 2),
            ),
            (1, 8, 8),
        ),
    }


def export(
    model: nn.Module, inputs: Tensor, path: Path, *, dynamo: bool = True, open_batch: bool = True
) -> Path:
    options: dict[str, Any] = {}
    if open_batch and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    elif open_batch:
        options["dynamic_axes"] = {"x": {0: "batch"}}
    given = inputs if open_batch else inputs[:1]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(model.eval(), (given,), path, dynamo=dynamo, input_names=["x"], **options)
    return path


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The files of :func:`models`, each written once."""

    @cache
    def written(name: str, dynamo: bool, open_batch: bool) -> Path:
        model, shape = models()[name]
        path = tmp_path_factory.mktemp("exported") / "m.onnx"
        return export(model, torch.rand(3, *shape), path, dynamo=dynamo, open_batch=open_batch)

    return lambda name, dynamo=True, open_batch=True: written(name, dynamo, open_batch)


@pytest.mark.parametrize(
    ("name", "open_batch"),
    [*((name, True) for name in sorted(models())), ("residual", False), ("rows", False)],
)
@pytest.mark.parametrize("dynamo", [False, True])
def test_what_pytorch_exports(
    name: str, dynamo: bool, open_batch: bool, file_of: Callable[..., Path]
) -> None:
    """The newer exporter writes weights into a second file."""
    model, shape = models()[name]
    model.eval()
    inputs = torch.rand(3, *shape)
    path = file_of(name, dynamo=dynamo, open_batch=open_batch)
    assert len(list(path.parent.iterdir())) == 1 + dynamo
    taken = from_onnx(path)
    assert taken.input_shape == shape
    with torch.no_grad():
        assert torch.allclose(taken(inputs), model(inputs), atol=2e-6)


@pytest.mark.parametrize("name", ["mlp", "residual", "overhanging windows", "choices"])
def test_files_compile(name: str, file_of: Callable[..., Path]) -> None:
    model, shape = models()[name]
    model.eval()
    compiled = compile_model(from_onnx(file_of(name)), input_shape=shape, input_range=(0.0, 1.0))
    inputs = np.random.default_rng(0).uniform(0, 1, (20, *shape))
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(inputs)).numpy()
    assert abs(compiled.predict(inputs) - expected).max() < 1e-4
    certificate = certify(compiled, inputs, expected.argmax(axis=1))
    assert certificate.agreement > 0.9
    assert certificate.worst_error < max(certificate.predicted_worst_error, 0.1)


def test_an_encrypted_answer_of_a_file(file_of: Callable[..., Path]) -> None:
    model, shape = models()["mlp"]
    taken = from_onnx(file_of("mlp"))
    compiled = compile_model(taken, input_shape=taken.input_shape, input_range=(0.0, 1.0))
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    for row in torch.rand(5, *shape):
        answer = owner.decrypt(evaluator.evaluate(owner.encrypt(row.numpy())))
        with torch.no_grad():
            logits = model(row[None])[0]
        best, second = logits.topk(2).values.tolist()
        assert answer.label == int(logits.argmax()) or best - second < 0.01


def test_activations_are_refused_by_the_compiler_by_name(file_of: Callable[..., Path]) -> None:
    _, shape = models()["convolutions"]
    path = file_of("convolutions")
    with pytest.raises(UnsupportedLayerError, match="ReLU"):
        compile_model(from_onnx(path), input_shape=shape, input_range=(0.0, 1.0))


class ResidualRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        return self.last(nn.functional.avg_pool2d(x, 2).flatten(1))


def test_a_file_with_relu_compiles_after_its_activations_are_replaced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = ResidualRelu().eval(), torch.rand(64, 1, 8, 8)
    taken = from_onnx(export(model, inputs, tmp_path / "m.onnx"))
    replaced = replace_activations(taken, data=PublicData(inputs.numpy())).model
    compiled = compile_model(replaced, input_shape=taken.input_shape, input_range=(0.0, 1.0))
    with torch.no_grad():
        expected = model(inputs).numpy()
    assert abs(compiled.predict(inputs.numpy()) - expected).max() < 0.1


def test_a_polynomial_is_exported_as_arithmetic(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), Polynomial([0.1, 0.2, 0.3, 0.4]), nn.Linear(5, 1))
    inputs = torch.rand(3, 4)
    path = export(model, inputs, tmp_path / "m.onnx", open_batch=False)
    with torch.no_grad():
        assert torch.allclose(from_onnx(path)(inputs), model(inputs), atol=1e-6)


X = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
SCORES = X @ np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.LinearRegression(),
        linear_model.Ridge(),
        make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge()),
        make_pipeline(preprocessing.MinMaxScaler(), decomposition.PCA(3), linear_model.Ridge()),
        make_pipeline(
            preprocessing.RobustScaler(), decomposition.PCA(3, whiten=True), linear_model.Ridge()
        ),
        make_pipeline(
            preprocessing.MaxAbsScaler(), decomposition.TruncatedSVD(3), linear_model.Ridge()
        ),
    ],
)
def test_regressors_of_scikit_learns_converter(estimator: Any, tmp_path: Path) -> None:
    estimator.fit(X, SCORES)
    (path := tmp_path / "m.onnx").write_bytes(to_onnx(estimator, X[:1]).SerializeToString())
    assert np.allclose(answers(from_onnx(path), X), estimator.predict(X), atol=1e-4)


@pytest.mark.parametrize(
    "estimator",
    [
        linear_model.LogisticRegression(),
        svm.LinearSVC(),
        linear_model.SGDClassifier(),
        make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
    ],
)
def test_classifiers_of_scikit_learns_converter(estimator: Any, tmp_path: Path) -> None:
    """With raw scores; a file with probabilities is refused with how to get these."""
    estimator.fit(X, SCORES.argmax(axis=1))
    last = getattr(estimator, "steps", [(None, estimator)])[-1][1]
    path = tmp_path / "m.onnx"
    options = {"raw_scores": True}
    if not isinstance(last, svm.LinearSVC):
        with_names = to_onnx(estimator, X[:1], options={id(last): options})
        path.write_bytes(with_names.SerializeToString())
        with pytest.raises(UnsupportedModelError, match=r"ZipMap .*leave it out with output="):
            from_onnx(path, output="output_probability")
        options["zipmap"] = False
    proto = to_onnx(estimator, X[:1], options={id(last): options})
    path.write_bytes(proto.SerializeToString())
    names = [entry.name for entry in proto.graph.output]
    with pytest.raises(UnsupportedModelError, match=r"2 outputs, .*probabilit"):
        from_onnx(path)
    with pytest.raises(UnsupportedModelError, match=r"decision|decides|Cast|Reshape"):
        from_onnx(path, output=names[0])
    scores = answers(from_onnx(path, output=names[1]), X)
    assert np.allclose(scores, estimator.decision_function(X), atol=1e-4)


def test_a_classifier_with_probabilities_is_refused_with_the_way_to_scores(
    tmp_path: Path,
) -> None:
    estimator = linear_model.LogisticRegression().fit(X, SCORES.argmax(axis=1))
    (path := tmp_path / "m.onnx").write_bytes(to_onnx(estimator, X[:1]).SerializeToString())
    with pytest.raises(UnsupportedModelError, match="raw_scores"):
        from_onnx(path, output="probabilities")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perceptron = neural_network.MLPClassifier((4,), activation="identity", max_iter=5)
        perceptron.fit(X, SCORES.argmax(axis=1))
    path.write_bytes(to_onnx(perceptron, X[:1]).SerializeToString())
    with pytest.raises(UnsupportedModelError, match=r"Softmax.*output='add_result1'"):
        from_onnx(path, output="output_probability")
    scores = from_onnx(path, output="add_result1")
    assert answers(scores, X).shape == (80, 3)
