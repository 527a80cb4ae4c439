"""Processes that evaluate: of this app's modules, wherever it was unpacked."""

import os
import sys
from pathlib import Path

from privacy.inference import EvaluatorProcess

_BUNDLE = Path(__file__).parents[2]


def evaluator_process(module: str, *arguments: str, memory: int | None = None) -> EvaluatorProcess:
    """Start a module that answers encrypted questions; ``memory`` as in EvaluatorProcess.

    Raises
    ------
    EvaluatorFailedError
        If it does not come up.
    """
    # The app may run from a bundle that is not installed: Python must find its folder.
    paths = [str(_BUNDLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return EvaluatorProcess(
        [sys.executable, "-m", module, *arguments],
        environment=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        folder=_BUNDLE,
        memory=memory,
    )
