"""One argument changes the kind of private inference."""

import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from privacy.backends import BACKENDS, compile_model
from privacy.inference import CompiledModel
from privacy.shared_inference import SharedModel


@pytest.mark.parametrize(("backend", "kind"), [("ckks", CompiledModel), ("shared", SharedModel)])
def test_the_same_arguments_compile_for_each(backend: str, kind: type) -> None:
    given = {"input_shape": 4, "input_range": (0, 1), "sample": np.eye(4), "tolerance": 0.01}
    compiled = compile_model(nn.Linear(4, 2), **given, backend=backend)
    assert isinstance(compiled, kind)
    assert (compiled.plan.batch_size, compiled.plan.input_shape) == (1, (4,))


def test_options_of_one_reach_it() -> None:
    given = {"input_shape": 4, "input_range": (0, 1)}
    compiled = compile_model(nn.Linear(4, 2), backend="shared", **given, answer="class")
    assert compiled.plan.answer == "class"
    with pytest.raises(TypeError, match=r"^answer is no argument for backend='ckks'; .*tolerance"):
        compile_model(nn.Linear(4, 2), backend="ckks", **given, answer="class")
    with pytest.raises(TypeError, match=r"^parties is no argument for backend='shared'"):
        compile_model(nn.Linear(4, 2), backend="shared", **given, parties=None)


@pytest.mark.parametrize("backend", ["", "CKKS", None, ["ckks"]])
def test_there_is_no_other(backend: object) -> None:
    with pytest.raises(ValueError, match="give 'ckks' or 'shared'"):
        compile_model(nn.Linear(4, 2), backend=backend, input_shape=4, input_range=(0, 1))


def test_neither_is_loaded_before_it_is_asked_for() -> None:
    program = "import sys, privacy.backends; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numba", *BACKENDS.values()} & {*modules}
