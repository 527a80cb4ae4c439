"""The folder that ``flwr run`` takes as the app."""

import shutil
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("flower_app", "strategies", "privacy")
_CONFIGURATION = "pyproject.toml"
_IN_THE_WHEEL = Path(__file__).parents[1] / "installed_app.toml"


def app_folder(scratch: Path) -> Path:
    """Where the app stands: in its clone, or, installed from a wheel, in a copy below ``scratch``.

    A wheel's packages lie among everybody else's, which Flower must not bundle.
    """
    clone = _ROOT / _CONFIGURATION
    if clone.is_file() and not _IN_THE_WHEEL.exists():
        return _ROOT
    app = scratch / "bloomseal"
    for package in _PACKAGES:
        shutil.copytree(
            _ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copyfile(_IN_THE_WHEEL, app / _CONFIGURATION)
    return app
