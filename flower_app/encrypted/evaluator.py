"""The evaluator's own process: the model and public keys, never a secret key, never an image."""

import os
import sys
from pathlib import Path

from privacy.inference import EvaluatorProcess

_BUNDLE = Path(__file__).parents[2]


def start_evaluator(file: Path, *, memory: int | None = None) -> EvaluatorProcess:
    """Start a process that evaluates a compiled model's file; ``memory`` as in EvaluatorProcess.

    It loads no PyTorch, and needs the file no longer once it is up.

    Raises
    ------
    EvaluatorFailedError
        If it does not come up.
    """
    # The app may run from a bundle that is not installed: Python must find its folder.
    paths = [str(_BUNDLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return EvaluatorProcess(
        [sys.executable, "-m", "privacy.inference.evaluator", str(file.resolve())],
        environment=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        folder=_BUNDLE,
        memory=memory,
    )
