"""Where a client's steps are computed."""

from flower_app.errors import wrong
from flower_app.settings import Settings
from privacy.imports import needing


def device_of(settings: Settings) -> str:
    """The run's ``device``, on this machine.

    Raises
    ------
    SettingError
        If PyTorch does not have it here.
    """
    if settings.device == "cpu":
        return "cpu"
    with needing("the app", extra="app"):
        import torch

    present = torch.cuda.is_available()
    if settings.device == "cuda" and not present:
        raise wrong(
            "device",
            settings.device,
            "PyTorch finds no CUDA device here; give cpu, or auto, which takes one where it is",
        )
    return "cuda" if present else "cpu"
