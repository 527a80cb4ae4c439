"""What each extra of the distribution brings, is enough for, and may load."""

import ast
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from flower_app.__main__ import COMMANDS
from privacy.imports import EXTRAS
from tests.test_public_names import listed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Where the name to import is not the distribution's.
IMPORTED_AS = {
    "pillow": {"PIL"},
    "numba": {"numba", "llvmlite"},
    "flwr-datasets": {"flwr_datasets", "datasets"},
    "mlflow-skinny": {"mlflow"},
    "flwr[simulation]": {"ray"},
    "h11": set(),  # uvicorn imports it
}


def brought(extra: str) -> set[str]:
    """The packages that an extra of pyproject.toml brings, by the names they are imported by."""
    names: set[str] = set()
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        one = Requirement(line)
        if one.name == PROJECT["name"]:
            names.update(*map(brought, one.extras))
        else:
            full = one.name + (f"[{','.join(one.extras)}]" if one.extras else "")
            names |= IMPORTED_AS.get(full, {full.replace("-", "_")})
    return names


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_for_errors_says_what_pyproject_does(extra: str) -> None:
    assert brought(extra) == EXTRAS[extra]


# What each package needs to be imported, and for the names that it loads later.
PACKAGES = {
    "privacy.accounting": ("", ""),
    "privacy.correlated_noise": ("", ""),
    "privacy.mechanisms": ("", ""),
    "privacy.secure_aggregation": ("", ""),
    "privacy.statistics": ("", ""),
    "privacy.audit": ("", "training"),
    "privacy.training": ("", "training"),
    "privacy.inference": ("owner", "inference"),
    "privacy.shared_inference": ("owner", "inference"),
    "privacy.inference_service": ("owner", "service"),
    "strategies": ("", "inference"),
}
# Loaded later for the time that it saves alone.
NEED_NO_EXTRA = {"audit_strategy", "InProcessGrid", "run_in_process"}
FLOWERS_OWN = {"fastapi", "starlette", "uvicorn"}

# Runs where the packages named first are missing, and says of each name which extra it asks for.
STRANGER = """
import contextlib, importlib, io, json, sys

missing, packages, commands = map(json.loads, sys.argv[1:])
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in missing
        return None if absent else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)

from flower_app.__main__ import main
from privacy.errors import MissingExtraError
def asked(action):
    try:
        action()
    except MissingExtraError as error:
        return str(error)
    return "works"
answers = {
    f"{package}.{name}": asked(lambda: getattr(importlib.import_module(package), name))
    for package, names in packages.items() for name in names
}
for command in commands:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main([command, *commands[command].split()])
        except SystemExit as end:
            status = end.code
    answers[command] = "works" if status == 0 else output.getvalue()
print(json.dumps(answers))
"""


@cache
def answers_with(extra: str) -> dict[str, str]:
    """What a program is told that has an extra alone, by name; without any, of commands too."""
    plan = "--epsilon 3 --population 1000 --sampling-rates 0.1 --rounds 75"
    helped = dict.fromkeys(COMMANDS, "--help") | {"plan": plan}
    commands = {} if extra else helped
    here = EXTRAS[""] | EXTRAS[extra] | FLOWERS_OWN
    missing = sorted(set().union(*EXTRAS.values()) - here)
    packages = {package: sorted(listed(package)) for package in PACKAGES}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(json.dumps, (missing, packages, commands))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize("extra", ["", "owner", "training", "inference"])
def test_an_extra_is_enough_for_what_it_is_for_and_loads_nothing_else(extra: str) -> None:
    here = EXTRAS[""] | EXTRAS[extra] | FLOWERS_OWN
    answers = answers_with(extra)
    for package, (first, later) in PACKAGES.items():
        for name in listed(package):
            own = "" if name in NEED_NO_EXTRA else later if is_later(package, name) else ""
            lacking = [need for need in (first, own) if not EXTRAS[need] <= here | {"PIL"}]
            answer = answers[f"{package}.{name}"]
            told = lacking and f"not installed: pip install 'bloomseal[{lacking[0]}]'" in answer
            assert told or answer == "works", (package, name, answer)


def is_later(package: str, name: str) -> bool:
    """Whether a package loads a name when it is first asked for."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    return name in {
        ast.literal_eval(key)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_LATER"
        for key in getattr(node.value, "keys", [])
    }


def test_a_command_that_lacks_an_extra_says_so_in_one_line() -> None:
    answers = answers_with("")
    for name in COMMANDS:
        if answers[name] != "works":
            (line,) = answers[name].splitlines()
            assert line.startswith(f"error: python -m flower_app {name} needs ")
            assert "not installed: pip install 'bloomseal[" in line
    lacking = {name for name in COMMANDS if answers[name] != "works"}
    assert lacking >= {"ask", "serve", "certify", "token", "page"}
    assert not lacking & {"plan", "population", "check-data"}


def lazy_imports() -> list[tuple[str, ast.AST, list[ast.With]]]:
    """Imports inside functions: their module, and the ``with`` statements around them."""
    found = []

    def visit(node: ast.AST, module: str, inside: bool, around: list[ast.With]) -> None:
        if inside and isinstance(node, ast.Import | ast.ImportFrom):
            found.append((module, node, around))
        if isinstance(node, ast.With):
            around = [*around, node]
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, module, inside, around)

    for top in ("privacy", "strategies", "flower_app"):
        for path in sorted((ROOT / top).rglob("*.py")):
            visit(ast.parse(path.read_text()), str(path.relative_to(ROOT)), False, [])
    return found


def roots(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {str(getattr(node, "module", "")).partition(".")[0]}


def extras_of(around: list[ast.With]) -> set[str]:
    """The extras that ``needing`` names in these statements."""
    calls: list[Any] = [item.context_expr for node in around for item in node.items]
    return {
        ast.literal_eval(keyword.value)
        for call in calls
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "needing"
        for keyword in call.keywords
    }


def test_every_optional_package_that_a_function_imports_is_asked_for_by_its_extra() -> None:
    optional = set().union(*EXTRAS.values()) - EXTRAS[""]
    seen = 0
    for module, node, around in lazy_imports():
        for package in roots(node) & optional:
            seen += 1
            named = extras_of(around)
            assert any(package in EXTRAS[extra] for extra in named), (
                f"{module}:{node.lineno} imports {package} outside "  # type: ignore[attr-defined]
                "`with privacy.imports.needing(..., extra=...)`"
            )
    assert seen > 10
