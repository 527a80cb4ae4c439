"""Imports go one way: flower_app -> strategies -> privacy."""

import ast
import builtins
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tools.house import Graph, grouped, imports, modules

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "privacy": {"strategies", "flower_app", "tests", "benchmarks", "examples"},
    "strategies": {"flower_app", "tests", "benchmarks", "examples"},
    "flower_app": {"tests", "benchmarks", "examples"},
}
DANGEROUS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def sources() -> list[Path]:
    return [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


def test_json_is_read_in_one_place() -> None:
    """Which bounds its depth: ``privacy.json_text``."""
    readers = {relative(path) for path in sources() if "json.load" in path.read_text()}
    assert readers == {"privacy/json_text.py"}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_roots(path) & FORBIDDEN[package], path


def folders_that_know_each_other(graph: Graph) -> list[tuple[str, str]]:
    """Pairs of folders that import each other's modules; a folder and one inside it are none."""
    folders = {module: module.rpartition(".")[0] for module in modules() if "." in module}
    folders |= {module: module for module, path in modules().items() if path.stem == "__init__"}
    known = grouped(graph, folders.__getitem__)
    return [
        (one, other)
        for one in sorted(known)
        for other in sorted(known[one])
        if one < other and one in known[other] and not other.startswith(f"{one}.")
    ]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return imports(modules())


def test_folders_do_not_know_each_other_both_ways(graph: Graph) -> None:
    assert folders_that_know_each_other(graph) == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("flower_app.report.report", "flower_app.encrypted.round"),
        ("flower_app.training.assembly", "flower_app.encrypted.round"),
        ("flower_app.report.plots", "flower_app.training.progress"),
        ("privacy.accounting.events", "privacy.mechanisms.gaussian"),
        ("privacy.inference.owner.owner", "privacy.inference.evaluator.pool"),
    ],
)
def test_a_way_back_between_folders_is_seen(graph: Graph, module: str, imported: str) -> None:
    pair = sorted(name.rpartition(".")[0] for name in (module, imported))
    back = {**graph, module: graph[module] | {imported}}
    assert folders_that_know_each_other(back) == [tuple(pair)]


def test_flower_takes_every_module_for_one_of_the_app() -> None:
    """Its bundles leave out what is named like a test."""
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            assert not path.stem.endswith("_test"), path
            assert not path.stem.startswith("test_"), path


def test_private_names_stay_in_their_folder() -> None:
    """A private module is for its folder, a private name of a module for the module's folder."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
                continue
            parts = [*node.module.split("."), *{alias.name for alias in node.names}]
            for place, part in enumerate(parts):
                if parts[0] in FORBIDDEN and part.startswith("_") and not part.startswith("__"):
                    module = node.module.split(".")
                    home = ROOT.joinpath(*(parts[:place] if place < len(module) else module[:-1]))
                    assert home in path.parents, f"{path} imports {part} of {node.module}"


@pytest.mark.parametrize(
    "path", [path for path in sources() if path.name == "__init__.py"], ids=relative
)
def test_a_folders_init_shows_its_public_names_on_one_screen(path: Path) -> None:
    """Re-exports alone, ``from folder.module import Name as Name``; errors are in ``errors.py``."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the folder's docstring"
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    ours = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FORBIDDEN
    ]
    names = [alias for node in ours for alias in node.names]
    assert len(names) <= 50
    assert [alias.name for alias in names] == [alias.asname for alias in names]
    assert not [alias.name for alias in names if alias.name.endswith("Error")]


