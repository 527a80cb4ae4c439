"""The bundle that ``flwr run`` sends: what nodes import, and nothing else."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import flower_app
from flower_app.processes.flower_processes import app_folder
from flower_app.report.software import software

ROOT = Path(__file__).parents[2]
PACKAGES = ("flower_app", "strategies", "privacy")
# Not imported but started, in a process of its own.
PROGRAM = "privacy.inference.evaluator.__main__"


# Lies in a clone that somebody works in. Flower bundles nothing of it, but looks at each file.
MADE_HERE = (".venv", ".git", "__pycache__", ".*_cache", ".hypothesis", "build", "dist", "results")


@pytest.fixture(scope="module")
def fab(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What ``flwr run`` makes of a clone."""
    clone = tmp_path_factory.mktemp("clone") / "bloomseal"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*MADE_HERE))
    made: bytes = build_fab_from_disk(clone)
    return made


@pytest.fixture(scope="module")
def bundle(fab: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked bundle."""
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(BytesIO(fab)) as opened:
        opened.extractall(folder)
    return folder


def sources(folder: Path) -> set[str]:
    found = (path for package in PACKAGES for path in (folder / package).rglob("*.py"))
    return {path.relative_to(folder).as_posix() for path in found}


def module_file(name: str) -> str | None:
    """The file of a module, relative to the root; None if it is no module of ours."""
    path = name.replace(".", "/")
    if name.partition(".")[0] not in PACKAGES:
        return None
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@cache
def loaded_later(package: str) -> dict[str, str]:
    """The public names that a package loads when they are first asked for, and their modules."""
    file = module_file(package)
    statements = ast.parse((ROOT / file).read_text()).body if file else []
    for node in statements:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LATER":
            later: dict[str, str] = ast.literal_eval(node.value)
            return later
    return {}


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that type checkers alone read."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def imported_by(file: str) -> Iterator[str]:
    """All modules that a module imports, at its top or inside a function, by name or later."""
    for node in executed(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            later = loaded_later(node.module)
            for alias in node.names:
                yield later.get(alias.name, f"{node.module}.{alias.name}")


def closure(*modules: str) -> set[str]:
    """The files of modules and of all that they import, folders' ``__init__`` included."""
    seen: set[str] = set()
    left = list(modules)
    while left:
        parts = left.pop().split(".")
        for end in range(1, len(parts) + 1):
            file = module_file(".".join(parts[:end]))
            if file is not None and file not in seen:
                seen.add(file)
                left += imported_by(file)
    return seen


def test_the_bundle_holds_what_nodes_import_and_nothing_else(bundle: Path) -> None:
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    entries = [name.partition(":")[0] for name in app["components"].values()]
    needed, sent = closure(*entries, PROGRAM), sources(bundle)
    assert needed - sent == set()
    assert sent - needed == set()
    every_file = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert every_file - sent == {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def test_the_apps_own_commands_send_the_clones_bundle(fab: bytes, tmp_path: Path) -> None:
    assert build_fab_from_disk(app_folder(tmp_path)) == fab


def test_the_bundle_alone_is_importable_and_has_the_clones_digest(bundle: Path) -> None:
    program = (
        f"import flower_app.server_app, flower_app.client_app, {PROGRAM}\n"
        "from flower_app.report.software import software\n"
        "print(flower_app.__file__, software()['source_sha256'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=bundle,
        env={"PYTHONPATH": str(bundle), "PATH": "", "HOME": str(bundle)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, digest = done.stdout.split()
    assert [Path(each).parents[1] for each in (file, flower_app.__file__)] == [bundle, ROOT]
    assert digest == software()["source_sha256"]
