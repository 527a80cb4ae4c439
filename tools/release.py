"""Build what leaves this repository: ``python -m tools.release FOLDER`` (``make release``).

- the wheel ``bloomseal``, and its source distribution;
- the wheel ``bloomseal-owner``: the same packages for who only asks encrypted questions, without
  Flower among its dependencies. An extra cannot take a dependency away;
- the folder ``bloomseal``, which is published on Flower Hub.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("flower_app", "strategies", "privacy")
SBOM = "sbom.json"
HUB_README = ROOT / "flower_app" / "README.md"
# Training and its accounting, which an owner of questions has nothing to do with.
_NOT_THE_OWNERS = {"flwr", "dp-accounting", "safetensors"}


def wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project, built into a folder."""
    return _built("wheel", "*.whl", project, folder)


def sdist(folder: Path) -> Path:
    """The source distribution, built into a folder: all that the wheel is built and tested from."""
    return _built("sdist", "*.tar.gz", ROOT, folder)


def _built(target: str, files: str, project: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    before = set(folder.glob(files))
    subprocess.run([*command, "--directory", str(folder)], cwd=project, check=True)
    (built,) = set(folder.glob(files)) - before
    return built


def owner_wheel(folder: Path) -> Path:
    """The wheel ``bloomseal-owner``, built into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        _copy_packages(Path(scratch))
        shutil.copyfile(ROOT / "README.md", Path(scratch) / "README.md")
        (Path(scratch) / "pyproject.toml").write_text(tomli_w.dumps(owner_project()))
        return wheel(Path(scratch), folder)


def owner_project() -> dict[str, Any]:
    """``pyproject.toml`` of ``bloomseal-owner``."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    extras = project.pop("optional-dependencies")
    project["name"] = "bloomseal-owner"
    project["description"] = "Ask a bloomseal service encrypted questions"
    project["dependencies"] = [
        line for line in project["dependencies"] if Requirement(line).name not in _NOT_THE_OWNERS
    ] + extras["owner"]
    return document


def hub_folder(folder: Path) -> Path:
    """The app as Flower Hub takes it, a new folder in ``folder``."""
    app = folder / "bloomseal"
    app.mkdir()
    _copy_packages(app)
    (app / "flower_app" / HUB_README.name).unlink()
    shutil.copyfile(HUB_README, app / "README.md")
    shutil.copyfile(ROOT / "pyproject.toml", app / "pyproject.toml")
    return app


def _copy_packages(folder: Path) -> None:
    for package in PACKAGES:
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=left_out)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")


def _is_of_a_release(path: Path) -> bool:
    if path.name == "bloomseal":
        return not path.is_symlink() and not (path / ".git").exists()
    return path.is_file() and path.name.endswith((".whl", ".tar.gz"))


def main(folder: Path) -> None:
    """Build them all into a folder, in the place of those that are there.

    What ``make sbom`` wrote there stays.

    Raises
    ------
    SystemExit
        If the folder holds anything else: it is none of releases, and nothing is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = [each for each in folder.iterdir() if each.name != SBOM]
    others = sorted(each.name for each in held if not _is_of_a_release(each))
    if others:
        raise SystemExit(
            f"error: {folder} holds {others[0]} too; name a folder for releases, such as dist"
        )
    for each in held:
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    print(wheel(ROOT, folder.resolve()))
    print(sdist(folder.resolve()))
    print(owner_wheel(folder.resolve()))
    print(hub_folder(folder.resolve()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tools.release",
        description="Builds the wheels, the source distribution and the folder for Flower Hub.",
    )
    parser.add_argument("folder", type=Path, help="to write into, such as dist")
    main(parser.parse_args().folder)
