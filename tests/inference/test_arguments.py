"""Arguments of another kind are refused by their names, and tensors are taken as they come."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from privacy.inference import (
    ClassOnly,
    CompiledModel,
    DataOwner,
    Evaluator,
    RoundError,
    Square,
    begin_round,
    certify,
    compile_model,
    decide,
    logit_bound,
    private_folder,
)


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), Square(), nn.Linear(4, 3))


def compiled_for(**arguments: Any) -> CompiledModel:
    usual: dict[str, Any] = {"input_shape": (8,), "input_range": (-1.0, 1.0)}
    return compile_model(build(), **(usual | arguments))


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compiled_for()


X = np.linspace(-1.0, 1.0, 16).reshape(2, 8)
LOADER = DataLoader(torch.zeros(4, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch_size", [2.5, 3.0, True, np.bool_(True), "3", None, 0, -1, math.nan]),
        ("input_shape", [8, (8.7,), (8.0,), "8", (), (True,), ("8",), (0,), None, np.array(8)]),
        (
            "input_range",
            [(0, 1, 2), "01", 1.0, (0,), None, (0, "1"), (0, math.inf), (math.nan, 1), (1, 0)],
        ),
        ("tolerance", ["1", math.inf, math.nan, 0, -1.0, True, 1j, [1.0]]),
        ("max_query_bytes", ["1MB", 1.5e6, True, 0, [1]]),
        (
            "sample",
            [
                LOADER,
                "x",
                X + 0j,
                torch.zeros(2, 8) + 0j,
                [["1"] * 8],
                [[1.0], [1.0, 2.0]],
                {},
                X[0],
            ],
        ),
        ("parties", ["x", ("a", "b", "c"), True, 5]),
    ],
)
def test_compiling_names_an_argument_of_another_kind(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"^{name} (is|has|holds) "):
            compiled_for(**{name: value})


def test_numbers_of_numpy_are_numbers(compiled: CompiledModel) -> None:
    same = compiled_for(
        input_shape=np.array([8]),
        input_range=np.array([-1, 1], dtype=np.float32),
        batch_size=np.int64(1),
        max_query_bytes=np.int32(1_500_000),
    )
    assert same.plan.digest == compiled.plan.digest
    assert compiled_for(batch_size=np.int64(3)).plan.batch_size == 3


def test_a_bound_of_logits_names_its_arguments() -> None:
    for change in ({"input_shape": 8}, {"input_shape": (8.5,)}, {"input_range": "01"}):
        usual: dict[str, Any] = {"input_shape": (8,), "input_range": (-1.0, 1.0)}
        with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
            logit_bound(build(), **(usual | change))


def test_an_owner_names_an_argument_of_another_kind(compiled: CompiledModel) -> None:
    for release in ("class", ClassOnly, 5):
        with pytest.raises(TypeError, match=r"^release is "):
            DataOwner(compiled.plan, release=release)  # type: ignore[arg-type]
    for plan in (compiled, compiled.plan.to_json(), None):
        with pytest.raises(TypeError, match=r"^plan is "):
            DataOwner(plan)  # type: ignore[arg-type]


def test_a_certificate_names_an_argument_of_another_kind(compiled: CompiledModel) -> None:
    with pytest.raises(TypeError, match=r"^compiled is "):
        certify(compiled.plan, X, [0, 1])  # type: ignore[arg-type]
    for inputs, labels, name in (
        (LOADER, [0, 1], "inputs"),
        (X + 0j, [0, 1], "inputs"),
        (X, ["0", "1"], "labels"),
        (X, torch.tensor([0j, 1j]), "labels"),
        (X, None, "labels"),
        (1.0, [0, 1], "inputs"),
    ):
        with pytest.raises(ValueError, match=f"^{name} "):
            certify(compiled, inputs, labels)  # type: ignore[arg-type]


ARRAYS = {
    "gradient": torch.tensor(X, requires_grad=True),
    "parameter": nn.Parameter(torch.tensor(X)),
    "single": torch.tensor(X, dtype=torch.float32),
    "bfloat16": torch.tensor(X).bfloat16(),
    "half": torch.tensor(X).half(),
    "negated": torch.complex(torch.tensor(X * 0), torch.tensor(-X)).conj().imag,
    "rows": list(torch.tensor(X, requires_grad=True)),
    "lists": X.tolist(),
    "float16": X.astype(np.float16),
    "float8": torch.tensor(X).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_tensors_are_taken_as_they_come(compiled: CompiledModel, kind: str, tmp_path: Path) -> None:
    values = ARRAYS[kind]
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    wanted = compiled.predict(X).argmax(axis=1)
    for row, label in zip(values, wanted, strict=True):
        assert owner.decrypt(evaluator.evaluate(owner.encrypt(row))).label == label
    np.testing.assert_allclose(compiled.predict(values), compiled.predict(X), atol=0.05)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        decide(torch.tensor(compiled.predict(X)).requires_grad_()), wanted
    )
    assert certify(compiled, values, torch.tensor(wanted).bfloat16()).encrypted_accuracy == 1.0  # type: ignore[arg-type]
    assert compiled_for(sample=values).plan.input_shape == (8,)
    folder = private_folder(tmp_path / "node")
    questions = begin_round(compiled.plan, values, torch.tensor(wanted), images=2, folder=folder)  # type: ignore[arg-type]
    assert len(questions.queries) == 2


@pytest.mark.parametrize(
    "values",
    [
        X[0] + 0j,
        torch.tensor(X[0]) + 0j,
        [complex(x) for x in X[0]],
        X[0].astype(str),
        ["0"] * 8,
        X[0].astype(object),
        np.zeros(8, dtype="m8[s]"),
        np.zeros(8, dtype="M8[s]"),
        np.ma.masked_array(X[0], mask=[True] + [False] * 7),
        torch.zeros(8, device="meta"),
        None,
        LOADER,
    ],
)
def test_what_holds_no_real_numbers_is_refused(
    compiled: CompiledModel, values: Any, tmp_path: Path
) -> None:
    owner = DataOwner(compiled.plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"^the input .*number"):
            owner.encrypt(values)
        folder = private_folder(tmp_path / "node")
        with pytest.raises(RoundError, match="not real numbers"):
            begin_round(compiled.plan, values, [0], images=1, folder=folder)


def test_sparse_tensors_are_refused_by_name(compiled: CompiledModel) -> None:
    with pytest.raises(ValueError, match=r"^the input is no array of numbers"):
        DataOwner(compiled.plan).encrypt(torch.tensor(X[0]).to_sparse())  # type: ignore[arg-type]
