"""Imports go one way: flower_app -> strategies -> privacy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "privacy": {"strategies", "flower_app", "tests", "benchmarks", "examples"},
    "strategies": {"flower_app", "tests", "benchmarks", "examples"},
    "flower_app": {"tests", "benchmarks", "examples"},
}
DANGEROUS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_roots(path) & FORBIDDEN[package], path


def test_flower_takes_every_module_for_one_of_the_app() -> None:
    """Its bundles leave out what is named like a test."""
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            assert not path.stem.endswith("_test"), path
            assert not path.stem.startswith("test_"), path


def test_private_names_stay_in_their_folder() -> None:
    for package in FORBIDDEN:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
                    continue
                parts = node.module.split(".")
                private = [i for i, part in enumerate(parts) if part.startswith("_")]
                if parts[0] in FORBIDDEN and private and not parts[-1].startswith("__"):
                    home = ROOT.joinpath(*parts[: private[0]])
                    assert home in path.parents, f"{path} imports {node.module}"


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
