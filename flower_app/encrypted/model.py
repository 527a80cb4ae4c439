"""A run's model, compiled for encrypted questions."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from flower_app.data import drawn_images, encode
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.report.results_folder import task_beside
from flower_app.tasks import build_for, task_spec
from privacy.inference import CompiledModel, compile_model


def load_model(name: str, weights: Path) -> nn.Sequential:
    """A run's model with its weights; that of a task has its ``task.toml`` beside them.

    Raises
    ------
    SettingError
        If the file is damaged, or holds another model's.
    """
    task = task_beside(weights)
    model = build_for(task) if task else build_model(name)
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
    """Compile a run's model from its weights; raises as :func:`load_model`."""
    task = task_beside(weights)
    return compile_app_model(load_model(name, weights), task_spec(task) if task else MODELS[name])


@contextmanager
def compiled_file(name: str, weights: Path) -> Iterator[Path]:
    """A run's model in a file for evaluators, compiled once for all; raises as ``load_model``."""
    with tempfile.TemporaryDirectory(prefix="bloomseal-model-") as folder:
        file = Path(folder) / "model"
        compile_named(name, weights).save(file)
        yield file


def compile_app_model(model: nn.Sequential, spec: ModelSpec) -> CompiledModel:
    """Compile a model, its errors predicted for images that are drawn by rule, or the whole range.

    The plan depends on nobody's data: whoever compiles the model gets the same one.
    """
    return compile_model(
        model,
        input_shape=spec.shape,
        input_range=(spec.low, spec.high),
        sample=public_sample(spec),
        class_names=spec.class_names or None,
        feature_names=spec.feature_names or None,
    )


def public_sample(spec: ModelSpec) -> NDArray[np.float32] | None:
    """Typical inputs that are nobody's: images that are drawn by rule; None for users' own data."""
    return None if spec.kind == "own" else encode(drawn_images(), spec.kind)
