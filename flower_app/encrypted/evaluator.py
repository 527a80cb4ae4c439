"""The evaluator's own process: the model and public keys, never a secret key, never an image.

``python -m flower_app.encrypted.evaluator MODEL FILE`` reads the model from a safetensors file,
compiles it and answers encrypted questions over its standard streams until they end.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from flower_app.data import drawn_images, encode
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS, ModelSpec
from privacy.inference import CompiledModel, EvaluatorProcess, compile_model, serve_evaluations

_BUNDLE = Path(__file__).parents[2]


def start_evaluator(name: str, weights: Path, *, memory: int | None = None) -> EvaluatorProcess:
    """Start a process that evaluates a model of the app; ``memory`` as in EvaluatorProcess.

    Raises
    ------
    EvaluatorFailedError
        If it does not come up.
    """
    # The app may run from a bundle that is not installed: Python must find its folder.
    paths = [str(_BUNDLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return EvaluatorProcess(
        [sys.executable, "-m", "flower_app.encrypted.evaluator", name, str(weights.resolve())],
        environment=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        folder=_BUNDLE,
        memory=memory,
    )


def load_model(name: str, weights: Path) -> nn.Sequential:
    """A model of the app with its weights.

    Raises
    ------
    SettingError
        If the file is damaged, or holds another model's.
    """
    model = build_model(name)
    try:
        state = load_file(weights)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise SettingError(
            f"{weights} cannot be read, it is damaged ({error}); copy it again, or train anew"
        ) from error
    if _shapes(state) != _shapes(model.state_dict()):
        raise SettingError(
            f"{weights} does not hold the weights of {name}, the model that config.json beside it "
            "names; keep the files of a run together"
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise SettingError(
            f"{weights} holds numbers that are not finite: the training went astray; train anew"
        )
    model.load_state_dict(state)
    return model


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def compile_named(name: str, weights: Path) -> CompiledModel:
    """Compile a model of the app from its weights; raises as :func:`load_model`."""
    return compile_app_model(load_model(name, weights), MODELS[name])


def compile_app_model(model: nn.Sequential, spec: ModelSpec) -> CompiledModel:
    """Compile a model of the app, its errors predicted for images that are drawn by rule.

    The plan depends on nobody's data: whoever compiles the model gets the same one.
    """
    return compile_model(
        model,
        input_shape=spec.shape,
        input_range=(spec.low, spec.high),
        sample=encode(drawn_images(), spec.kind),
    )


if __name__ == "__main__":
    serve_evaluations(lambda: compile_named(sys.argv[1], Path(sys.argv[2])))