def test_errors_are_named_so_and_those_that_leave_their_folder_are_in_its_errors_module() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    classes = {
        node.name: (node, path)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_error(name: str) -> bool:
        if name in classes:
            return any(is_error(base.id) for base in classes[name][0].bases if hasattr(base, "id"))
        builtin = getattr(builtins, name, None)
        return isinstance(builtin, type) and issubclass(builtin, BaseException)

    errors = {name: path for name, (_, path) in classes.items() if is_error(name)}
    assert not {name for name in errors if not name.endswith("Error")}
    elsewhere = {name: path for name, path in errors.items() if path.name != "errors.py"}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    home = elsewhere.get(alias.name, path).parent
                    assert home in path.parents, f"{relative(path)} imports {alias.name}"


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_nothing_is_unpickled(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        assert not imported_roots(path) & DANGEROUS, path


def test_the_root_logger_is_left_alone() -> None:
    """Otherwise every line that Flower logs would appear twice."""
    program = (
        "import logging, sys, flower_app.client_app\n"
        "from privacy.accounting import GaussianRelease, Poisson, epsilon\n"
        "from privacy.training import check_model\n"
        "from torch import nn\n"
        "epsilon({GaussianRelease(1.0, Poisson(0.1)): 3}, delta=1e-5)\n"
        "check_model(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))\n"
        "assert 'opacus' in sys.modules\n"
        "assert not logging.root.handlers, logging.root.handlers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


INFERENCE = ROOT / "privacy" / "inference"
FLOORS = {
    "errors": "",
    "decision": "",
    "input_range": "",
    "ckks": "",
    "rescaling": "",
    "_blind_plan_checks": "ckks plan rescaling",
    "_plan_checks": "_blind_plan_checks ckks plan input_range rescaling",
    "plan": "ckks errors _plan_checks input_range rescaling",
    "messages": "ckks errors plan",
    "public_keys": "ckks errors plan messages",
    "plan_check": "ckks errors plan input_range",
    "arithmetic": "ckks errors plan messages public_keys rescaling",
    "compiler": "ckks errors plan input_range arithmetic rescaling",
    "importers": "errors decision input_range compiler",
    "owner": "ckks errors plan input_range messages decision",
    "stored": "ckks plan arithmetic rescaling",
    "model_file": "errors plan plan_check arithmetic stored",
    "packed_model": "ckks errors plan messages public_keys arithmetic model_file",
    "compiled_model": "input_range arithmetic packed_model",
    "compile": "ckks errors plan input_range arithmetic compiler compiled_model",
    "replacement": "errors decision input_range arithmetic compiler",
    "evaluator": "ckks errors plan input_range messages public_keys arithmetic packed_model owner",
    "certificate": "errors plan decision compiled_model owner evaluator",
    "__init__": "plan plan_check decision compiler compiled_model packed_model compile importers "
    "owner evaluator certificate replacement",
}
"""Of `privacy.inference`, from the ground up: the floors that a floor may import."""
ENTERED_BY_THEIR_SURFACE = {"ckks", "compiler", "importers", "owner", "evaluator", "stored"}
"""Folders of which others import the `__init__` alone; but `compile` drives the compiler."""


def floors_crossed(path: Path, text: str) -> list[str]:
    """Imports in a module of `privacy.inference` that its floor does not allow."""
    floor = path.relative_to(INFERENCE).parts[0].removesuffix(".py")
    crossed = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        package, area, other, *inside = [*node.module.split("."), "", ""]
        if (package, area) != ("privacy", "inference") or other == floor:
            continue
        enters = other in ENTERED_BY_THEIR_SURFACE and any(inside)
        enters = enters and (floor, other) != ("compile", "compiler")
        if other not in FLOORS[floor].split() or enters:
            crossed.append(f"{path.relative_to(ROOT)} imports {node.module}")
    return crossed


def test_encrypted_inference_keeps_to_its_floors() -> None:
    modules = sorted(INFERENCE.rglob("*.py"))
    assert {path.relative_to(INFERENCE).parts[0].removesuffix(".py") for path in modules} == set(
        FLOORS
    )
    assert [line for path in modules for line in floors_crossed(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("compiler/planner.py", "owner"),
        ("compiler/planner.py", "evaluator.pool"),
        ("owner/owner.py", "compiler.packing"),
        ("owner/owner.py", "evaluator.evaluator"),
        ("evaluator/pool.py", "compiler.lowering"),
        ("evaluator/pool.py", "owner.codec"),
        ("importers/sklearn_models.py", "owner"),
        ("importers/sklearn_models.py", "compiler.lowering"),
        ("plan.py", "compiler.packing"),
        ("arithmetic/slot_model.py", "compiler.packing"),
        ("arithmetic/slot_model.py", "ckks.ring"),
        ("ckks/ring.py", "plan"),
    ],
)
def test_a_floor_crossed_by_hand_is_seen(module: str, imported: str) -> None:
    line = f"from privacy.inference.{imported} import anything\n"
    path = INFERENCE / module
    assert floors_crossed(path, line + path.read_text()) == [
        f"privacy/inference/{module} imports privacy.inference.{imported}"
    ]
