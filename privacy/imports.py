"""Public names whose modules are loaded when somebody first asks for them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def loaded_later(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562), by the module of each of these names.

    A type checker would take it for leave to use any name: keep it from its eyes, and the imports
    for them, with ``TYPE_CHECKING``.
    """

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
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
