"""`from package import *`: every name that a package lists, loaded at once or later."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "privacy.audit",
    "privacy.inference",
    "privacy.inference_service",
    "privacy.shared_inference",
    "privacy.training",
    "strategies",
    "strategies.distributed_dpsgd",
)


def listed(package: str) -> set[str]:
    """The names that are imported as themselves, those for type checkers included."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def test_every_package_that_loads_names_later_is_looked_at() -> None:
    later = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("privacy", "strategies", "flower_app")
        for path in (ROOT / top).rglob("__init__.py")
        if "loaded_later" in path.read_text()
    }
    assert later == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_star_gives_every_public_name_and_no_other(package: str) -> None:
    given: dict[str, object] = {}
    exec(f"from {package} import *", given)  # noqa: S102
    names = {name for name in given if name != "__builtins__"}
    assert names == listed(package)
    assert set(importlib.import_module(package).__all__) == names
