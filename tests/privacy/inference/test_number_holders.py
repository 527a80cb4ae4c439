"""Numbers are taken from whatever holds them: NumPy's, tensors with all that hangs on them."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    Plan,
    Square,
    certify,
    compile_model,
    decide,
)
from strategies.encrypted_round.errors import RoundError
from strategies.encrypted_round.node import make_questions, private_folder


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


def test_numbers_of_numpy_are_numbers() -> None:
    same = compiled_for(
        batch_size=np.int64(1), max_query_bytes=np.int32(1_500_000), tolerance=np.float32(2.0**-10)
    )
    again = compiled_for(max_query_bytes=1_500_000, tolerance=2.0**-10)
    assert Plan.from_json(same.plan.to_json()) == same.plan
    assert same.plan.digest == again.plan.digest
    several = compiled_for(batch_size=np.int64(3)).plan
    assert Plan.from_json(several.to_json()).batch_size == 3


def test_labels_are_real_numbers(compiled: CompiledModel) -> None:
    for labels in (["0", "1"], torch.tensor([0j, 1j]), None):
        with pytest.raises(TypeError, match=r"^labels "):
            certify(compiled, X, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number"):
        certify(compiled, 1.0, [0])


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
    questions = make_questions(compiled.plan, values, torch.tensor(wanted), images=2, folder=folder)  # type: ignore[arg-type]
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
    ],
)
def test_what_holds_no_real_numbers_is_refused(
    compiled: CompiledModel, values: Any, tmp_path: Path
) -> None:
    owner = DataOwner(compiled.plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"^the input .*number"):
            owner.encrypt(values)
        folder = private_folder(tmp_path / "node")
        with pytest.raises(RoundError, match="not real numbers"):
            make_questions(compiled.plan, values, [0], images=1, folder=folder)


def test_sparse_tensors_are_refused_by_name(compiled: CompiledModel) -> None:
    with pytest.raises(TypeError, match=r"^the input makes no array of numbers"):
        DataOwner(compiled.plan).encrypt(torch.tensor(X[0]).to_sparse())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (torch.tensor(X).min(), torch.tensor(X).max()),
        (torch.tensor(-1.0, dtype=torch.bfloat16), torch.tensor(1.0, requires_grad=True)),
        (torch.tensor(-1), torch.tensor(1)),
        (X.min(), X.max()),
        (np.float16(-1), np.int8(1)),
        (np.array(-1.0), np.array(1)),
        (-1, torch.tensor(1.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("pair", [tuple, list])
def test_a_range_may_be_of_what_min_and_max_return(
    low: Any, high: Any, pair: Any, compiled: CompiledModel
) -> None:
    assert compiled_for(input_range=pair([low, high])).plan.digest == compiled.plan.digest


def test_other_numbers_may_be_too() -> None:
    for one in (torch.tensor, np.array):
        same = compiled_for(
            input_shape=(one(8),),
            tolerance=one(2.0**-10),
            batch_size=one(1),
            max_query_bytes=one(1_500_000),
        )
        again = compiled_for(max_query_bytes=1_500_000, tolerance=2.0**-10)
        assert same.plan.digest == again.plan.digest


@pytest.mark.parametrize(
    "limit",
    [
        torch.tensor(True),
        np.True_,
        torch.tensor(1j),
        torch.empty((), device="meta"),
        np.ma.masked,
        np.array("1"),
        "1",
        None,
    ],
    ids=repr,
)
def test_what_holds_no_real_number_is_no_limit(limit: Any) -> None:
    with pytest.raises(TypeError, match=r"^input_range is "):
        compiled_for(input_range=(0, limit))


HUGE = 10**400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"input_range": (0, HUGE)}, "input_range is (0, an integer of 1329 bits); give finite"),
        ({"input_range": (-HUGE, 1)}, "input_range is (an integer of 1329 bits, 1); give finite"),
        ({"tolerance": HUGE}, "tolerance is an integer of 1329 bits; give a positive error"),
        ({"tolerance": 10 * HUGE**20}, "tolerance is an integer of"),  # too long to be written
        ({"tolerance": torch.tensor(torch.inf)}, "tolerance is tensor(inf); give a positive error"),
        ({"batch_size": -HUGE}, "batch_size is an integer of 1329 bits; give 1 or more"),
    ],
)
def test_integers_beyond_all_doubles_are_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        compiled_for(**arguments)


MASKED = np.ma.array(X[0], mask=[True] + [False] * 7)


@pytest.mark.parametrize(
    "images",
    [
        [MASKED],
        [X[0], MASKED],
        (MASKED,),
        [list(MASKED)],
        [[np.ma.masked] * 8],
        np.ma.stack([MASKED]),
    ],
    ids=["list", "among others", "tuple", "element by element", "nothing else", "array"],
)
def test_masked_elements_are_refused_in_lists_too(images: Any, compiled: CompiledModel) -> None:
    """What lies below a mask is no value."""
    with pytest.raises(TypeError, match="has masked elements"):
        DataOwner(compiled.plan).encrypt(images)


def test_masked_arrays_that_mask_nothing_are_arrays(compiled: CompiledModel) -> None:
    owner = DataOwner(compiled.plan)
    assert owner.encrypt(list(np.ma.array(X[0])))
