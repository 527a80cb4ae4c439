"""The code of a run: its version, its commit, and a digest of its source."""

import hashlib
import os
import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
PACKAGES = ("flower_app", "strategies", "privacy")
INSTALLED_PROJECT = Path(__file__).parents[1] / "installed_app.toml"
"""``pyproject.toml`` as the wheel carries it."""

COMMIT_VARIABLE = "BLOOMSEAL_COMMIT"
"""The environment variable with the clone's commit, for runs that unpack a bundle."""


@cache
def software() -> dict[str, Any]:
    """The identity of this code.

    Returns
    -------
    dict
        ``version``; ``commit``; ``source_sha256`` of all modules that nodes are sent, the same
        wherever they lie; and the versions of the numerical libraries. None for what is not known.
    """
    return {
        "version": _version(),
        "commit": os.environ.get(COMMIT_VARIABLE) or commit(),
        "source_sha256": _digest(),
        **{name: _installed(name) for name in ("flwr", "torch", "opacus", "tenseal")},
    }


def _version() -> str | None:
    project = _project()
    return str(project["project"]["version"]) if project else _installed("bloomseal")


@cache
def _project() -> dict[str, Any]:
    """``pyproject.toml`` of a clone, a bundle or a wheel; empty where there is none."""
    for path in (_ROOT / "pyproject.toml", INSTALLED_PROJECT):
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError:
            continue
    return {}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this clone, with a plus sign where files differ; None outside a clone."""
    if not (_ROOT / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *PACKAGES)
    if head is None or changed is None:
        return None
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - the user's own git
            cwd=_ROOT,
            # Of this clone, whatever repository the caller's environment speaks of.
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _digest() -> str:
    left_out = tuple(_project()["tool"]["flwr"]["app"]["fab-exclude"]) if _project() else ()
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            name = path.relative_to(_ROOT).as_posix()
            if f"/{name}".startswith(left_out):
                continue
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
