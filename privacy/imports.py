"""Imports that may wait, or fail: of public names, and of packages that come with an extra."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from privacy.errors import MissingExtraError

# The packages that each extra of pyproject.toml brings, by the names they are imported by.
_BASE = frozenset(
    {
        *("flwr", "dp_accounting", "cryptography", "numpy", "scipy", "safetensors"),
        *("platformdirs", "filelock", "httpx"),
    }
)
_OWNER = frozenset({"numba", "llvmlite", "tenseal", "zstandard", "PIL"})
_TRAINING = frozenset({"torch", "opacus"})
_INFERENCE = frozenset(
    {"torch", "numba", "llvmlite", "tenseal", "zstandard", "psutil", "threadpoolctl"}
)
_SERVICE = (_INFERENCE - {"torch"}) | {"fastapi", "starlette", "uvicorn", "prometheus_client"}
_PICTURES_AND_DATA = {"torchvision", "flwr_datasets", "datasets", "pyarrow", "matplotlib", "jinja2"}
EXTRAS: Mapping[str, frozenset[str]] = {
    "": _BASE,
    "simulation": frozenset({"ray"}),
    "owner": _OWNER,
    "training": _TRAINING,
    "inference": _INFERENCE,
    "onnx": _INFERENCE | {"onnx"},
    "service": _SERVICE,
    "app": _OWNER | _TRAINING | _SERVICE | _PICTURES_AND_DATA | {"ray"},
    "tensorboard": frozenset({"tensorboard"}),
    "mlflow": frozenset({"mlflow"}),
    "wandb": frozenset({"wandb"}),
    "prometheus": frozenset({"prometheus_client"}),
    "rocrate": frozenset({"rocrate"}),
}
"""What each extra brings; under the empty name, what comes without any."""


@contextmanager
def needing(user: str, *, extra: str) -> Iterator[None]:
    """A block whose imports need an extra; ``user`` says for whom, in the error.

    Of blocks in each other the outermost names its extra, if it brings the package.

    Raises
    ------
    MissingExtraError
        If one of the extra's packages is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        for brought_by in (extra, ""):
            if missing in EXTRAS[brought_by]:
                raise MissingExtraError(user, missing, brought_by) from error
        raise


def need_installed(*packages: str) -> None:
    """Raise ``ModuleNotFoundError`` for the first that is not installed; none is loaded.

    Within :func:`needing`, before other processes import them.
    """
    for name in packages:
        if name not in sys.modules and find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def loaded_later(
    package: str, modules: Mapping[str, str], *, extra: str = ""
) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562), by the module of each of these names.

    A type checker would take it for leave to use any name: keep it from its eyes, and the imports
    for them, with ``TYPE_CHECKING``. ``extra`` is what they need, if any.
    """

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with needing(f"{package}.{name}", extra=extra):
            return getattr(import_module(modules[name]), name)

    return attribute


def public_names(namespace: Mapping[str, Any], modules: Mapping[str, str]) -> list[str]:
    """A package's ``__all__``: our functions and types in its namespace, and those loaded later."""
    house = namespace["__name__"].partition(".")[0], "privacy"
    loaded = (
        name
        for name, value in namespace.items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and str(getattr(value, "__module__", "")).partition(".")[0] in house
    )
    return sorted({*loaded, *modules})
