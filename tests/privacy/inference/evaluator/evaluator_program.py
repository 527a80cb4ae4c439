"""Evaluators' processes for the tests: of a compiled model's file, and programs that compile."""

import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from privacy.inference import CompiledModel, EvaluatorProcess, Square, compile_model

ROOT = Path(__file__).parents[4]
_SAVING = threading.Lock()  # a pool starts processes from threads


@cache
def _saved(compiling: Callable[[], CompiledModel]) -> tuple[TemporaryDirectory[str], Path]:
    folder = TemporaryDirectory()
    file = Path(folder.name) / "model"
    compiling().save(file)
    return folder, file


def start_process(compiling: Callable[[], CompiledModel], **settings: Any) -> EvaluatorProcess:
    """A process with the file of what a function compiles here, once: it loads no PyTorch."""
    with _SAVING:
        _, file = _saved(compiling)
    command = [sys.executable, "-m", "privacy.inference.evaluator", str(file)]
    return EvaluatorProcess(command, folder=ROOT, **settings)


def start_compiling(
    compiling: Callable[[], CompiledModel], *, first: str = "", **settings: Any
) -> EvaluatorProcess:
    """A process that compiles by a module's function itself, after a ``first`` statement."""
    program = (
        f"{first}\n"
        f"from {compiling.__module__} import {compiling.__name__} as compiling\n"
        "from privacy.inference import serve_evaluations\n"
        "serve_evaluations(compiling)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return EvaluatorProcess([sys.executable, "-c", program], environment=environment, **settings)


def small_model() -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
    return compile_model(model, input_shape=(4,), input_range=(0.0, 1.0), tolerance=0.001)


def model_of_a_library_that_prints() -> CompiledModel:
    print("a library that prints")
    return small_model()
