"""Models for a user's own data: by name, or by a function of the user's."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from flower_app.errors import SettingError, wrong

_HIDDEN = 32
_FILTERS = 4


class Scaled(nn.Module):
    """Inputs brought from their public ranges to [-1, 1]. It has nothing to train."""

    def __init__(self, low: ArrayLike, high: ArrayLike) -> None:
        super().__init__()
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self._middle = torch.tensor(low / 2 + high / 2, dtype=torch.float32)
        self._factor = torch.tensor(2 / (high - low), dtype=torch.float32)

    def forward(self, inputs: Tensor) -> Tensor:
        """Each feature on its own."""
        return (inputs - self._middle) * self._factor


def own_model(
    name: str, shape: Sequence[int], low: ArrayLike, high: ArrayLike, classes: int, home: Path
) -> nn.Sequential:
    """A model with its first weights, the same everywhere and from no data.

    Inputs of a vector are scaled to [-1, 1] by the first layer; pictures come from 0 to 1.

    Parameters
    ----------
    name : str
        ``"logistic"``: one linear layer. ``"mlp"``: a hidden layer of 32 with squares. ``"cnn"``: a
        convolution with squares. Or ``"module:function"``, called as ``function(shape, classes)``.
    shape, low, high, classes
        Of the inputs and the answers.
    home : Path
        The folder in which the module is looked for first.

    Raises
    ------
    SettingError
        If the user's function is missing, fails, or gives no module with so many answers.
    """
    first = [Scaled(low, high)] if len(shape) == 1 else []
    if ":" in name:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(*first, _of_the_user(name, tuple(shape), classes, home))
        _check(name, model, shape, classes)
        return model
    return nn.Sequential(*first, *_layers(name, shape, classes))


def _layers(name: str, shape: Sequence[int], classes: int) -> list[nn.Module]:
    size = math.prod(shape)
    flat: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
    if name == "logistic":
        return [*flat, _at_zero(nn.Linear(size, classes))]
    from privacy.inference import Square  # brings TenSEAL, which a deployed client does without

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "mlp":
            hidden = [*flat, nn.Linear(size, _HIDDEN), Square()]
            return [*hidden, _at_zero(nn.Linear(_HIDDEN, classes))]
        kernel = max(2, min(shape[1], shape[2]) // 4)
        stride = max(1, kernel // 2)
        places = math.prod((side - kernel) // stride + 1 for side in shape[1:])
        filters = nn.Conv2d(shape[0], _FILTERS, kernel_size=kernel, stride=stride)
        return [filters, Square(), nn.Flatten(), _at_zero(nn.Linear(_FILTERS * places, classes))]


def _at_zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _of_the_user(name: str, shape: tuple[int, ...], classes: int, home: Path) -> nn.Module:
    module_name, _, function = name.partition(":")
    build = getattr(_module(name, module_name, home), function, None)
    if not callable(build):
        raise wrong("model", name, f"{module_name} has no function {function}; name one it has")
    try:
        model: Any = build(shape[0] if len(shape) == 1 else shape, classes)
    except (Exception, SystemExit) as error:
        raise wrong(
            "model",
            name,
            f"{function}(inputs, classes) failed ({type(error).__name__}: {error}); mend it",
        ) from error
    if not isinstance(model, nn.Module):
        raise wrong("model", name, f"{function} gave {type(model).__name__}; return an nn.Module")
    return model


def _module(name: str, module_name: str, home: Path) -> ModuleType:
    """The module: the file of that name in the task's folder, or one that is installed."""
    file = home.joinpath(*module_name.split(".")).with_suffix(".py")
    try:
        if not file.is_file():
            return importlib.import_module(module_name)
        spec = importlib.util.spec_from_file_location(f"_task_{module_name}", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise wrong(
            "model",
            name,
            f"{file if file.is_file() else module_name} cannot be imported "
            f"({type(error).__name__}: {error}); put {file.name} beside task.toml",
        ) from error
    return module


def _check(name: str, model: nn.Module, shape: Sequence[int], classes: int) -> None:
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(2, *shape))
    except Exception as error:
        raise wrong(
            "model", name, f"it takes no inputs of shape {tuple(shape)} ({error}); mend it"
        ) from error
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != (2, classes):
        raise SettingError(
            f"model = {name!r} is wrong; it gives {tuple(getattr(outputs, 'shape', ()))} for two "
            f"inputs, and there are {classes} classes: end it with {classes} outputs"
        )
