"""Another run's accuracy beside this one's: what privacy cost."""

from pathlib import Path
from typing import Any

from flower_app.errors import wrong
from flower_app.settings import Settings
from privacy.json_text import read_json


def compared_run(settings: Settings) -> dict[str, Any] | None:
    """Accuracy and ε of the run that ``compare-with`` names, for ``metrics.json``.

    Raises
    ------
    SettingError
        If it is no finished run with this run's data set and model.
    """
    if not settings.compare_with:
        return None
    folder = Path(settings.compare_with)

    def refused(fault: str) -> Exception:
        return wrong("compare-with", str(folder), fault)

    try:
        metrics = read_json((folder / "metrics.json").read_text())
        accuracy = float(metrics["accuracy"]["test"])
        privacy = metrics["privacy"]
        spent = privacy["record_level" if "client_level" not in privacy else "client_level"]
        epsilon = spent["epsilon"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise refused("it is not the folder of a finished run") from error
    for name, own in (("dataset", settings.dataset), ("model", settings.model)):
        if metrics.get(name) != own:
            raise refused(f"that run's {name} is {metrics.get(name)!r}, and this one's {own!r}")
    return {"folder": folder.name, "accuracy": accuracy, "epsilon": epsilon}
